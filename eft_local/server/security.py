"""Who may use the server: keys, names, pages of other origins, and requests that come too large or too slowly."""

from __future__ import annotations

import asyncio
import hmac
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eft_local.errors import shown
from eft_local.server.errors import ApiError, api_error, is_ollama
from eft_local.server.metrics import Metrics
from eft_local.server.settings import Settings

log = logging.getLogger("eft_local.server")

OPEN_PATHS = frozenset({"/health"})
"""What is answered without a key."""


class Guard:
    """Lets those requests through to the app that may be answered, whole bodies and no others.

    Whatever goes wrong behind it is answered in the API's form, and never with a traceback.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            self._check_name(headers)
            if scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
                self._check_key(headers)
            if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
                receive = await self._read(scope, headers, receive)
            await self._app(scope, receive, watched)
        except Exception as error:
            if status:
                raise
            response = api_error(error).response(ollama=is_ollama(scope["path"]))
            if isinstance(error, ApiError) and error.status in (408, 413):
                response.headers["connection"] = "close"  # what is left of the body is not read
            await response(scope, receive, watched)
        finally:
            self._metrics.requests.labels(self._named(scope), str(status)).inc()

    def _named(self, scope: Scope) -> str:
        """Return a path as it is counted: unknown ones are one, whatever they are called."""
        route = scope.get("route")
        return getattr(route, "path", "other")

    def _check_key(self, headers: Headers) -> None:
        """Raise ApiError 401 unless there is a key, or none is needed. All are compared, in constant time each."""
        if not self._keys:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        key = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        matches = [hmac.compare_digest(key.encode("latin-1"), each) for each in self._keys]
        if not any(matches):
            what = "is not one of this server's" if key else "is missing"
            raise ApiError(401, f"the API key {what}; send it as Authorization: Bearer KEY", code="invalid_api_key")

    def _check_name(self, headers: Headers) -> None:
        """Raise ApiError 403 where a name was led to this machine that is not its own, as hostile pages do."""
        if self._keys or "*" in self._settings.hosts:
            return
        name = headers.get("host", "")
        host = name if name.endswith("]") else name.rpartition(":")[0] or name
        if host.lower() not in self._settings.hosts:
            raise ApiError(403, f"this server is not called {shown(host)}; use 127.0.0.1, or start it with an API key")

    def _check_origin(self, headers: Headers) -> None:
        """Raise ApiError 403 for scripts of web pages that were not allowed."""
        origin = headers.get("origin")
        if origin is None or "*" in self._settings.origins or origin in self._settings.origins:
            return
        if origin != "null" and urlsplit(origin).netloc == headers.get("host"):
            return  # our own page of the API
        raise ApiError(403, f"pages of {shown(origin)} may not use this server; allow them with --cors {shown(origin)}")

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """Read the whole body, and return what gives it. Raises: ApiError 408 or 413."""
        most = self._settings.body
        too_large = ApiError(413, f"the body is larger than {most} bytes, which is what this server takes")
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 15 or int(length) > most):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.patience):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        break
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {self._settings.patience:g} s") from None
        _call_it_json(scope)
        return _replayed(bytes(body), receive)


def _call_it_json(scope: Scope) -> None:
    """Let a body be read as JSON whatever its type: `curl -d` sends none of its own, and nothing else is taken."""
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    scope["headers"] = [*others, (b"content-type", b"application/json")]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, then what comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
