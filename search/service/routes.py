"""The addresses of the service. Every question is a job: an address waits for its end, or says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from search.plan import plan_of
from search.service.answers import settle
from search.service.auth import Caller
from search.service.jobs import Queue
from search.service.replies import (
    DeviceHistory,
    DeviceSummary,
    Explained,
    JobStatus,
    Kept,
    NetworkSummary,
    PlanSummary,
    Problem,
    Several,
    Sweep,
)
from search.service.schemas import (
    ExplanationQuestion,
    Fingerprint,
    FrontQuestion,
    PlanDocument,
    PlanQuestion,
    Profile,
    SweepQuestion,
    TopQuestion,
)
from search.service.storage import Storage, Writer
from search.service.traced import TracedNetwork
from search.service.waiting import Waiter

__all__ = ["router"]

WAIT_S = 60.0


class StrictRequest(Request):
    """A body that is JSON by the letter: no NaN, no depth without end, no lone surrogates."""

    async def json(self) -> Any:
        """The parsed body. Raises HTTPException where it is none."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is no JSON: {str(error)[:200]}") from None


class StrictRoute(APIRoute):
    """A route whose requests are strict."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with the request made strict."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Not JSON"},
    401: {"model": Problem, "description": "No token"},
    403: {"model": Problem, "description": "A token without the scope"},
    404: {"model": Problem, "description": "Not here"},
    413: {"model": Problem, "description": "Too large"},
    415: {"model": Problem, "description": "Not application/json, or compressed"},
    421: {"model": Problem, "description": "A name that the service does not answer to"},
    422: {"model": Problem, "description": "A question or document that is at fault"},
    429: {"model": Problem, "description": "Too many requests"},
    503: {"model": Problem, "description": "The database does not answer"},
    507: {"model": Problem, "description": "No room left"},
}
router = APIRouter(route_class=StrictRoute, responses=REFUSALS)

After = Annotated[int, Query(ge=0, le=2**31 - 1, description="the cursor of the last row that is known")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Wait = Annotated[float, Query(ge=0, le=300, allow_inf_nan=False, description="seconds to wait for the answer")]
Slugged = Annotated[str | None, Query(max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
Fingerprinted = Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$")]
DeviceKey = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$")]
JobId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
Named = Annotated[Fingerprint, Path()]


def _storage(request: Request) -> Storage:
    return request.app.state.storage


def _queue(request: Request) -> Queue:
    return request.app.state.queue


def _with(scope: str) -> Callable[[Request], Caller]:
    """Who asks, if their token has the scope."""

    def caller(request: Request) -> Caller:
        found: Caller = request.state.caller
        if scope not in found.scopes:
            raise HTTPException(403, f"the token {found.name!r} has no scope {scope!r}; make one that has")
        return found

    return caller


def _writer(request: Request, caller: Annotated[Caller, Depends(_with("push"))]) -> Writer:
    return Writer(caller.name, request.client.host if request.client else "")


Kept_ = Annotated[Storage, Depends(_storage)]
Asked = Annotated[Queue, Depends(_queue)]
Reader = Annotated[Caller, Depends(_with("read"))]
Pusher = Annotated[Writer, Depends(_writer)]
PUSHED: dict[int | str, dict[str, Any]] = {201: {"model": Kept, "description": "New; 200: it was here already"}}


def _kept(response: Response, pushed: tuple[str, bool]) -> Kept:
    response.status_code = 201 if pushed[1] else 200
    return Kept(fingerprint=pushed[0], created=pushed[1])


# ---- devices and profiles ----------------------------------------------------------------------------------------
@router.get("/devices", tags=["devices"])
def devices(
    storage: Kept_,
    _: Reader,
    network: Fingerprinted = None,
    machine: Slugged = None,
    after: After = 0,
    limit: Limit = 1000,
) -> list[DeviceSummary]:
    """Devices, and what was measured there, when and how well; `network`: those that it can be searched for."""
    return storage.devices(network, machine, after, limit)


@router.get("/devices/{key}", tags=["devices"])
def device(storage: Kept_, _: Reader, key: DeviceKey) -> DeviceHistory:
    """One device, with every profile that was pushed of it."""
    return storage.device(key)


@router.post("/profiles", tags=["devices"], responses=PUSHED)
def push_profile(storage: Kept_, by: Pusher, profile: Profile, response: Response) -> Kept:
    """Push what a device measured in one network; pushed twice it is kept once."""
    return _kept(response, storage.add_profile(profile, by))


@router.get(
    "/profiles/{fingerprint}",
    tags=["devices"],
    response_class=Response,
    responses={
        200: {"content": {"application/vnd.apache.parquet": {}}, "description": "Rows as latency.store has them"}
    },
)
def profile(storage: Kept_, _: Reader, fingerprint: Named) -> Response:
    """A profile's rows as Parquet."""
    return Response(storage.profile(fingerprint), media_type="application/vnd.apache.parquet")


