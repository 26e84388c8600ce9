"""What serving costs: clients of `eft serve` beside answers of this process, and a long day of clients who come and go.

    python -m eft_local.bench.studies.serving [--recipe NAME|FILE] [--shape 7b] [--plain] [--clients 8] [--tokens 300]
        [--rounds 3] [--beside] [--soak SECONDS] [--visitors 200] [--json]

A round measures, one after the other: `generate` with one prompt and with eight, without a server; one streaming client
and eight; the time to the first token of a short request beside seven long answers, in rounds of the engine (the time
between two tokens of the others). Answers cannot end by themselves: end tokens are forbidden, also without a server.
--beside: the same clients on a real llama-server (package xllamacpp, installed by hand) with the recipe's base alone,
and on `RECIPE:base` here.
--soak: visitors connect, read, stall, leave and retry at random, and what is left afterwards is looked at; every answer
that was read to its end is compared with the one that it gets alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import psutil

from eft_local.bench.shapes import scaled_recipe
from eft_local.bench.studies.samples import spread
from eft_local.emulator import Emulator
from eft_local.hub.references import find_recipe, model_of
from eft_local.recipe import Recipe

PLACES = ("Peru", "Japan", "Kenya", "France", "Chile", "Norway", "Oman", "Cuba")
PROMPTS = [f"Tell me about {place}." for place in PLACES]
SHORT = "Hello."


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--shape", help="the recipe's models scaled to this shape")
    parser.add_argument("--plain", action="store_true", help="without drafts")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--soak", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--visitors", type=int, default=200)
    parser.add_argument("--llama-server", metavar="FILE", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.llama_server:
        _be_llama_server(options.llama_server, options.clients, options.threads)
        return
    recipe = find_recipe(options.recipe)
    if options.shape:
        recipe = scaled_recipe(recipe, options.shape)
    if options.plain:
        recipe = recipe.replace(draft="off")
    if options.threads:
        recipe = recipe.replace(threads=options.threads)
    found: dict[str, Any] = {"recipe": recipe.name, "clients": options.clients, "tokens": options.tokens}
    if options.rounds:
        found["speed"] = speed(recipe, options)
    if options.soak:
        found["soak"] = soak(recipe, options.soak, options.visitors)
    print(json.dumps(found, indent=2) if options.json else _text(found))


# Clients


@dataclass
class Heard:
    """What a client saw. times: of each token, seconds of `perf_counter`; status: 0 if it left before there was one."""

    status: int = 0
    text: str = ""
    times: list[float] = field(default_factory=list)
    complete: bool = False


async def listen(url: str, body: Mapping[str, Any], leave: float | None = None, stall: float = 0.0) -> Heard:
    """Send a chat or completion and read its stream. leave: seconds after which the client is gone."""
    place, heard = urlsplit(url), Heard()
    data = json.dumps({**body, "stream": True}).encode()
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        async with asyncio.timeout(leave):
            await _read(reader, heard, stall)
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
    return heard


async def _read(reader: asyncio.StreamReader, heard: Heard, stall: float) -> None:
    heard.status = int((await reader.readline()).split()[1])
    while line := await reader.readline():
        if line == b"data: [DONE]\n":
            heard.complete = True
            return
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        choice = event["choices"][0] if event.get("choices") else {}
        text = choice.get("text") or choice.get("delta", {}).get("content")
        if text:
            heard.times.append(time.perf_counter())
            heard.text += text
            if stall:
                await asyncio.sleep(stall)
                stall = 0.0


def _long(model: str, prompt: str, tokens: int, ends: Sequence[int]) -> dict[str, Any]:
    bias = {str(token): -100.0 for token in ends}
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "logit_bias": bias, "temperature": 0}


# Speed


def speed(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second of all ways, and first tokens, over some rounds."""
    clients, tokens = options.clients, options.tokens
    samples: dict[str, list[float]] = {}
    with Emulator.load(recipe) as emulator, serving(recipe, clients) as (url, _):
        ends = list(emulator.models.roles["base"].vocabulary.ends())
        plain = recipe.replace(logit_bias={str(token): -100.0 for token in ends}, temperature=0)
        prompts = (PROMPTS * clients)[:clients]
        for number in range(options.rounds + 1):  # the first warms everything up
            made = {
                "generate, one": _generate(emulator, prompts[:1], plain, tokens),
                "generate, all": _generate(emulator, prompts, plain, tokens),
                **asyncio.run(_clients(url, recipe.name, prompts, tokens, ends)),
            }
            for name, value in made.items():
                if number:
                    samples.setdefault(name, []).append(value)
        if options.beside:
            with llama_server(recipe, clients) as other:
                places = {"llama-server": (other, "x"), "here, base alone": (url, f"{recipe.name}:base")}
                for number in range(options.rounds + 1):
                    for name, (place, model) in places.items():
                        made = asyncio.run(_clients(place, model, prompts, tokens, ends))
                        for what, value in made.items():
                            if number:
                                samples.setdefault(f"{name}: {what}", []).append(value)
    found = {name: spread(values) for name, values in samples.items()}
    ratios = [s / g for s, g in zip(samples["served, all"], samples["generate, all"], strict=True)]
    doubled = [s / g for s, g in zip(samples["served, all"], samples["served, one"], strict=True)]
    return {**found, "served / generate, all": spread(ratios), "served, all / one": spread(doubled)}


