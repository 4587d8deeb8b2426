"""The page, in a real Chromium: what an engineer does there, by pointer and by keyboard, on a desk and on a phone."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="no playwright is installed; pip install '.[dev]'")
from playwright.sync_api import Browser, Page, expect

from benchmarks.fleet import chain, device, machine
from benchmarks.page import chromium, find_chromium
from search.plan import Feed, ModelReference
from search.service.auth import Tokens
from search.service.clock import now
from search.service.command import main
from search.service.models import DeviceRow, ProfileRow
from search.service.traced import describe
from tests.known_runtime import install
from tests.service import KNOWN, MODEL, Service, importance, process, profile, service, sqlite

PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}
READABLE = 4.5  # WCAG 2.2, 1.4.3: contrast of text
HOSTILE = "<img src=x onerror=window.struck=1>"
EVIL = chain(HOSTILE, [16, 24, 8])

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium is installed; apt-get install chromium, or make chromium")
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Machines 0, 1 and 2 with a network, and machine 3 with one whose every name is hostile."""
    with service(sqlite(tmp_path_factory.mktemp("page"))) as each:
        each.network = each.push(0, 1, 2)
        push_hostile(each)
        yield each


def push_hostile(served: Service) -> None:
    odd = asdict(machine(3)) | {"processor": HOSTILE, "features": HOSTILE * 3}
    document = profile(3, EVIL).model_dump(mode="json")
    assert served.post("/profiles", document | {"machine": odd}).status_code == 201
    reference = ModelReference(f"{HOSTILE}.py:build", "{}", EVIL.input_shapes, "0" * 64)
    network = describe(EVIL, importance(EVIL), reference, Feed(images=f"$(touch struck) {HOSTILE}"))
    assert served.post("/networks", network).status_code == 201


