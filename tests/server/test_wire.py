"""What goes over the wire: events as `curl -N` sees them, broken requests, slow ones, and the server's end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.server.conftest import KEY, Served, serving, until

CHAT = {"model": "demo:base", "messages": [{"role": "user", "content": "Tell me about Peru."}], "stream": True}


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as connection:
        yield connection


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    found = b""
    while part := connection.recv(65536):
        found += part
    return found


def test_events_come_as_curl_reads_them(served: Served) -> None:
    with (
        served.http() as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"max_tokens": 5}) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in answer.headers
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert events[-1]["timings"]["predicted_n"] == 5
    assert set(events[-1]["timings"]["roles"]) == {"base"}


def test_ollamas_lines_are_json(served: Served) -> None:
    with served.http() as client:
        answer = client.post("/api/generate", content='{"model": "demo", "prompt": "What is the capital of Peru?"}')
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["done"] for line in answer.text.splitlines()][-1] is True


def test_an_error_in_a_stream_comes_before_it(served: Served) -> None:
    with served.http() as client:
        answer = client.post("/v1/chat/completions", json=CHAT | {"logit_bias": {"99999": 1}})
    assert answer.status_code == 400
    assert "99999" in answer.json()["error"]["message"]


NO_HTTP = {
    "no words of it": b"nonsense\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "a wrong chunk": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a negative length": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
    "a huge header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_what_is_no_http_is_answered(served: Served, kind: str) -> None:
    status = b""
    with connected(served) as connection, suppress(OSError):  # what is not read resets the connection
        connection.sendall(NO_HTTP[kind])
        connection.shutdown(socket.SHUT_WR)
        status = received(connection).split(b"\r\n")[0]
    assert not status or b" 4" in status, status[:80]


def test_heads_and_bodies_that_never_end_are_given_up(served: Served) -> None:
    half = [
        b"POST /v1/chat/comp",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX",
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        'Content-Length: 100\r\n\r\n{"prompt'.encode(),
    ]
    with ExitStack() as cleanup:
        connections = [cleanup.enter_context(connected(served)) for _ in half]
        for connection, head in zip(connections, half, strict=True):
            connection.sendall(head)
        answers = [received(connection) for connection in connections]
    assert answers[:2] == [b"", b""]
    assert answers[2].startswith(b"HTTP/1.1 408")


def test_a_reader_that_stalls_is_given_up_and_harms_nobody(served: Served) -> None:
    body = json.dumps(CHAT | {"n": 2, "max_tokens": 480, "logprobs": True, "top_logprobs": 50, "record": True}).encode()
    with connected(served) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "
            + KEY.encode()
            + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        stalled.recv(100)
        with served.openai() as other:
            answer = other.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello."}])  # type: ignore[typeddict-item]
        assert answer.choices[0].message.content
        until(lambda: served.metric("eft_running") == 0)


def test_running_answers_are_completed_at_the_end(recipes: dict[str, Path], tmp_path: Path) -> None:
    with (
        serving(tmp_path, "-r", str(recipes["demo"])) as running,
        running.http() as client,
        client.stream("POST", "/v1/chat/completions", json=CHAT | {"max_tokens": 300}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        running.process.send_signal(signal.SIGTERM)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert running.process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--host", "0.0.0.0"], 2, "--allow-anyone"),
        (["-r", "no-such"], 2, "no-such"),
        (["-r", "demo", "-r", "demo"], 2, "two of the recipes"),
        (["--api-key-file", "/nowhere"], 2, "/nowhere"),
        (["-r", "qwen3-laptop"], 3, "eft pull"),
    ],
)
def test_what_cannot_be_served_is_said(arguments: list[str], code: int, says: str) -> None:
    command = [sys.executable, "-m", "eft_local", "serve", "--port", "0", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | {"EFT_API_KEY": ""})
    assert ran.returncode == code
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not ran.stdout


def test_a_port_that_is_taken_is_said(served: Served) -> None:
    port = urlsplit(served.url).port
    command = [sys.executable, "-m", "eft_local", "serve", "--port", str(port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert f"port {port}" in ran.stderr


def test_a_server_without_a_key_is_open_on_this_machine_alone(recipes: dict[str, Path], tmp_path: Path) -> None:
    with serving(tmp_path, "-r", str(recipes["demo"]), EFT_API_KEY="") as running:
        assert httpx.get(f"{running.url}/v1/models").status_code == 200
        assert httpx.get(f"{running.url}/v1/models", headers={"host": "evil.example"}).status_code == 403
