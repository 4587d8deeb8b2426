"""`narrowgauge`: the service's command, and the three others for systems where `search` means something else."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import signal
import socket
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from network.command_line import positive_int, run
from network.errors import InputError

if TYPE_CHECKING:
    from search.service.settings import ServiceSettings

__all__ = ["main", "parser"]

OTHERS = ("profile-device", "search", "apply-plan")
EPILOG = """\
examples:
  narrowgauge serve                                  on this machine alone, SQLite in your user data folder
  narrowgauge token create ci --scope read --scope push
  narrowgauge serve --host 0.0.0.0 --database postgresql://narrowgauge@db/narrowgauge
  narrowgauge work --database postgresql://narrowgauge@db/narrowgauge
  narrowgauge search net.py:build --input 1x3x64x64 --latency-budget 20ms --server http://127.0.0.1:8765 -o plan.json
  narrowgauge profile-device net.py:build --input 1x3x64x64 --push http://127.0.0.1:8765

Flags override environment variables NARROWGAUGE_DATABASE, NARROWGAUGE_HOST and so on. Clients read NARROWGAUGE_TOKEN.

exit codes: 0 done; 2 something to mend, said in one line; 1 a bug
"""
SERVE = """\
examples:
  narrowgauge serve                                       on this machine alone, with one worker
  narrowgauge serve --port 9000 --workers 4 --auth on     tokens on loopback too
  narrowgauge serve --host 0.0.0.0 --database postgresql://narrowgauge@db/narrowgauge
"""
WORK = """\
examples:
  narrowgauge work --database postgresql://narrowgauge@db/narrowgauge --workers 8
"""
TOKEN = """\
examples:
  narrowgauge token create laptop                         may look and search
  narrowgauge token create ci --scope read --scope push --days 90
  narrowgauge token list --json
  narrowgauge token revoke ci --database postgresql://narrowgauge@db/narrowgauge
"""


def parser() -> argparse.ArgumentParser:
    """The options of `serve`, `work` and `token`."""
    options = argparse.ArgumentParser(
        prog="narrowgauge",
        description="A fleet of devices, one place to ask how wide a network may be on each.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(_command(commands, "serve", "answer on HTTP, with workers beside", SERVE))
    work = _command(commands, "work", "workers alone, for a database that a service elsewhere shares", WORK)
    _add_database(work)
    _add_workers(work)
    _add_token(_command(commands, "token", "make, list and revoke the tokens of a service", TOKEN))
    for name in OTHERS:
        commands.add_parser(name, help="as the command of that name", add_help=False)
    return options


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, does: str, examples: str
) -> argparse.ArgumentParser:
    says = f"{does[0].upper()}{does[1:]}."
    formatter = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=does, description=says, epilog=examples, formatter_class=formatter)


def _add_database(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--database", metavar="URL", help="sqlite:///FILE or postgresql://… (default: a file in your user data folder)"
    )


def _add_workers(options: argparse.ArgumentParser) -> None:
    options.add_argument("--workers", metavar="N", type=int, help="processes that search (default: 1)")
    options.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="default: info")


def _add_serve(options: argparse.ArgumentParser) -> None:
    _add_database(options)
    options.add_argument("--host", metavar="ADDRESS", help="where to listen (default: 127.0.0.1)")
    options.add_argument("--port", metavar="N", type=int, help="default: 8765; 0 takes any that is free")
    options.add_argument("--auth", choices=("auto", "on", "off"), help="auto (the default): tokens unless on loopback")
    _add_workers(options)
    options.add_argument("--max-body-bytes", metavar="BYTES", type=positive_int, help="largest push (default: 16 MiB)")
    options.add_argument("--requests-per-minute", metavar="N", type=positive_int, help="per token (default: 6000)")


def _add_token(options: argparse.ArgumentParser) -> None:
    actions = options.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="print a new token, this once")
    create.add_argument("name", metavar="NAME", help="whose it is, such as ci or raspberry-7")
    create.add_argument("--scope", action="append", default=[], metavar="SCOPE", help="read or push; once for each")
    create.add_argument("--days", type=float, metavar="N", help="how long it holds (default: until it is revoked)")
    create.add_argument("--requests-per-minute", metavar="N", type=positive_int, help="its own limit")
    create.add_argument("--max-body-bytes", metavar="BYTES", type=positive_int, help="its own limit")
    shown = actions.add_parser("list", help="show tokens, without their secrets")
    shown.add_argument("--json", action="store_true", help="print one JSON document")
    revoke = actions.add_parser("revoke", help="end a token")
    revoke.add_argument("name", metavar="NAME")
    for each in (create, shown, revoke):
        _add_database(each)


def main(argv: list[str] | None = None) -> int:
    """The console script. Returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in OTHERS:
        # By name: `apply-plan` belongs to a package that this one may not import.
        scripts = importlib.metadata.distribution("narrowgauge").entry_points.select(group="console_scripts")
        return scripts[words[0]].load()(words[1:])
    return run(_main, argv)