# ---- networks ----------------------------------------------------------------------------------------------------
@router.get("/networks", tags=["networks"])
def networks(storage: Kept_, _: Reader, after: After = 0, limit: Limit = 1000) -> list[NetworkSummary]:
    """Networks that were pushed."""
    return storage.networks(after, limit)


@router.post("/networks", tags=["networks"], responses=PUSHED)
def push_network(storage: Kept_, by: Pusher, network: TracedNetwork, response: Response) -> Kept:
    """Push a traced network with its importance; pushed twice it is kept once."""
    return _kept(response, storage.add_network(network, by))


@router.get("/networks/{fingerprint}", tags=["networks"])
def network(storage: Kept_, _: Reader, fingerprint: Named) -> TracedNetwork:
    """A network as it was pushed."""
    return storage.network(fingerprint)


# ---- plans and other answers -------------------------------------------------------------------------------------
@router.get("/plans", tags=["plans"])
def plans(
    storage: Kept_,
    _: Reader,
    network: Fingerprinted = None,
    machine: Slugged = None,
    after: After = 0,
    limit: Limit = 100,
) -> list[PlanSummary]:
    """Plans that were searched here or pushed."""
    return storage.plans(network, machine, after, limit)


@router.get("/plans/{fingerprint}", tags=["plans"], response_class=Response, responses={200: {"model": PlanDocument}})
def plan(storage: Kept_, _: Reader, fingerprint: Named) -> Response:
    """plan.json, as `search` writes it."""
    return _plan_json(storage.plan_text(fingerprint), fingerprint)


@router.post("/plans/import", tags=["plans"], responses=PUSHED)
def push_plan(storage: Kept_, by: Pusher, document: PlanDocument, response: Response) -> Kept:
    """Push a plan.json that `search` made elsewhere."""
    return _kept(response, storage.add_plan(plan_of(document.model_dump(mode="json")), None, by))


async def _ask(request: Request, caller: Caller, kind: str, question: Any, wait_s: float) -> JobStatus:
    """Queue a question of this kind and wait for its job."""
    storage, queue = _storage(request), _queue(request)

    def queued() -> JobStatus:
        return queue.status(queue.ask(kind, *settle(storage, kind, question), caller.name))

    return await _awaited(request, await run_in_threadpool(queued), wait_s)


async def _awaited(request: Request, status: JobStatus, wait_s: float) -> JobStatus:
    """The job as it is when it ends, or the time is over."""
    if status.state in ("queued", "running") and wait_s > 0:
        waiter: Waiter = request.app.state.waiter
        await waiter.wait(status.id, wait_s)
        return await run_in_threadpool(_queue(request).status, status.id)
    return status


def _replied(status: JobStatus) -> Response:
    """The answer; how far it is, where it is not there yet; or why there is none."""
    if status.state == "done":
        return JSONResponse(status.answer)
    if status.state == "failed" and status.error:
        return JSONResponse(status.error.model_dump(), 422 if status.error.type else 500)
    if status.state == "cancelled":
        return JSONResponse(Problem(detail=f"job {status.id} was cancelled; ask again").model_dump(), 409)
    headers = {"location": f"/jobs/{status.id}", "retry-after": "1"}
    return JSONResponse(status.model_dump(mode="json"), 202, headers)


LATER: dict[int | str, dict[str, Any]] = {
    202: {"model": JobStatus, "description": "Not there yet: look at /jobs/{id}, and ask again when it is done"},
    409: {"model": Problem, "description": "Cancelled meanwhile"},
}


