"""`eft serve`: recipes behind the APIs of OpenAI and Ollama."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eft_local.cli import output
from eft_local.cli.options import DEFAULT_RECIPE, Command, Option, complete_recipe, example, read_text
from eft_local.errors import EftError, UsageError

if TYPE_CHECKING:
    from eft_local.recipe import Recipe
    from eft_local.server.settings import Settings

KEY_VARIABLE = "EFT_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _access(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, cls=Option, section="Access", **settings)


def _limit(name: str, kind: Any, default: float | None, metavar: str, says: str) -> Callable[[Any], Any]:
    return click.option(
        name, cls=Option, section="Limits", type=kind, default=default, show_default=default is not None,
        metavar=metavar, help=says,
    )  # fmt: skip


_SECONDS = click.FloatRange(0.1, 1e6)


@click.command(
    cls=Command,
    epilog=example(
        "eft serve",
        "eft serve -r qwen3-laptop -r demo --parallel 8",
        f"{KEY_VARIABLE}=secret eft serve --host 0.0.0.0",
    ),
)
@click.option(
    "--recipe",
    "-r",
    "names",
    metavar="NAME|FILE",
    multiple=True,
    default=[DEFAULT_RECIPE],
    show_default=True,
    shell_complete=complete_recipe,
    help="What is served, once for each recipe; files that several name are loaded once.",
)
@_access("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@_access(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65535), metavar="N", help="0 takes a free one."
)
@_access(
    "--api-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Keys that open the API, one on each line. {KEY_VARIABLE} in the environment is one as well.",
)
@_access("--allow-anyone", is_flag=True, help="Listen on an address that others reach without a key.")
@_access("--cors", "origins", multiple=True, metavar="ORIGIN", help="Whose pages' scripts may use it; * is all pages'.")
@_limit("--parallel", click.IntRange(1, 256), 4, "N", "Answers of a recipe that are written side by side.")
@_limit("--queue", click.IntRange(0, 100_000), 64, "N", "Answers that may wait; then clients get 429.")
@_limit("--deadline", _SECONDS, 600.0, "SECONDS", "How long a request may take, its waiting included.")
@_limit(
    "--max-tokens", click.IntRange(1, 2**31 - 1), None, "N", "The longest answer; without it what the context holds."
)
@_limit("--max-body", click.IntRange(1024, 1 << 30), 4 << 20, "BYTES", "The largest request.")
@_limit("--patience", _SECONDS, 30.0, "SECONDS", "How long a client may send or read nothing.")
@_limit("--drain", click.FloatRange(0, 1e6), 30.0, "SECONDS", "How long running answers get when the server ends.")
def serve(
    names: tuple[str, ...],
    host: str,
    port: int,
    api_key_file: Path | None,
    allow_anyone: bool,
    origins: tuple[str, ...],
    parallel: int,
    queue: int,
    deadline: float,
    max_tokens: int | None,
    max_body: int,
    patience: float,
    drain: float,
) -> None:
    """Serve recipes behind the APIs of OpenAI and Ollama.

    Models are named RECIPE for the mixture, and RECIPE:TARGET for one role alone, as demo:base. The address is
    written to stdout when everything is loaded. Ctrl+C, or SIGTERM, ends the server when the running answers are
    complete; a second one ends it at once.
    """
    from eft_local.hub.references import find_recipe

    keys = _keys(api_key_file)
    if host not in _LOOPBACK and not keys and not allow_anyone:
        raise UsageError(
            f"--host {host}: others could use the server; set {KEY_VARIABLE} or --api-key-file, or say --allow-anyone"
        )
    try:
        from eft_local.server.settings import LOCAL_NAMES, Settings
    except ImportError:
        raise UsageError("the server needs more packages: pip install 'eft-local[serve]'") from None
    settings = Settings(
        parallel=parallel,
        queue=queue,
        deadline=deadline,
        max_tokens=max_tokens,
        body=max_body,
        patience=patience,
        drain=drain,
        keys=keys,
        origins=origins,
        hosts=LOCAL_NAMES if host in _LOOPBACK else ("*",),
    )
    _run([find_recipe(name) for name in names], settings, host, port)


def _keys(file: Path | None) -> tuple[str, ...]:
    """Return the keys of the environment and of a file. Raises: UsageError."""
    lines = [os.environ.get(KEY_VARIABLE, "")]
    if file is not None:
        found = read_text(file, "--api-key-file").splitlines()
        if not any(line.strip() for line in found):
            raise UsageError(f"--api-key-file {file}: holds no key; write one on a line")
        lines += found
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _run(recipes: Sequence[Recipe], settings: Settings, host: str, port: int) -> None:
    """Listen, load, and serve until somebody ends it. Raises: what loading raises."""
    from eft_local.machine import interpreter
    from eft_local.server import http
    from eft_local.server.app import create_app
    from eft_local.server.service import Service

    interpreter.switch_often()
    service = Service(recipes, settings)
    failures: list[BaseException] = []
    with _listening(host, port) as listener:
        server = http.server(create_app(service, settings), settings)

        def load() -> None:
            try:
                service.load(lambda role, share: not server.should_exit)
            except BaseException as error:
                failures.append(error)
                server.stop()
            else:
                output.note(f"serving {', '.join(recipe.name for recipe in recipes)}; Ctrl+C ends it")
                output.write(f"{_address(host, listener)}/v1\n")
                output.flush()

        loading = threading.Thread(target=load, name="loading")
        loading.start()
        try:
            server.listen([listener])
        finally:
            server.should_exit = True
            loading.join()
            service.close()
    if failures and not server.was_ended:
        raise failures[0]


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises: EftError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise EftError(f"{host} port {port}: {error.strerror or error}; choose another --port or --host") from None


def _address(host: str, listener: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
