"""Who may use the server, what it takes, and what it says while it loads: the app alone, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from eft_local.recipe import Recipe
from eft_local.server.app import create_app
from eft_local.server.service import Service
from eft_local.server.settings import Settings

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def calling(recipe: Recipe, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Call the app of a service that is still loading."""
    made = Settings(**settings)
    transport = httpx.ASGITransport(create_app(Service([recipe], made), made))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
        yield client


async def test_while_models_are_loaded_clients_wait(recipe: Recipe) -> None:
    async with calling(recipe) as client:
        for path, body in (
            ("/health", None),
            ("/v1/models", None),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
            ("/api/tags", None),
        ):
            answer = await (client.get(path) if body is None else client.post(path, json=body))
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
        assert (await client.get("/api/version")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_keys_open_everything_but_health(recipe: Recipe) -> None:
    async with calling(recipe, keys=("one", "zwei ü")) as client:
        assert (await client.get("/health")).status_code == 503
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/none"):
            answer = await client.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "authentication_error"
        for headers in (
            {"authorization": "Bearer one"},
            {"x-api-key": "one"},
            {"authorization": "bearer zwei ü".encode()},
        ):
            assert (await client.get("/docs", headers=headers)).status_code == 200
        for wrong in ("Bearer on", "Bearer one2", "Basic one", "Bearer", "Bearer \xff"):
            assert (await client.get("/docs", headers={"authorization": wrong.encode("latin-1")})).status_code == 401


async def test_pages_of_other_origins_may_not_use_it(recipe: Recipe) -> None:
    evil = {"origin": "https://evil.example"}
    async with calling(recipe) as client:
        assert (await client.get("/v1/models", headers=evil)).status_code == 403
        assert (await client.get("/v1/models", headers={"origin": "null"})).status_code == 403
        assert (await client.post("/api/generate", content="{}", headers=evil)).status_code == 403
        assert (await client.get("/docs", headers={"origin": "http://localhost:8080"})).status_code == 200
    async with calling(recipe, origins=("https://good.example",)) as client:
        assert (await client.get("/docs", headers=evil)).status_code == 403
        asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
        allowed = await client.options("/v1/chat/completions", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://good.example"


async def test_names_that_lead_here_by_fraud_are_refused(recipe: Recipe) -> None:
    async with calling(recipe) as client:
        for host, status in (
            ("127.0.0.1:8080", 200), ("localhost", 200), ("[::1]:80", 200), ("[::1]", 200),
            ("evil.example:8080", 403), ("", 403),
        ):  # fmt: skip
            assert (await client.get("/docs", headers={"host": host})).status_code == status, host
    async with calling(recipe, hosts=("*",)) as client:
        assert (await client.get("/docs", headers={"host": "any.example"})).status_code == 200


async def test_bodies_are_bounded(recipe: Recipe) -> None:
    async with calling(recipe, body=100, patience=0.2) as client:
        large = await client.post("/v1/completions", content=b"x" * 101)
        assert large.status_code == 413
        assert large.headers["connection"] == "close"

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b"x" * 10

        assert (await client.post("/v1/completions", content=parts())).status_code == 413
        huge = await client.post("/v1/completions", content=b"", headers={"content-length": "9" * 400})
        assert huge.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"messages": "\xff"}', b"[" * 100_000,
        b'{"a":' * 100_000, b"9" * 10_000, b'{"messages": ' + b"9" * 5_000 + b"}", b'{"n": NaN}', b'{"n": 1e999}',
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b'{"model": "\\ud800", "messages": []}',
    ],
)  # fmt: skip
async def test_bodies_that_are_no_requests_are_refused(recipe: Recipe, body: bytes) -> None:
    async with calling(recipe) as client:
        for path in (
            "/v1/chat/completions",
            "/v1/completions",
            "/api/chat",
            "/api/generate",
            "/tokenize",
            "/detokenize",
        ):
            answer = await client.post(path, content=body)
            assert answer.status_code in (400, 503), (path, answer.text)  # 503: it is a request, of models being loaded
            assert answer.json()["error"]


async def test_unknown_paths_and_methods_are_answered_in_form(recipe: Recipe) -> None:
    async with calling(recipe) as client:
        for answer in (
            await client.get("/v1/nothing"),
            await client.get("/v1/chat/completions"),
            await client.put("/health"),
        ):
            assert answer.status_code in (404, 405)
            assert answer.json()["error"]["message"]
        assert isinstance((await client.get("/api/nothing")).json()["error"], str)
