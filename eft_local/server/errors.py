"""What a client reads when something is wrong: OpenAI's error form, and the status that says whether to retry."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from eft_local.errors import (
    Cancelled,
    ConstraintError,
    ContextOverflowError,
    EftError,
    ModelNotFoundError,
    OutOfMemoryError,
    UsageError,
    shown,
)

log = logging.getLogger("eft_local.server")

_PLACES = ("body", "query", "path")
_FIELD = re.compile(r"(?!(?:str|int|float|bool|dict|list|literal)$)[a-z_]+")
"""A field's name; other parts of a place are names of types."""

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "unavailable_error"}


class ApiError(Exception):
    """A request that is not answered.

    code, param: OpenAI's word for it, and the field that is wrong. retry_after: seconds, where it may get better.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, *, ollama: bool = False) -> Response:
        """The error as an answer. ollama: in Ollama's form."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return json_response({"error": self.message} if ollama else self.body, self.status, headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer in JSON; lone surrogates, which no UTF-8 can hold, are escaped."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "backslashreplace")
    return Response(body, status, dict(headers or {}), media_type="application/json")


def api_error(error: BaseException) -> ApiError:
    """Return what a client reads of an error."""
    if isinstance(error, ApiError):
        return error
    text = " ".join(str(error).split())
    match error:
        case ContextOverflowError():
            return ApiError(400, text, code="context_length_exceeded")
        case UsageError() | ConstraintError():
            return ApiError(400, text)
        case UnicodeEncodeError():
            return ApiError(400, "a text is not valid Unicode: it holds half a surrogate pair; correct it")
        case ModelNotFoundError():
            return ApiError(404, text, code="model_not_found", param="model")
        case OutOfMemoryError():
            return ApiError(503, text)
        case Cancelled():
            return ApiError(503, "the server is ending", retry_after=5)
        case EftError():
            log.error("%s", text)
            return ApiError(500, text)
    log.error(
        "unexpected %s: %s", type(error).__name__, text, exc_info=error if log.isEnabledFor(logging.DEBUG) else None
    )
    return ApiError(500, f"unexpected {type(error).__name__} in the server")


def is_ollama(path: str) -> bool:
    """Whether a path belongs to Ollama's API."""
    return path.startswith("/api/")


def install(app: FastAPI) -> None:
    """Let every error of the app be answered in the form of the API that was called."""

    async def answer(request: Request, error: Exception) -> Response:
        return api_error(error).response(ollama=is_ollama(request.url.path))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response(ollama=is_ollama(request.url.path))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = ApiError(error.status_code, _said(request, error))
        response = found.response(ollama=is_ollama(request.url.path))
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ApiError, answer)
    app.add_exception_handler(EftError, answer)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)


def _said(request: Request, error: HTTPException) -> str:
    path = shown(request.url.path)
    if error.status_code == 404:
        return f"there is nothing at {path}; /docs lists what there is"
    if error.status_code == 405:
        return f"{path} does not take {request.method}"
    if error.status_code == 400:
        return "the body is not JSON in UTF-8 that can be read; correct it"
    return str(error.detail)


def _invalid(error: RequestValidationError) -> ApiError:
    """Return the first thing that is wrong with a body."""
    found = error.errors()
    # Of a union pydantic names every branch and what it misses: the one that got furthest is the one that was meant.
    field = next((part for part in found[0]["loc"] if part not in _PLACES), None)
    first = max((each for each in found if field in each["loc"]), key=lambda each: len(each["loc"]), default=found[0])
    place = [str(part) for part in first["loc"] if part not in _PLACES]
    param = ".".join(part for part in place if part.isdecimal() or _FIELD.fullmatch(part))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}")
    if first["type"] == "missing":
        return ApiError(400, f"{param or 'the body'} is missing", param=param or None)
    value = f" = {shown(first['input'])}" if "input" in first else ""
    return ApiError(400, f"{param or 'the body'}{value}: {first['msg']}", param=param or None)
