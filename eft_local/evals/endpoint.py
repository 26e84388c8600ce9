"""Models behind an OpenAI-compatible endpoint, as targets and as judges.

The key is taken from the environment: EFT_API_KEY, or OPENAI_API_KEY.
"""

from __future__ import annotations

import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from eft_local.errors import Cancelled, EvaluationError, UsageError, shown
from eft_local.evals.answering import Answered, Done, Prompt, Scored, Writing
from eft_local.prompts.task import TaskPrompt

_BUSY = (408, 409, 429, 500, 502, 503, 504)
_TRIES = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds
_MOST_STOPS = 4  # stop texts that OpenAI's own endpoint takes; the text is cut at the others here
_NAMED = re.compile(r"(?:(?P<model>[^=]+)=)?(?P<url>https?://\S+)")


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint's base URL, and the model that answers there; None for the only one that it serves."""

    url: str
    model: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """Read "URL" or "MODEL=URL"; None for a text that names no endpoint. Raises: UsageError."""
        found = _NAMED.fullmatch(text.strip())
        if found is None:
            if "://" in text:
                raise UsageError(f"{shown(text)} is no endpoint; give http://HOST:PORT/v1 or MODEL=URL")
            return None
        url = found["url"].rstrip("/")
        if not urlsplit(url).hostname:
            raise UsageError(f"{shown(text)} names no host; give http://HOST:PORT/v1 or MODEL=URL")
        return cls(url, found["model"])


class Endpoint:
    """Asks an endpoint, side by side; what is busy or broken for a moment is tried again."""

    def __init__(self, address: Address, *, parallel: int = 8, timeout: float = 600.0) -> None:
        """timeout: seconds for one answer."""
        self.address = address
        self._parallel = parallel
        self._timeout = timeout
        self._stopped = threading.Event()
        self._model = address.model

    @property
    def model(self) -> str:
        """The model that answers. Raises: UsageError where the endpoint serves several and none was named."""
        if self._model is None:
            served = [str(each["id"]) for each in self._ask("models").get("data", [])]
            if len(served) != 1:
                listed = ", ".join(served) or "none"
                raise UsageError(f"{self.address.url} serves {listed}; name one, as MODEL={self.address.url}")
            self._model = served[0]
        return self._model

    def cancel(self) -> None:
        """Ask nothing more; callable from any thread."""
        self._stopped.set()

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what continues a text: the first choice of /completions. Raises: EvaluationError, Cancelled."""
        return self._choice("completions", body)

    def chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a conversation: the first choice of /chat/completions."""
        return self._choice("chat/completions", body)

    def each(self, ask: Callable[[Any], Any], questions: Sequence[Any], done: Done) -> None:
        """Call `ask` with each question, several at a time, and `done` with its place and what came of it."""
        with ThreadPoolExecutor(self._parallel) as pool:
            places = {pool.submit(ask, each): place for place, each in enumerate(questions)}
            try:
                for future in as_completed(places):
                    done(places[future], future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _choice(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._ask(path, {"model": self.model, **body})
        try:
            choice: dict[str, Any] = answer["choices"][0]
        except (KeyError, IndexError, TypeError):
            raise EvaluationError(f"{self.address.url}/{path} gave no choices: {shown(answer)}") from None
        return choice

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self.address.url}/{path}"
        reason = ""
        for number in range(_TRIES):
            if self._stopped.is_set():
                raise Cancelled("stopped while an endpoint was answering")
            try:
                return self._once(url, body)
            except urllib.error.HTTPError as error:
                reason = _reason(error)
                if error.code not in _BUSY:
                    raise EvaluationError(f"{url} refused with {error.code}: {reason}") from None
                wait = error.headers.get("Retry-After", "")
            except (OSError, ValueError) as error:  # no connection, or no JSON
                reason, wait = str(getattr(error, "reason", error)), ""
            if number + 1 < _TRIES:
                pause = float(wait) if wait.isdecimal() else _FIRST_PAUSE * 2.0**number
                self._stopped.wait(min(pause, _LONGEST_PAUSE))
        raise EvaluationError(f"{url} did not answer in {_TRIES} tries: {reason}")

    def _once(self, url: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        key = os.environ.get("EFT_API_KEY") or os.environ.get("OPENAI_API_KEY")
        request = urllib.request.Request(
            url,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        )
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            answer = json.load(response)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object")
        return answer


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what an endpoint says of its refusal."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        body = json.loads(error.read())
        said = body.get("error", body)
        return str(said.get("message", said) if isinstance(said, dict) else said)[:200]
    return str(error.reason)


class RemoteTarget:
    """A model behind an endpoint as a target. It reads a task's text; likelihood needs `echo` with `logprobs` there."""

    alone = True

    def __init__(self, endpoint: Endpoint) -> None:
        """Raises: UsageError where the model is not clear, EvaluationError where the endpoint does not answer."""
        self._endpoint = endpoint
        self.name = endpoint.model

    @property
    def conditions(self) -> Mapping[str, Any]:
        """The address and the model; what stands behind them nobody can know."""
        return {"url": self._endpoint.address.url, "model": self.name}

    def score(self, questions: Sequence[tuple[Prompt, str]], done: Done) -> None:
        """Score continuations by what the endpoint says of an echoed text."""
        self._endpoint.each(lambda pair: self._score(_text(pair[0]), pair[1]), questions, done)

    def score_whole(self, texts: Sequence[str], done: Done) -> None:
        """Score whole texts; the first token, which nothing stands before, counts where the endpoint scores it."""
        self._endpoint.each(lambda text: self._score("", text), texts, done)

    def write(self, questions: Sequence[Writing], done: Done) -> None:
        """Write answers. Banned words may appear in them: which tokens they are, only the endpoint knows."""
        self._endpoint.each(self._write, questions, done)

    def _write(self, writing: Writing) -> Answered:
        sampling = writing.sampling
        body = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": writing.seed,
            **({"stop": list(sampling.stop[:_MOST_STOPS])} if sampling.stop else {}),
        }
        if isinstance(writing.prompt, TaskPrompt) and writing.prompt.text is None:
            choice = self._endpoint.chat({**body, "messages": [dict(each) for each in writing.prompt.messages]})
            text = choice.get("message", {}).get("content")
        else:
            choice = self._endpoint.complete({**body, "prompt": _text(writing.prompt)})
            text = choice.get("text")
        if not isinstance(text, str):
            raise EvaluationError(f"{self.name} gave no text: {shown(choice)}")
        return Answered(_before(text, sampling.stop), str(choice.get("finish_reason")), 0)

    def _score(self, before: str, text: str) -> Scored:
        choice = self._endpoint.complete(
            {"prompt": before + text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        )
        try:
            scored = choice["logprobs"]
            columns = [scored[name] for name in ("text_offset", "tokens", "token_logprobs", "top_logprobs")]
            rows = list(zip(*columns, strict=True))
            inside = [
                (logprob, top)
                for offset, token, logprob, top in rows
                if offset + len(token) > len(before) and offset < len(before) + len(text) and logprob is not None
            ]
            logprob = sum(float(each) for each, _ in inside)
            greedy = all(not top or each >= max(top.values()) for each, top in inside)
        except (KeyError, TypeError, ValueError):
            inside = []
        if not inside:
            raise UsageError(
                f"{self.name} does not score the text it is given (echo with logprobs); run tasks that write answers"
            )
        return Scored(logprob, greedy)


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    if prompt.text is None:
        raise UsageError("a conversation cannot be scored at an endpoint; leave --chat-template out")
    return prompt.text


def _before(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first stop text: some endpoints leave it there."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]