@router.post("/plans", tags=["plans"], response_class=Response, responses={200: {"model": PlanDocument}, **LATER})
async def search_plan(request: Request, caller: Reader, question: PlanQuestion, wait: Wait = WAIT_S) -> Response:
    """Search the best plan within the budget of every device named; the answer is plan.json."""
    status = await _ask(request, caller, "plan", question, wait)
    if status.state != "done" or status.answer is None:
        return _replied(status)
    fingerprint = status.answer["plan"]
    return _plan_json(await run_in_threadpool(_storage(request).plan_text, fingerprint), fingerprint)


@router.post("/tops", tags=["plans"], response_class=Response, responses={200: {"model": Several}, **LATER})
async def search_top(request: Request, caller: Reader, question: TopQuestion, wait: Wait = WAIT_S) -> Response:
    """Search several plans of one budget that are well apart."""
    return _replied(await _ask(request, caller, "top", question, wait))


@router.post("/fronts", tags=["plans"], response_class=Response, responses={200: {"model": Several}, **LATER})
async def search_front(request: Request, caller: Reader, question: FrontQuestion, wait: Wait = WAIT_S) -> Response:
    """Search plans from the fastest to the full network; `knee` is the number of the one at the front's knee."""
    return _replied(await _ask(request, caller, "front", question, wait))


@router.post("/explanations", tags=["plans"], response_class=Response, responses={200: {"model": Explained}, **LATER})
async def explain_plan(
    request: Request, caller: Reader, question: ExplanationQuestion, wait: Wait = WAIT_S
) -> Response:
    """Say where a plan's milliseconds went, and where the next would come from."""
    return _replied(await _ask(request, caller, "explanation", question, wait))


@router.post("/sweeps", tags=["plans"], response_class=Response, responses={200: {"model": Sweep}, **LATER})
async def search_sweep(request: Request, caller: Reader, question: SweepQuestion, wait: Wait = 0.0) -> Response:
    """Search a plan of its own for every device and budget; rows appear in the job's answer as they are found."""
    return _replied(await _ask(request, caller, "sweep", question, wait))


def _plan_json(text: str, fingerprint: str) -> Response:
    headers = {"etag": f'"{fingerprint}"', "location": f"/plans/{fingerprint}"}
    return Response(text, media_type="application/json", headers=headers)


# ---- jobs --------------------------------------------------------------------------------------------------------
@router.get("/jobs", tags=["jobs"])
def jobs(queue: Asked, _: Reader, limit: Limit = 100) -> list[JobStatus]:
    """The newest jobs, without their answers."""
    return queue.jobs(limit)


@router.get("/jobs/{id}", tags=["jobs"])
async def job(request: Request, queue: Asked, _: Reader, id: JobId, wait: Wait = 0.0) -> JobStatus:
    """How far a job is; `wait` for its end."""
    return await _awaited(request, await run_in_threadpool(queue.status, id), wait)


@router.post("/jobs/{id}/cancel", tags=["jobs"])
def cancel(request: Request, storage: Kept_, queue: Asked, caller: Reader, id: JobId) -> JobStatus:
    """Stop a job: one's own, or anyone's with the scope push."""
    if caller.name != queue.status(id).asked_by and "push" not in caller.scopes:
        raise HTTPException(403, f"job {id} was asked by another; a token with the scope 'push' may cancel it")
    status = queue.cancel(id)
    storage.audit(Writer(caller.name, request.client.host if request.client else ""), "cancel", id)
    return status


# ---- operation ---------------------------------------------------------------------------------------------------
@router.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
def metrics(request: Request, _: Reader) -> Response:
    """Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/healthz", tags=["operation"])
async def healthz() -> dict[str, str]:
    """Whether the process lives."""
    return {"status": "ok"}


@router.get("/readyz", tags=["operation"])
def readyz(request: Request) -> dict[str, str]:
    """Whether it can answer: the database does, and its tables are of this version."""
    if not request.app.state.database.is_current():
        raise HTTPException(503, "the database's tables are of another version; restart the service to migrate them")
    return {"status": "ready"}