def _main(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from search.service.settings import ServiceSettings
    except ImportError as error:
        raise InputError(f"the service needs {error.name}; pip install 'narrowgauge[service]'") from None
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    names = {"database"} if arguments.command == "token" else ServiceSettings.model_fields.keys()
    settings = _settings({name: value for name, value in given.items() if name in names})
    if arguments.command == "serve":
        return _serve(settings)
    if arguments.command == "work":
        return _work(settings)
    return _token(settings, arguments)


def _settings(given: dict[str, Any]) -> ServiceSettings:
    from pydantic import ValidationError

    from search.service.settings import ServiceSettings

    try:
        return ServiceSettings(**given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        raise InputError(
            f"--{name.replace('_', '-')} or NARROWGAUGE_{name.upper()}: {fault['msg']}; mend it, or leave it out"
        ) from None


def _serve(settings: ServiceSettings) -> int:
    import uvicorn

    from search.service.api import create_app
    from search.service.logs import configure_logs
    from search.service.supervisor import Supervisor

    app = create_app(settings)
    configure_logs(settings.log_level)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the guards write a line for each request
        server_header=False,
        timeout_graceful_shutdown=20,
        limit_concurrency=1000,
    )
    listening = _listen(settings.host, settings.port)
    workers = Supervisor(settings.workers, settings.environment)
    workers.start()
    host, port = listening.getsockname()[:2]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    guarded = "with tokens" if settings.needs_tokens else "without tokens, for this machine alone"
    print(f"serving {where} {guarded}; database {app.state.database}", file=sys.stderr, flush=True)

    class Server(uvicorn.Server):
        """Whoever waits for a job is told how far it is, and does not hold up the end."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.waiter.wake()
            super().handle_exit(sig, frame)

    # uvicorn stops at a signal, and then raises it once more: the workers are still to be stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        Server(config).run(sockets=[listening])
    finally:
        workers.stop()
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError where there can be none.

    It names its protocol, as uvicorn's own does not: asyncio turns Nagle's algorithm off for TCP alone, and with it
    every answer waits 40 ms for the client's delayed acknowledgement.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; choose another --port") from None
    return listening


def _work(settings: ServiceSettings) -> int:
    from search.service.database import Database
    from search.service.logs import configure_logs
    from search.service.supervisor import Supervisor

    configure_logs(settings.log_level)
    Database(settings.url).migrate()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    workers = Supervisor(settings.workers, settings.environment)
    workers.start()
    print(f"{settings.workers} workers on {Database(settings.url)}", file=sys.stderr, flush=True)
    stop.wait()
    workers.stop()
    return 0


def _token(settings: ServiceSettings, arguments: argparse.Namespace) -> int:
    from search.service.auth import Tokens
    from search.service.database import Database

    database = Database(settings.url)
    database.migrate()
    tokens = Tokens(database)
    if arguments.action == "create":
        print(
            tokens.create(
                arguments.name,
                frozenset(arguments.scope or ["read"]),
                days=arguments.days,
                requests_per_minute=arguments.requests_per_minute,
                max_body_bytes=arguments.max_body_bytes,
            )
        )
        print("it is kept as a hash only, so copy it now; clients read it from NARROWGAUGE_TOKEN", file=sys.stderr)
    elif arguments.action == "revoke":
        tokens.revoke(arguments.name)
    else:
        _show(tokens.list(), arguments.json)
    return 0


def _show(tokens: list[Any], as_json: bool) -> None:
    names = ("name", "scopes", "created_at", "expires_at", "revoked_at", "requests_per_minute", "max_body_bytes")
    rows = [{name: getattr(token, name) for name in names} for token in tokens]
    if as_json:
        print(json.dumps({"tokens": rows}, default=str, indent=2))
        return
    for row in rows:
        end = f"revoked {row['revoked_at']:%Y-%m-%d}" if row["revoked_at"] else ""
        end = end or (f"until {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "no end")
        print(f"{row['name']:32} {row['scopes']:10} since {row['created_at']:%Y-%m-%d}, {end}")


if __name__ == "__main__":
    sys.exit(main())
