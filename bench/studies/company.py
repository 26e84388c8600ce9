"""Is an answer the same alone, in company, after others, with drafts, after a prompt in parts? See bench/README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from eft_local.backends.llamacpp.model import Model
from eft_local.emulator import Emulator
from eft_local.engine.step import Answer
from eft_local.gguf.header import read_vocabulary
from eft_local.prompts.render import Message
from eft_local.recipe import Recipe

KINDS = {
    "three": ("", "", ""),
    "prompted": ("", '"@base"', 'instructions = "Answer like a friendly teacher, and at length."'),
    "context": ('"@base"', '"@base"', 'instructions = "Answer like a friendly teacher, and at length."'),
}
"""One model in all roles: files of their own with one prompt; an expert with instructions; the base as antiexpert."""
SEED = 7
TEMPERATURES = (0.0, 0.8)
PARALLEL = (2, 4, 8)
DRAFTS: tuple[int | str, ...] = ("auto", 1, 4, 8)
CHUNK = 16
"""Rows of one call, where prompts come in parts."""
TEXT = (
    "The river rises in the hills, passes three towns and a mill, and reaches the sea after some ninety miles. "
    "Its water drives a saw, its banks bear willows, and its fish were once the wealth of the county. "
)

Conversation = list[Message]
Ask = Callable[[Emulator, Recipe, Sequence[Conversation]], list[Answer]]


@dataclass(frozen=True)
class Comparison:
    """Answers in one circumstance beside those alone.

    exact: what the emulator says.  tokens: in all.  differ: answers with any other token.
    """

    model: str
    kind: str
    context: int
    temperature: float
    circumstance: str
    exact: str
    answers: int
    tokens: int
    differ: int


def recipe_on(path: Path, kind: str, context: int, max_tokens: int, threads: int | None = None) -> Recipe:
    """Return a recipe of one model in all roles."""
    antiexpert, expert, more = KINDS[kind]
    own = f'"{path}"'
    prompt = "chat" if read_vocabulary(path).chat_template else "plain"
    return Recipe.from_text(
        f"""
        name = "{kind}"
        context = {context}
        draft = 8
        [base]
        model = {own}
        prompt = "{prompt}"
        [antiexpert]
        model = {antiexpert or own}
        prompt = "{prompt}"
        [experts.own]
        model = {expert or own}
        prompt = "{prompt}"
        {more}
        [sampling]
        max_tokens = {max_tokens}
        """
    ).replace(threads=threads)


def questions(path: Path, count: int, longest: int) -> list[Conversation]:
    """Return questions of some 20 tokens to, with a text before them, `longest`; most are short, as people's are."""
    conversations = (
        "Tell the story of this river at length.",
        "Describe in detail who works at the saw, and how.",
        "Write a long letter about the trees that grow there.",
        "Explain step by step where the wealth of the county came from.",
    )
    words = TEXT.split() * 40
    with Model.load(path) as model:
        per_word = len(model.vocabulary.tokenize(" ".join(words), add_special=False, parse_special=False)) / len(words)
    made = []
    for number in range(count):
        length = int(longest / per_word * (number / max(1, count - 1)) ** 4)
        text = " ".join(words[number : number + length])
        made.append([Message(role="user", content=f"{text}\n\n{conversations[number % len(conversations)]}")])
    return made


def alone(loaded: Emulator, recipe: Recipe, conversations: Sequence[Conversation]) -> list[Answer]:
    """Answer each by itself, with nothing of another one in any cache: an emulator that has just been loaded."""
    answers = []
    for each in conversations:
        loaded.forget()
        answers.append(loaded.chat(each, recipe=recipe, seed=SEED))
    return answers


def after_others(loaded: Emulator, recipe: Recipe, conversations: Sequence[Conversation]) -> list[Answer]:
    return [loaded.chat(each, recipe=recipe, seed=SEED) for each in conversations]


def in_batches(parallel: int) -> Ask:
    def ask(loaded: Emulator, recipe: Recipe, conversations: Sequence[Conversation]) -> list[Answer]:
        loaded.forget()
        return loaded.chat(list(conversations), recipe=recipe, seed=SEED, parallel=parallel)

    return ask


def with_drafts(draft: int | str) -> Ask:
    return lambda loaded, recipe, conversations: after_others(loaded, recipe.replace(draft=draft), conversations)


def second_turns(firsts: Sequence[Answer], conversations: Sequence[Conversation]) -> list[Conversation]:
    return [
        [
            *each,
            Message(role="assistant", content=first.text),
            Message(role="user", content="And what else?"),
        ]
        for each, first in zip(conversations, firsts, strict=True)
    ]


CIRCUMSTANCES: dict[str, Ask] = {
    **{f"in batches of {parallel}": in_batches(parallel) for parallel in PARALLEL},
    **{f"drafts: {draft}": with_drafts(draft) for draft in DRAFTS},
}


def compare(path: Path, conversations: Sequence[Conversation], recipe: Recipe) -> Iterator[Comparison]:
    """Compare answers in each circumstance with those alone."""
    kind, context, temperature = recipe.name, recipe.context, recipe.sampling.temperature

    def compared(circumstance: str, exact: str, expected: Sequence[Answer], found: Sequence[Answer]) -> Comparison:
        pairs = list(zip(expected, found, strict=True))
        differ = sum(left.tokens != right.tokens for left, right in pairs)
        tokens = sum(len(answer.tokens) for answer in found)
        return Comparison(path.name, kind, context, temperature, circumstance, exact, len(pairs), tokens, differ)

    plain = recipe.replace(draft="off")
    with Emulator.load(recipe) as loaded:
        expected = alone(loaded, plain, conversations)
        second = second_turns(expected, conversations)
        turns = [
            [loaded.chat(conversation, recipe=plain, seed=SEED) for conversation in (first, first, second)]
            for first, second in zip(conversations, second, strict=True)
        ]
        others, again, continued = ([three[turn] for three in turns] for turn in range(3))
        yield compared("after others", loaded.exact, expected, others)
        yield compared("regenerated", loaded.exact, expected, again)
        yield compared("second turns, continued", loaded.exact, alone(loaded, plain, second), continued)
        for circumstance, ask in CIRCUMSTANCES.items():
            yield compared(circumstance, loaded.exact, expected, ask(loaded, plain, conversations))
        if kind == "three":
            found = [loaded.chat(each, target="own", recipe=plain, seed=SEED) for each in conversations]
            yield compared("the expert alone", loaded.exact, expected, found)
    with Emulator.load(recipe.replace(batch=CHUNK, ubatch=CHUNK)) as loaded:
        yield compared("prompts in parts", loaded.exact, expected, after_others(loaded, recipe, conversations))


def measure(
    paths: Sequence[Path],
    kinds: Sequence[str],
    contexts: Sequence[int],
    count: int,
    max_tokens: int,
    threads: int | None,
) -> Iterator[Comparison]:
    """Compare greedy answers, and for a quarter of the questions drawn ones."""
    for path in paths:
        for kind in kinds:
            for context in contexts:
                # Two turns, their answers, and an expert's instructions must fit.
                conversations = questions(path, count, min(1500, context - 2 * max_tokens - 180))
                recipe = recipe_on(path, kind, context, max_tokens, threads)
                for temperature in TEMPERATURES:
                    some = conversations if temperature == 0 else list(islice(conversations, 0, None, 4))
                    yield from compare(path, some, recipe.replace(temperature=temperature))