def _generate(emulator: Emulator, prompts: Sequence[str], recipe: Recipe, tokens: int) -> float:
    started = time.perf_counter()
    answers = emulator.generate(list(prompts), recipe=recipe, max_tokens=tokens)
    return sum(len(answer.tokens) for answer in answers) / (time.perf_counter() - started)


async def _clients(url: str, model: str, prompts: Sequence[str], tokens: int, ends: Sequence[int]) -> dict[str, float]:
    """Return the speed of one streaming client and of all, and a newcomer's first token beside all but one."""
    found = {}
    for name, asked in (("served, one", prompts[:1]), ("served, all", prompts)):
        started = time.perf_counter()
        heard = await asyncio.gather(*(listen(url, _long(model, prompt, tokens, ends)) for prompt in asked))
        found[name] = sum(len(each.times) for each in heard) / (time.perf_counter() - started)
    running = [asyncio.ensure_future(listen(url, _long(model, prompt, tokens, ends))) for prompt in prompts[1:]]
    await asyncio.sleep(0.4 * tokens / found["served, all"] * len(prompts))
    sent = time.perf_counter()
    newcomer = await listen(url, _long(model, SHORT, 2, ends))
    others = await asyncio.gather(*running)
    first = newcomer.times[0] - sent
    # Tokens that a draft gave come together: a round is from one moment with tokens to the next.
    gaps = [gap for each in others for gap in _gaps([at for at in each.times if sent - 0.5 < at < sent + first + 0.5])]
    found["first token, ms"] = 1000 * first
    found["first token, rounds"] = first / statistics.median(gaps) if gaps else float("nan")
    return found


def _gaps(times: Sequence[float]) -> Iterator[float]:
    for before, after in pairwise(times):
        if after - before > 0.0005:
            yield after - before


# A long day


def soak(recipe: Recipe, seconds: float, visitors: int) -> dict[str, Any]:
    """Return what is left after visitors who come and go at random."""
    with Emulator.load(recipe) as emulator:
        alone = {prompt: emulator.chat(prompt, max_tokens=60).text for prompt in PROMPTS}
    with serving(recipe, 8, "--queue", "64", "--patience", "5") as (url, process):
        memory: list[float] = []
        seen: list[tuple[str, Heard]] = []
        for _ in range(10):
            seen += asyncio.run(_visits(url, recipe.name, seconds / 10, visitors))
            time.sleep(1.0)
            memory.append(process.memory_info().rss / 1e6)
        figures = asyncio.run(_figures(url))
    complete = [(prompt, heard) for prompt, heard in seen if heard.complete and heard.status == 200]
    return {
        "requests": len(seen),
        "complete": len(complete),
        "busy (429)": sum(heard.status == 429 for _, heard in seen),
        "server errors": sum(heard.status >= 500 for _, heard in seen),
        "other than alone": sum(heard.text != alone[prompt] for prompt, heard in complete),
        "running, waiting, tokens in use": figures,
        "memory after each tenth, MB": [round(each, 1) for each in memory],
        "memory, change from the first tenth to the last": memory[-1] / memory[0] - 1,
    }


