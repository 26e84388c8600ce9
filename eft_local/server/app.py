"""The application: all routes over one service, behind the guard."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware

from eft_local.server import chat, completions, errors, models, ollama, status, tokens
from eft_local.server.security import Guard
from eft_local.server.service import Service
from eft_local.server.settings import Settings
from eft_local.server.streaming import Gone
from eft_local.version import __version__

LEFT = 499
"""The status that nobody reads: the client had left."""

DESCRIPTION = """Emulated fine-tuning behind the APIs of OpenAI and Ollama.

A model is named `RECIPE` for the mixture, or `RECIPE:TARGET` for one role alone: `demo:base`, `demo:expert`.
`alpha`, `beta` and the filters are fields of a request; with `record` an answer says what every role thought of every
token."""


def create_app(service: Service, settings: Settings) -> FastAPI:
    """Return the application. Its service may still be loading."""
    app = FastAPI(title="eft-local", version=__version__, description=DESCRIPTION, redirect_slashes=False)
    app.state.service = service
    for part in (models, chat, completions, ollama, tokens, status):
        app.include_router(part.router)
    errors.install(app)
    app.add_exception_handler(Gone, _left)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    return app


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=LEFT)