@pytest.fixture
def visit(browser: Browser, served: Service) -> Iterator[Open]:
    """Open the page of a service: `visit(query, viewport=…)`; it must have said nothing wrong in the end."""
    contexts, faults = [], list[str]()

    def opened(query: str = "", of: Service = served, allow: str = "nothing", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": DESK, "accept_downloads": True} | options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda said: faults.append(said.text) if said.type == "error" and allow not in said.text else None,
        )
        page.goto(f"{of.url}/{query}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


def query(served: Service, *numbers: int, **more: str) -> str:
    """The address of a view: the network and these machines."""
    rows = {row["machine"]: row["key"] for row in served.http.get("/devices").json()}
    words = [f"network={served.network}", *(f"device={rows[device(n).machine]}" for n in numbers)]
    return "page/?" + "&".join([*words, *(f"{name}={value}" for name, value in more.items())])


def planned(page: Page) -> Page:
    """The page once every device chosen has its plan."""
    expect(page.locator("#planned")).to_be_visible()
    expect(page.locator("#compare-rows td.said")).to_have_count(0)
    expect(page.locator("#bars")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#widths-rows tr").first).to_be_visible()
    return page


def steer(page: Page, *keys: str) -> None:
    """Press keys on the slider, and wait for what they lead to."""
    before = page.url
    for key in keys:
        page.get_by_label("Latency budget, along the front").press(key)
    expect(page).not_to_have_url(before)
    planned(page)


def widths(page: Page) -> dict[str, list[int]]:
    """Group → planned widths, a column per plan."""
    rows = page.locator("#widths-rows tr").evaluate_all(CELLS)
    return {name: [int(cell.split("/")[0]) for cell in cells] for name, *cells in rows}


CELLS = "rows => rows.map(row => [...row.cells].map(cell => (cell.querySelector('.pair') ?? cell).textContent))"


def the_fronts(served: Service, number: int = 0) -> list[dict[str, Any]]:
    """The front that the page shows, by REST."""
    choice = {"device": device(number).id, "version": "2.0"}
    asked = {"network": served.network, "device": choice, "count": 24}
    return served.post("/fronts", asked).json()["plans"]


# ---- from nothing to a plan --------------------------------------------------------------------------------------
def test_from_an_empty_folder_to_a_plan_on_the_page(tmp_path, browser: Browser, monkeypatch):
    """serve, push a profile, push a network, and the plan is there, without a choice to be made."""
    with process(tmp_path) as served:
        url, page = served.url, browser.new_context().new_page()
        page.goto(url)
        expect(page.locator("#devices-empty")).to_contain_text(f"profile-device MODEL --input SHAPE --push {url}")
        install(monkeypatch)
        store = ["--profiles", str(tmp_path / "profiles")]
        assert main(["profile-device", *MODEL, *KNOWN, "--configurations", "8", *store, "--push", url]) == 0
        asked = [*MODEL, *KNOWN, "--latency-budget", "0.7x", *store, "--push", url, "-o", str(tmp_path / "plan.json")]
        assert main(["search", *asked]) == 0
        page.get_by_role("button", name="Refresh").click()
        planned(page)
        expect(page.locator("#compare-rows tr")).to_have_count(1)
        page.context.close()


# ---- the budget --------------------------------------------------------------------------------------------------
def test_moving_the_budget_changes_widths_and_milliseconds(visit: Open, served: Service):
    page = planned(visit(query(served, 0)))
    slider, plans = page.get_by_label("Latency budget, along the front"), the_fronts(served)
    steer(page, "Home")
    narrow, fast = widths(page), page.locator("#layers-rows").inner_text()
    assert {name: values[0] for name, values in narrow.items()} == plans[0]["widths"]
    steer(page, "End")
    assert {name: values[0] for name, values in widths(page).items()} == plans[-1]["widths"]
    assert page.locator("#layers-rows").inner_text() != fast
    assert str(slider.get_attribute("aria-valuetext")).endswith("A keeps 100.0 %")


def test_the_bars_are_as_long_as_the_figures_say(visit: Open, served: Service):
    page = planned(visit(query(served, 0)))
    steer(page, "Home")
    lengths = page.locator("#widths-rows .bar").evaluate_all(
        "bars => bars.map(bar => [bar.children[1].offsetWidth, bar.children[0].offsetWidth, bar.offsetWidth])"
    )
    for (after, before, room), (width,), full in zip(lengths, widths(page).values(), (16, 48, 32), strict=True):
        assert before / room == pytest.approx(full / 48, abs=0.02)
        assert after / room == pytest.approx(width / 48, abs=0.02)


def test_a_number_of_milliseconds_is_searched_exactly(visit: Open, served: Service):
    page = planned(visit(query(served, 0)))
    plans = the_fronts(served)
    budget = round((plans[9]["predicted_ms"] + plans[10]["predicted_ms"]) / 2, 6)
    page.get_by_label("Exactly, ms").fill(str(budget))
    page.get_by_label("Exactly, ms").press("Enter")
    asked = {"device": device(0).id, "version": "2.0", "budget": f"{budget}ms"}
    expected = served.post("/plans", {"network": served.network, "devices": [asked]}).json()
    expect(page.locator("#compare-rows strong").first).to_have_text(milliseconds(expected["predicted_ms"]))
    assert {name: found[0] for name, found in widths(planned(page)).items()} == expected["widths"]
    page.get_by_label("Exactly, ms").fill("0.0001")
    page.get_by_label("Exactly, ms").press("Enter")
    expect(page.locator("#compare-rows")).to_contain_text("its fastest plan takes")


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.{3 - max(0, len(str(int(value))) - 1)}f}"


def test_what_a_millisecond_costs_is_the_services_explanation(visit: Open, served: Service):
    page = planned(visit(query(served, 0)))
    page.locator("#explain summary").click()
    expect(page.locator("#explanations")).to_contain_text("a millisecond is worth")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download plan.json").click()
    served.post("/plans/import", json.loads(download.value.path().read_text()))
    fingerprint = page.locator("#apply button.main").get_attribute("title")
    found = served.post("/explanations", {"plan": fingerprint}).json()
    price = float(re.search(r"worth ([\d.]+) %", page.locator("#explanations").inner_text())[1])
    assert price == pytest.approx(100 * found["price_per_ms"], rel=0.05)
    assert page.locator("#explanations tbody").nth(0).locator("code").all_inner_texts() == [
        move["group"] for move in found["narrower"]
    ]


# ---- several devices ---------------------------------------------------------------------------------------------
def test_devices_stand_side_by_side_and_one_network_can_be_had_for_all(visit: Open, served: Service):
    page = planned(visit(query(served, 0)))
    page.get_by_label(f"Plan for {device(1).id}").check()
    expect(page.locator("#compare-rows tr")).to_have_count(2)
    expect(page.locator("#widths-head th")).to_have_count(3)
    each = widths(planned(page))
    assert {len(columns) for columns in each.values()} == {2}
    page.get_by_label("one network for all").check()
    expect(page.locator("#widths-head th")).to_have_count(2)
    planned(page)
    budget = page.url.split("budget=")[1].split("&")[0]
    asked = [{"device": device(n).id, "version": "2.0", "budget": f"{budget}ms"} for n in (0, 1)]
    expected = served.post("/plans", {"network": served.network, "devices": asked}).json()
    assert {name: found[0] for name, found in widths(page).items()} == expected["widths"]
    shown = [row.locator("strong").first.inner_text() for row in page.locator("#compare-rows tr").all()]
    assert shown == [milliseconds(each["predicted_ms"]) for each in (expected, *expected["others"])]
    page.get_by_role("button", name=f"Remove {device(0).id}").click()
    expect(page.locator("#compare-rows tr")).to_have_count(1)
    expect(page.get_by_label(f"Plan for {device(0).id}")).not_to_be_checked()


def test_what_is_downloaded_is_the_services_document(visit: Open, served: Service):
    page = planned(visit(query(served, 0, 1)))
    expect(page.locator("#apply button.main")).to_have_count(2)
    for number, button in enumerate(page.locator("#apply button.main").all()):
        with page.expect_download() as download:
            button.click()
        assert download.value.suggested_filename == f"plan-{'AB'[number]}-{device(number).machine}.json"
        there = served.http.get(f"/plans/{button.get_attribute('title')}")
        assert download.value.path().read_bytes() == there.content
        assert there.json()["device"] == device(number).machine


@pytest.mark.parametrize("permitted", [True, False])
def test_the_command_is_copied_even_where_the_clipboard_is_refused(visit: Open, served: Service, permitted: bool):
    page = planned(visit(query(served, 0), permissions=["clipboard-read", "clipboard-write"]))
    page.evaluate("navigator.clipboard.writeText('what was there')")
    if not permitted:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    page.get_by_role("button", name="Copy command").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "apply-plan plan.json --images PHOTOS -o thin"


def test_a_view_is_kept_in_its_address(visit: Open, served: Service):
    page = planned(visit(query(served, 0, 2)))
    steer(page, "ArrowRight")
    before = widths(page)
    page.reload()
    assert widths(planned(page)) == before
    expect(page.get_by_label(f"Plan for {device(2).id}")).to_be_checked()


# ---- the list ----------------------------------------------------------------------------------------------------
def test_history_says_what_counts_and_what_was_replaced(visit: Open, tmp_path):
    with service(sqlite(tmp_path), works=False) as alone:
        for seed in (0, 5):
            alone.post("/profiles", profile(0, seed=seed))
        page = visit("", of=alone)
        page.get_by_role("button", name=f"History of {device(0).id}").click()
        expect(page.locator(".history tbody tr")).to_have_count(2)
        assert [row.inner_text().split()[-1] for row in page.locator(".history tbody tr").all()] == [
            "counts",
            "replaced",
        ]


def test_a_thousand_devices_are_paged_searched_and_sorted(visit: Open, tmp_path):
    with service(sqlite(tmp_path), works=False) as alone:
        add_devices(alone, 1000)
        page = visit("", of=alone)
        expect(page.locator("#page")).to_have_text("1–10 of 1,000")
        assert page.locator("#devices-rows tr").count() == 10
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#page")).to_have_text("11–20 of 1,000")
        page.get_by_role("button", name="Spread").click()
        page.get_by_role("button", name="Spread").click()
        expect(page.locator("#devices-rows th").first).to_contain_text("synthetic-cpu-999-")
        expect(page.locator("th[aria-sort=descending]")).to_have_text("Spread")
        page.get_by_label("Find").fill("cpu-77 TORCH")
        expect(page.locator("#devices-count")).to_have_text("11 of 1,000")
        page.get_by_label("Find").fill("cpu-5")
        expect(page.locator("#devices-count")).to_have_text("111 of 1,000")
        boxes = page.locator("#devices-rows input")
        for at in range(6):
            boxes.nth(at).check()
        boxes.nth(6).click()
        expect(boxes.nth(6)).not_to_be_checked()
        expect(page.get_by_role("status")).to_contain_text("Remove one first")
        page.get_by_label("Find").fill("nothing like it")
        expect(page.locator("#devices-empty")).to_contain_text("No device here is called so")
        page.close()


def add_devices(alone: Service, count: int) -> None:
    """Rows of devices and their profiles, as pushes leave them, but for the tables that no list reads."""
    with alone.state.database.write() as session:
        for number in range(count):
            owner = device(number)
            key = hashlib.sha256(str(number).encode()).hexdigest()
            row = DeviceRow(key=key[:16], first_seen=now(), **asdict(owner), **asdict(machine(number)))
            session.add(row)
            session.flush()
            figures = {"rows": 100, "configurations": 12, "layer_kinds": 4, "baseline_ms": 1.0, "contention": 0.01}
            session.add(
                ProfileRow(
                    fingerprint=key, device_id=row.id, network="0" * 16, spread=number / 1e4, synthetic=True,
                    measured_at="2026-11-22T00:00:00+00:00", pushed_at=now(), pushed_by="test", **figures,
                )
            )  # fmt: skip


# ---- for everybody -----------------------------------------------------------------------------------------------
def test_the_page_is_used_by_keyboard_alone(visit: Open, served: Service):
    page = visit(query(served))
    expect(page.locator("#devices-rows tr")).to_have_count(3)
    tab_to(page, f"Plan for {device(0).id}")
    page.keyboard.press("Space")
    planned(page)
    tab_to(page, "Latency budget, along the front")
    before, where = widths(page), page.url
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    expect(page).not_to_have_url(where)
    assert widths(planned(page)) != before
    tab_to(page, "Download plan.json")
    with page.expect_download():
        page.keyboard.press("Enter")
    assert focused(page)["name"] == "Download plan.json"  # it was not lost to a redraw
    page.keyboard.press("Shift+Tab")
    assert focused(page)["name"] == "Copy command"


FOCUSED = """() => {
    const at = document.activeElement, style = getComputedStyle(at);
    const labels = [...(at.labels ?? [])].map(label => label.textContent.trim().split('\\n')[0].trim()).join(' ');
    const seen = at.getBoundingClientRect();
    return {
        name: at.getAttribute('aria-label') ?? (labels || at.textContent.trim()), tag: at.tagName,
        outline: style.outlineStyle + style.outlineWidth, hidden: seen.bottom < 0 || seen.top > innerHeight,
    };
}"""


def focused(page: Page) -> dict[str, Any]:
    return page.evaluate(FOCUSED)


def tab_to(page: Page, name: str) -> None:
    """Press Tab until that control has the focus; each on the way must have a name, and show that it has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        at = focused(page)
        if at["tag"] != "BODY":
            assert at["name"], at
            assert at["outline"] not in ("none0px", "none3px"), at
            assert not at["hidden"], at
        if at["name"] == name:
            return
    raise AssertionError(f"Tab never came to {name!r}")


@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_nothing_scrolls_sideways(visit: Open, served: Service, viewport: dict[str, int]):
    page = planned(visit(query(served, 0, 1), viewport=viewport))
    page.locator("#explain summary").click()
    expect(page.locator("#explanations table").first).to_be_visible()
    page.get_by_role("button", name=f"History of {device(0).id}").click()
    expect(page.locator(".history table")).to_be_visible()
    assert page.evaluate(BEYOND) == []
    choose_hostile(page)
    planned(page)
    assert page.evaluate(BEYOND) == []


BEYOND = """() => {
    const room = document.documentElement.clientWidth, found = [];
    if (document.documentElement.scrollWidth > room) found.push('the page');
    for (const each of document.querySelectorAll('main *')) {
        if (each.closest('.scroll, pre, .hidden, svg, thead, option') || !each.checkVisibility()) continue;
        if (each.getBoundingClientRect().right > room + 1) found.push(each.outerHTML.slice(0, 80));
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(visit: Open, served: Service, scheme: str):
    page = planned(visit(query(served, 0, 1, 2), color_scheme=scheme))
    page.locator("#explain summary").click()
    page.get_by_role("button", name=f"History of {device(0).id}").click()
    expect(page.locator(".history table")).to_be_visible()
    expect(page.locator("#explanations table").first).to_be_visible()
    found = page.evaluate(CONTRASTS)
    assert len(found) > 100
    assert [each for each in found if each["contrast"] < READABLE] == []
    dark = sum(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")) < 200
    assert dark == (scheme == "dark")


CONTRASTS = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const over = colours => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = rgb => rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, at) => sum + v * [.2126, .7152, .0722][at], 0);
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const at = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
        if (!text || !at.checkVisibility() || at.closest('.hidden, option, [aria-disabled=true]')) continue;
        const backs = [];
        for (let each = at; each; each = each.parentElement) backs.unshift(getComputedStyle(each).backgroundColor);
        const own = getComputedStyle(at), ink = at instanceof SVGElement ? own.fill : own.color;
        const [one, other] = [light(over(backs)), light(over([...backs, ink]))].sort((a, b) => b - a);
        found.push({text, contrast: (one + .05) / (other + .05)});
    }
    return found;
}"""


# ---- nobody's code -----------------------------------------------------------------------------------------------
def choose_hostile(page: Page) -> None:
    """Choose the network whose names are hostile, by its position."""
    expect(page.locator("#network option")).to_have_count(3)
    names = page.locator("#network option").all_inner_texts()
    page.locator("#network").select_option(index=next(at for at, text in enumerate(names) if HOSTILE in text))


def test_hostile_names_are_text(visit: Open, served: Service):
    page = visit()
    choose_hostile(page)
    planned(page)
    for place in ("#devices-rows", "#widths-rows", "#network"):
        expect(page.locator(place)).to_contain_text(HOSTILE)
    page.get_by_role("button", name="History of").first.click()
    expect(page.locator(".history")).to_contain_text(HOSTILE)
    assert page.locator("img").count() == 1  # our own
    assert page.evaluate("window.struck") is None
    expect(page.locator(".command")).to_have_text("apply-plan plan.json --weights WEIGHTS -o thin")


def test_the_policy_stops_what_would_run(visit: Open):
    page = visit(allow="Content Security Policy")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=data:,x onerror=window.struck=1>')")
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.struck = 1'}))")
    page.wait_for_timeout(100)
    assert page.evaluate("window.struck") is None


def test_a_token_is_asked_for_and_kept_in_this_tab_alone(visit: Open, tmp_path):
    with service(sqlite(tmp_path), auth="on") as guarded:
        secret = Tokens(guarded.state.database).create("page", frozenset(["read", "push"]))
        guarded.http.headers["authorization"] = f"Bearer {secret}"
        guarded.push(0)
        page = visit("", of=guarded, allow="status of 401")
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("That token is not known here")).to_be_visible()
        page.get_by_role("textbox", name="Token").fill(secret)
        page.get_by_role("button", name="Use it").click()
        planned(page)
        kept = page.evaluate(
            "[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie, location.href]"
        )
        assert [secret in each for each in kept] == [True, False, False, False]
        page.get_by_role("button", name="Token…").click()
        page.get_by_role("button", name="Forget it").click()
        expect(page.get_by_role("textbox", name="Token")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0
        page.close()


def _settled(service: Service) -> set[str]:
    """The states of its jobs, once none of them waits any more: what the page asks arrives after it shows so."""
    for _ in range(100):
        found = {job["state"] for job in service.http.get("/jobs").json()}
        if "queued" not in found:
            break
        time.sleep(0.05)
    return found


def test_a_job_can_be_cancelled_and_a_service_that_is_gone_is_said(visit: Open, tmp_path):
    with service(sqlite(tmp_path), works=False) as idle:
        idle.network = idle.push(0)
        page = visit(query(idle, 0), of=idle, allow="Failed to load resource")
        expect(page.locator("#compare-rows progress")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#plan-empty")).to_be_visible()
        assert _settled(idle) == {"cancelled"}
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("alert").first).to_have_text("The service does not answer. Is it running?")


def test_a_redraw_between_press_and_release_does_not_lose_the_click(visit: Open, tmp_path):
    with service(sqlite(tmp_path), works=False) as idle:
        idle.network = idle.push(0)
        page = visit(query(idle, 0), of=idle, allow="Failed to load resource")
        page.get_by_role("button", name="Cancel").hover()
        page.mouse.down()
        before = page.locator("#compare-rows tr").element_handle()
        page.evaluate("dispatchEvent(new Event('resize'))")
        page.wait_for_timeout(300)
        assert before.evaluate("row => row.isConnected")
        page.mouse.up()
        expect(page.locator("#plan-empty")).to_be_visible()
        assert _settled(idle) == {"cancelled"}
        page.evaluate("dispatchEvent(new Event('resize'))")
        assert not before.evaluate("row => row.isConnected")


def test_every_file_of_the_page_is_preloaded_and_no_address_leads_elsewhere():
    folder = Path(__file__).parents[1] / "search" / "service" / "page"
    html = (folder / "index.html").read_text()
    modules = {path.name for path in folder.glob("*.js")}
    assert set(re.findall(r'(?:modulepreload" href|script type="module" src)="(.*?)"', html)) == modules
    for path in folder.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|//cdn|innerHTML|outerHTML|insertAdjacent|eval\(|localStorage|document\.write", text
        )