async def _visits(url: str, model: str, seconds: float, visitors: int) -> list[tuple[str, Heard]]:
    seen: list[tuple[str, Heard]] = []
    end, luck = time.monotonic() + seconds, random.Random()

    async def visitor() -> None:
        while time.monotonic() < end:
            prompt = luck.choice(PROMPTS)
            body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 60}
            leave = luck.choice([None, None, luck.uniform(0, 0.05), luck.uniform(0, 0.5)])
            heard = await listen(url, body, leave, stall=luck.choice([0.0, 0.0, luck.uniform(0, 1)]))
            seen.append((prompt, heard))
            await asyncio.sleep(luck.expovariate(2.0) if heard.status != 429 else luck.uniform(0.5, 1.5))

    await asyncio.gather(*(visitor() for _ in range(visitors)))
    return seen


async def _figures(url: str) -> list[float]:
    """Return what the server says is running, waiting, and held by answers."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode())
    text = (await reader.read()).decode()
    writer.close()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if " " in line and not line.startswith("#"))
    return [float(v) for k, v in lines.items() if k.startswith(("eft_running", "eft_waiting")) or 'of="answers"' in k]


# Servers


@contextmanager
def serving(recipe: Recipe, parallel: int, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run `eft serve` with a recipe; give its address and its process."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{recipe.name}.toml"
        file.write_text(recipe.to_toml(), encoding="utf-8")
        command = [sys.executable, "-m", "eft_local", "serve", "-r", str(file), "--port", "0"]
        command += ["--parallel", str(parallel), *options]
        environment = os.environ | {"EFT_API_KEY": ""}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            try:
                address = process.stdout.readline().strip()
                if not address:  # it has said why on stderr
                    raise SystemExit(process.wait())
                yield address.removesuffix("/v1"), psutil.Process(process.pid)
            finally:
                process.terminate()


@contextmanager
def llama_server(recipe: Recipe, parallel: int) -> Iterator[str]:
    """Run a llama-server with a recipe's base; give its address."""
    threads = recipe.placement.threads or psutil.cpu_count(logical=False) or 1
    command = [sys.executable, "-m", "eft_local.bench.studies.serving", "--threads", str(threads)]
    command += ["--clients", str(parallel), "--llama-server", str(model_of(recipe, recipe.base))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            address = next((line.split()[1] for line in process.stdout if line.startswith("address ")), None)
            if address is None:
                raise SystemExit("no llama-server: install xllamacpp beside eft-local")
            yield address
        finally:
            process.terminate()


def _be_llama_server(file: str, parallel: int, threads: int) -> None:
    xllamacpp: Any = import_module("xllamacpp")  # not installed with the package

    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx = 512 * parallel
    parameters.n_parallel = parallel
    parameters.cpuparams.n_threads = threads
    parameters.port = 0
    server = xllamacpp.Server(parameters)
    print("address", server.listening_address, flush=True)
    sys.stdin.read()


def _text(found: Mapping[str, Any]) -> str:
    lines = [f"{found['recipe']}: {found['clients']} clients, {found['tokens']} tokens each"]
    for name, value in found.get("speed", {}).items():
        lines.append(f"{name:<40} {value}")
    for name, value in found.get("soak", {}).items():
        lines.append(f"{name:<40} {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
