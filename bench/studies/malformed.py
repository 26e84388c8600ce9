"""Requests that are wrong, thousands of them: none may end the server, be its fault (5xx), or harm another client.

    python -m eft_local.bench.studies.malformed [--requests 10000] [--described N] [--seed 1] [--server URL] [--json]

The hand-made ones are valid requests with something broken in them: a wrong type, a huge or no number, deep JSON, lone
surrogates, bytes that are no UTF-8, grammars and schemas that explode, prompts that are too long, half requests. With
the package schemathesis (installed by hand) half of the requests are made from the OpenAPI description. Meanwhile a
client asks for an answer again and again, which must stay what it is. --server: one that runs already, without a key.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from eft_local.bench.studies.serving import serving
from eft_local.hub.references import find_recipe

QUESTION = {"model": "demo", "messages": [{"role": "user", "content": "What is the capital of Peru?"}]}
ANSWER = "The capital of Peru is Lima."

CHAT = {
    **QUESTION, "max_tokens": 4, "n": 1, "temperature": 0.5, "top_p": 0.9, "stop": ["x"], "seed": 1, "logprobs": True,
    "top_logprobs": 2, "alpha": 1.0, "beta": 1.0, "logit_bias": {"5": 1}, "stream": False, "presence_penalty": 0.1,
    "stream_options": {"include_usage": True}, "response_format": {"type": "json_object"}, "record": True,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "auto",
}  # fmt: skip
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "demo", "prompt": "The capital of", "max_tokens": 4, "echo": True, "logprobs": 2},
    "/api/chat": {**QUESTION, "stream": False, "options": {"num_predict": 4, "temperature": 0.1}, "format": "json"},
    "/api/generate": {"model": "demo", "prompt": "Hello.", "options": {"num_predict": 4}, "raw": True},
    "/tokenize": {"content": "The capital of", "with_pieces": True},
    "/detokenize": {"tokens": [5, 6, 7]},
    "/api/show": {"model": "demo"},
}


def _deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}, "required": ["a"]}
    return value


VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 1e308, -1e308, 1e-308, 0.0, "", "x", "\x00",
    "ä\ud83d", "x" * 5000, [], {}, [[]], [None], [1, "a"], {"": 1}, {"a": None}, ["\n"] * 100, [0] * 5000, [-1],
    [2**31 - 1], [[5, 6], "mixed"], {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(a|aa)*" * 50, "type": "string"}}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": _deep(300)}},
    {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [str(i) for i in range(5000)]}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 10**9}}},
    {"type": "json_schema", "json_schema": {"schema": {"type": "array", "minItems": 10**6, "maxItems": 10**6}}},
    {"type": "json_schema", "json_schema": {"schema": {"allOf": [{"anyOf": [{"minimum": i} for i in range(40)]}] * 9}}},
    {"type": "json_schema", "json_schema": {"schema": False}},
    [{"role": "user", "content": "<|im_start|>" * 100}], [{"role": "system", "content": ""}] * 50,
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]}],
]  # fmt: skip
GRAMMARS = [
    "root ::=", "root ::= root", 'root ::= root root | "a"', 'root ::= ("a"?' * 30 + ")" * 30, "x", "🦙 ::= 🦙",
    'root ::= ("a" | "aa")*', 'root ::= "a"{1,1000000}', "root ::= [^\\x00-\\U0010FFFF]", 'root ::= "\\',
    "root ::= " + "(" * 2000 + '"a"' + ")" * 2000,
    "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(40)) + '\nr40 ::= "a"\nroot ::= r0',
    "%llguidance {}\nstart: x", "%llguidance {}\nstart: /(a{1,1000}){1,1000}/",
    "%llguidance {}\nstart: " + "(" * 500 + '"a"' + ")?" * 500,
    '%llguidance {}\nstart: %json {"type": "nothing"}',
]  # fmt: skip
RAW = [
    b"", b"{", b"null", b"[]", b'"', b"\xff" * 50, b"[" * 50_000, b'{"a":' * 50_000, b"1" * 10_000, b'{"n": NaN}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}', b"\x00", b'{"prompt": "' + b"a" * 200_000 + b'"}',
    "{}".encode("utf-16"), b'{"prompt": "x", "prompt": 1}', b'{"model": "demo", "messages": 1e999}',
]  # fmt: skip


def _copy(value: Any) -> Any:
    """Return a copy that can be spoilt; deep ones are too deep for `deepcopy`."""
    return json.loads(json.dumps(value))


def made_by_hand(luck: random.Random) -> Iterator[tuple[str, bytes]]:
    """Give paths and bodies without end."""
    while True:
        path = luck.choice(list(VALID))
        if luck.random() < 0.15:
            yield path, luck.choice(RAW)
            continue
        body = _copy(VALID[path])
        for _ in range(luck.choice([1, 1, 2])):
            key = luck.choice([*body, "grammar", "draft", "min_p", "response_format", "tools", "user"])
            body[key] = _copy(luck.choice(GRAMMARS if key == "grammar" else VALUES))
        if luck.random() < 0.2:
            _spoil(body, luck)
        text = json.dumps(body)
        if luck.random() < 0.1:
            text = text[: luck.randrange(len(text))]
        yield path, text.encode("utf-8", "surrogatepass")


def _spoil(value: Any, luck: random.Random) -> None:
    """Break something somewhere inside."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys:
        return
    key = luck.choice(keys)
    if luck.random() < 0.5 and isinstance(value[key], dict | list):
        _spoil(value[key], luck)
    else:
        value[key] = _copy(luck.choice(VALUES))


def described(url: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Give requests that schemathesis makes from the OpenAPI description, valid and not."""
    hypothesis: Any = import_module("hypothesis")
    schemathesis: Any = import_module("schemathesis")
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found: list[tuple[str, bytes]] = []
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    operations = [each.ok() for each in schema.get_all_operations()]
    posts = [each for each in operations if each.method.upper() == "POST"]
    for operation in posts:
        for mode in modes:
            examples = count // (len(posts) * len(modes)) + 1
            settings = hypothesis.settings(
                max_examples=examples, database=None, deadline=None, phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip

            def keep(case: Any) -> None:
                with suppress(TypeError, ValueError):
                    found.append((case.path, json.dumps(case.body).encode("utf-8", "surrogatepass")))

            strategy = operation.as_strategy(generation_mode=mode)
            hypothesis.seed(seed)(settings(hypothesis.given(case=strategy)(keep)))()
    yield from found[:count]


async def send(url: str, path: str, body: bytes, cut: int | None = None, key: str = "") -> int:
    """Send a request and return its status; 0 where the connection ends without one. cut: bytes of it that are sent."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        writer.write((_head(place.netloc, path, len(body), key) + body)[:cut])
        if cut is not None:
            writer.write_eof()
        async with asyncio.timeout(120):
            status = await reader.readline()
            await reader.read()
        return int(status.split()[1]) if status else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


def _head(host: str, path: str, length: int, key: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {length}", "Connection: close"]
    return "\r\n".join([*lines, *([f"Authorization: Bearer {key}"] if key else []), "", ""]).encode()


async def attack(
    url: str, requests: list[tuple[str, bytes]], luck: random.Random, width: int = 4, key: str = ""
) -> dict[str, Any]:
    """Send requests, a few at a time, beside a client whose answers must stay what they are. key: the server's."""
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    slowest = 0.0
    waiting = list(reversed(requests))
    harmed = asked = 0
    done = asyncio.Event()

    async def attacker() -> None:
        nonlocal slowest
        while waiting:
            path, body = waiting.pop()
            cut = luck.randrange(1, len(body) + 100) if luck.random() < 0.03 else None
            started = time.perf_counter()
            try:
                status = await send(url, path, body, cut, key)
            except Exception as error:
                status = -1
                faults.append(f"{type(error).__name__} {path} {body[:300]!r}")
            slowest = max(slowest, time.perf_counter() - started)
            statuses[status] += 1
            if status >= 500:
                faults.append(f"{status} {path} {body[:300]!r}")

    async def innocent() -> None:
        nonlocal harmed, asked
        while not done.is_set():
            harmed += await _answer(url, key) != ANSWER
            asked += 1
            await asyncio.sleep(0.2)

    other = asyncio.ensure_future(innocent())
    await asyncio.gather(*(attacker() for _ in range(width)))
    done.set()
    await other
    return {
        "requests": len(requests),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "slowest, s": round(slowest, 2),
        "faults": faults[:20],
        "answers of another client": asked,
        "of them harmed": harmed,
    }


async def _answer(url: str, key: str) -> str:
    place = urlsplit(url)
    body = json.dumps(QUESTION).encode()
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(_head(place.netloc, "/v1/chat/completions", len(body), key) + body)
    answer = await reader.read()
    writer.close()
    with suppress(ValueError, KeyError):
        return str(json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"])
    return answer.decode("utf-8", "replace")


def requests_of(url: str, count: int, by_description: int | None, seed: int) -> list[tuple[str, bytes]]:
    """Return so many requests, half of them (or `by_description`) from the description if schemathesis is here."""
    luck = random.Random(seed)
    found: list[tuple[str, bytes]] = []
    with suppress(ImportError):
        found = list(described(url, count // 2 if by_description is None else by_description, seed))
    source = made_by_hand(luck)
    found += [next(source) for _ in range(count - len(found))]
    luck.shuffle(found)
    return found


def main() -> None:
    """Attack and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--described", type=int, help="of them from the OpenAPI description (half)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", metavar="URL")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with ExitStack() as cleanup:
        url, process = options.server, None
        if url is None:
            recipe = find_recipe("demo").replace(threads=1)
            url, process = cleanup.enter_context(serving(recipe, 4, "--patience", "10"))
        requests = requests_of(url, options.requests, options.described, options.seed)
        found = asyncio.run(attack(url, requests, random.Random(options.seed)))
        if process is not None:
            found["memory, MB"] = round(process.memory_info().rss / 1e6)
    print(json.dumps(found, indent=2) if options.json else _text(found))
    sys.exit(bool(found["faults"] or found["of them harmed"]))


def _text(found: Mapping[str, Any]) -> str:
    return "\n".join(f"{name:<28} {value}" for name, value in found.items())


if __name__ == "__main__":
    main()
