"""llama.Sampler: every stage against a NumPy computation that knows the keyed noise, draw for draw."""

import json

import numpy as np
import pytest

from eft_local.backends.llamacpp import Model, Sampler, noise
from eft_local.backends.llamacpp import sampler as sampler_module
from eft_local.backends.llamacpp.noise import gumbel
from eft_local.errors import EvaluationError, UsageError
from eft_local.recipe.sampling import Sampling
from tests.helpers.fake import AsciiVocabulary

N = 40
SCORES = np.random.default_rng(7).normal(0, 2, N).astype(np.float32)
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
SEEDS = range(300)
EVERY_TOP_K = (0, 40, 500)


def sampler(vocabulary=None, n_vocab: int = N, window: int = 100, **sampling) -> Sampler:
    return Sampler(vocabulary or AsciiVocabulary(), Sampling(**OFF | sampling), n_vocab, window)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max())
    return p / p.sum()


def draw(logits: np.ndarray, seed: int, position: int = 0) -> int:
    """The token that the noise chooses; −inf is never chosen."""
    return int(np.argmax(logits + gumbel(seed, position, np.arange(len(logits), dtype=np.int32))))


def masked(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    return np.where(allowed, logits, -np.inf)


def top_k(logits, k):
    return masked(logits, logits >= np.sort(logits)[-k])


def top_p(logits, p):
    order = np.argsort(-logits)
    n = int(np.searchsorted(np.cumsum(softmax(logits)[order]), p)) + 1
    return masked(logits, np.isin(np.arange(len(logits)), order[:n]))


def min_p(logits, p):
    return masked(logits, logits >= logits.max() + np.log(p))


def typical(logits, p):
    """Locally typical sampling: by distance of each token's surprise from the entropy."""
    probabilities = softmax(logits)
    surprise = -np.log(probabilities, where=probabilities > 0, out=np.full(len(logits), -np.inf))
    entropy = (probabilities * np.where(probabilities > 0, surprise, 0)).sum()
    order = np.argsort(np.where(probabilities > 0, np.abs(surprise - entropy), np.inf))
    n = int(np.searchsorted(np.cumsum(probabilities[order]), p, side="right")) + 1
    return masked(logits, np.isin(np.arange(len(logits)), order[:n]))


def xtc(logits, threshold):
    """Without the tokens above the threshold, but for the least likely of them."""
    probabilities = softmax(logits)
    above = np.flatnonzero(probabilities >= threshold)
    if len(above) < 2:
        return logits
    kept = above[np.argmin(probabilities[above])]
    return masked(logits, ~np.isin(np.arange(len(logits)), above) | (np.arange(len(logits)) == kept))


def assert_draws(options: dict, expected: np.ndarray, scores: np.ndarray = SCORES, answer=()) -> None:
    chosen = sampler(**options)
    for token in answer:
        chosen.accept(token)
    found = [chosen.pick(scores, seed, 3) for seed in SEEDS]
    assert found == [draw(expected, seed, 3) for seed in SEEDS]
    assert len(set(found)) > 1
    chosen.close()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature(temperature):
    assert_draws({"temperature": temperature}, SCORES / np.float32(temperature))


@pytest.mark.parametrize("k", [2, 7, 39])
def test_top_k(k):
    assert_draws({"top_k": k}, top_k(SCORES, k))


@pytest.mark.parametrize("p", [0.5, 0.7, 0.95])
def test_top_p(p):
    assert_draws({"top_p": p}, top_p(SCORES, p))


@pytest.mark.parametrize("p", [0.02, 0.1, 0.4])
def test_min_p(p):
    assert_draws({"min_p": p}, min_p(SCORES, p))


@pytest.mark.parametrize("p", [0.3, 0.6, 0.9])
def test_typical_p(p):
    assert_draws({"typical_p": p}, typical(SCORES, p))


def test_filters_are_applied_in_llama_cpps_order_and_temperature_last():
    expected = min_p(top_p(typical(top_k(SCORES, 12), 0.9), 0.8), 0.2)
    assert_draws(
        {"top_k": 12, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.2, "temperature": 3.0},
        expected / np.float32(3),
    )


@pytest.mark.parametrize("threshold", [0.05, 0.1])
def test_xtc(threshold):
    assert_draws({"xtc_probability": 1.0, "xtc_threshold": threshold}, xtc(SCORES, threshold))


def test_xtc_tosses_a_keyed_coin():
    chosen, always = sampler(xtc_probability=0.5), xtc(SCORES, 0.1)
    for seed in SEEDS:
        found = chosen.pick(SCORES, seed, 0)
        assert found in (draw(SCORES, seed), draw(always, seed))
        assert found == chosen.pick(SCORES, seed, 0)
    differing = [seed for seed in SEEDS if draw(SCORES, seed) != draw(always, seed)]
    applied = sum(chosen.pick(SCORES, seed, 0) == draw(always, seed) for seed in differing)
    assert 0.35 < applied / len(differing) < 0.65


ANSWER = (3, 8, 3, 21, 3, 8)


def penalised(answer, repeat=1.0, frequency=0.0, presence=0.0):
    logits = SCORES.copy()
    for token in set(answer):
        logits[token] = logits[token] * repeat if logits[token] <= 0 else logits[token] / repeat
        logits[token] -= answer.count(token) * frequency + presence
    return logits


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"repeat_penalty": 1.5}, penalised(ANSWER, repeat=1.5)),
        ({"frequency_penalty": 0.4}, penalised(ANSWER, frequency=0.4)),
        ({"presence_penalty": -2.0}, penalised(ANSWER, presence=-2.0)),
        (
            {"repeat_penalty": 0.7, "frequency_penalty": 0.5, "presence_penalty": 0.25},
            penalised(ANSWER, 0.7, 0.5, 0.25),
        ),
        ({"presence_penalty": 5.0, "repeat_last_n": 2}, penalised(ANSWER[-2:], presence=5.0)),
        ({"presence_penalty": 5.0, "repeat_last_n": 0}, SCORES),
        ({"presence_penalty": 5.0, "repeat_last_n": -1}, penalised(ANSWER, presence=5.0)),
    ],
)
def test_penalties(options, expected):
    assert_draws(options, expected, answer=ANSWER)


def test_minus_one_is_the_whole_answer():
    answer = (11, *[12] * 80)
    assert_draws({"frequency_penalty": 3.0, "repeat_last_n": -1}, penalised(answer, frequency=3.0), answer=answer)


def test_logit_bias_by_id_and_by_text():
    vocabulary = AsciiVocabulary()
    scores = np.zeros(vocabulary.n_tokens, np.float32)
    expected = scores.copy()
    expected[[5, ord("a")]] = 3.5, 2.0
    chosen = sampler(vocabulary, len(scores), logit_bias={"5": 3.5, "a": 2.0})
    assert [chosen.pick(scores, seed, 0) for seed in SEEDS] == [draw(expected, seed) for seed in SEEDS]
    best = int(SCORES.argmax())
    assert sampler(temperature=0, logit_bias={str(best): -100}).pick(SCORES, 0, 0) == np.argsort(SCORES)[-2]


@pytest.mark.parametrize(
    ("bias", "message"), [("ab", r"'ab'.*2 tokens"), ("4000", "4000"), (str(N), str(N)), ("z", "z")]
)
def test_a_bias_on_no_single_token_is_refused(bias, message):
    with pytest.raises(UsageError, match=message):
        sampler(logit_bias={bias: 1.0})


def test_greedy_is_the_argmax_and_the_lowest_id_of_a_tie():
    tied = SCORES.copy()
    tied[[30, 4, 17]] = SCORES.max() + 1
    for options in ({}, {"logit_bias": {"0": 0.0}}, {"top_k": 2, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1}):
        greedy = sampler(**options | {"temperature": 0, "xtc_probability": 1.0, "xtc_threshold": 0.0})
        assert greedy.greedy
        assert greedy.pick(tied, 1, 2) == 4
        assert greedy.pick(SCORES, 1, 2) == SCORES.argmax()


@pytest.mark.parametrize("top_k", EVERY_TOP_K)
@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("kind", ["all masked", "one NaN", "all NaN", "infinite"])
def test_scores_to_choose_nothing_from(kind, temperature, top_k):
    scores = np.zeros(1000, np.float32)
    if kind == "one NaN":
        scores[500] = np.nan
    else:
        scores[:] = {"all masked": -np.inf, "all NaN": np.nan, "infinite": np.inf}[kind]
    for options in ({}, {"logit_bias": {"3": 1.0}}, {"repeat_penalty": 1.1}):
        chosen = sampler(n_vocab=1000, temperature=temperature, top_k=top_k, **options)
        with pytest.raises(EvaluationError, match="NaN or all masked"):
            chosen.pick(scores, 0, 0)


@pytest.mark.parametrize("k", EVERY_TOP_K)
def test_masked_tokens_are_never_drawn(k):
    scores = np.full(1000, -np.inf, np.float32)
    scores[[900, 17]] = 1.0, 2.0
    chosen = sampler(n_vocab=1000, top_k=k, typical_p=0.99, top_p=0.99, min_p=0.01, temperature=50.0)
    assert {chosen.pick(scores, seed, 0) for seed in SEEDS} == {900, 17}


def test_a_draw_depends_on_seed_and_position_only():
    rows = np.random.default_rng(1).normal(0, 1, (50, N)).astype(np.float32)
    first, second = sampler(top_k=10), sampler(top_k=10)
    forwards = [first.pick(row, 9, position) for position, row in enumerate(rows)]
    backwards = [second.pick(rows[position], 9, position) for position in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [first.pick(row, 10, position) for position, row in enumerate(rows)]
    assert forwards != [first.pick(row, 9, position + 1) for position, row in enumerate(rows)]


DRAWS = 30_000
P = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.01])
# 0.1 % critical values of the χ² distribution with 6 and with 48 degrees of freedom
CHI6, CHI48 = 22.46, 84.04


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def counted(keys) -> tuple[np.ndarray, list[int]]:
    chosen, scores = sampler(n_vocab=len(P)), np.log(P).astype(np.float32)
    tokens = [chosen.pick(scores, seed, position) for seed, position in keys]
    return np.bincount(tokens, minlength=len(P)), tokens


@pytest.mark.parametrize("walk", ["seeds", "positions"])
def test_draws_follow_the_softmax_and_neighbours_are_independent(walk):
    keys = [(i, 3) if walk == "seeds" else (12345, i) for i in range(DRAWS)]
    counts, tokens = counted(keys)
    assert chi_square(counts, DRAWS * P) < CHI6
    pairs = np.zeros((len(P), len(P)))
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    likely = np.outer(P, P)
    # Pairs of rare tokens are too few for χ²: leaving cells out only lowers the sum.
    counts_enough = (DRAWS - 1) * likely >= 5
    assert chi_square(pairs[counts_enough], (DRAWS - 1) * likely[counts_enough]) < CHI48


def test_a_broken_noise_would_be_noticed(monkeypatch):
    """Uniform noise in place of Gumbel's, and noise that forgets the token, do not give the softmax."""
    keys = [(seed, 3) for seed in range(DRAWS // 3)]
    for broken in (
        lambda seed, position, ids: np.exp(-np.exp(-gumbel(seed, position, ids))),
        lambda seed, position, ids: 1.15 * gumbel(seed, position, ids),
        lambda seed, position, ids: gumbel(seed, position, 0 * ids),
    ):
        monkeypatch.setattr(sampler_module, "gumbel", broken)
        counts, _ = counted(keys)
        assert chi_square(counts, len(keys) * P) > CHI6


def test_noise_is_finite_and_takes_any_integer_as_seed():
    ids = np.arange(1000, dtype=np.int32)
    seen = [gumbel(seed, 0, ids) for seed in (0, 1, -1, 2**63 - 1, 2**64 + 1, 10**30)]
    assert np.isfinite(seen).all()
    assert len({row.tobytes() for row in seen}) == 5, "2**64 + 1 is 1: seeds have 64 bits"


def test_noise_is_finite_at_both_ends_of_the_hash():
    """Ids whose hash is all zeros and all ones: the mixing is undone to find the key that leads there."""

    def unscramble(value: int) -> int:
        for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
            original = value
            for _ in range(64 // shift):
                original = value ^ (original >> shift)
            value = original * pow(factor, -1, 2**64) % 2**64
        return value

    golden = 0x9E3779B97F4A7C15
    for target, sign in ((0, -1), (2**64 - 1, 1)):
        assert noise.scramble(unscramble(target)) == target
        # key(seed, position) = scramble(scramble(seed + golden) + (position + 1) · golden), then (token + 1) · golden.
        start = unscramble((unscramble(target) - golden) % 2**64)
        seed = (unscramble((start - golden) % 2**64) - golden) % 2**64
        found = gumbel(seed, 0, np.zeros(1, np.int32))[0]
        assert np.isfinite(found)
        assert sign * found > 3


@pytest.fixture(scope="module")
def vocabulary(ggufs):
    with Model.load(ggufs / "tuned.gguf") as model:
        yield model.vocabulary


def on(vocabulary, **sampling) -> Sampler:
    return sampler(vocabulary, vocabulary.n_tokens, **sampling)


def write(chosen: Sampler, vocabulary, seed: int, limit: int = 200) -> str:
    """Draw from scores that are random but for a liking of ends."""
    random, text = np.random.default_rng(seed), b""
    for position in range(limit):
        scores = random.normal(0, 2, vocabulary.n_tokens).astype(np.float32)
        scores[[token for token in range(vocabulary.n_tokens) if vocabulary.is_eog(token)]] += 3
        token = chosen.pick(scores, seed, position)
        chosen.accept(token)
        if vocabulary.is_eog(token):
            return text.decode()
        text += vocabulary.piece(token)
    raise AssertionError(f"no end: {text!r}")


def test_dry_charges_a_token_that_would_repeat_a_sequence(vocabulary):
    a, b, c, other = (ord(letter) - ord("!") for letter in "abcz")
    scores = np.zeros(vocabulary.n_tokens, np.float32)
    # "ab" has come before, followed by "c": a repetition of length 2 costs multiplier × base ** (2 − allowed).
    cost = 0.5 * 1.75**1
    for advantage, expected in ((cost - 0.01, other), (cost + 0.01, c)):
        greedy = on(vocabulary, temperature=0, dry_multiplier=0.5, dry_allowed_length=1)
        for token in (a, b, c, a, b):
            greedy.accept(token)
        scores[[c, other]] = 5 + advantage, 5
        assert greedy.pick(scores, 0, 0) == expected
    short = on(vocabulary, temperature=0, dry_multiplier=0.5, dry_allowed_length=1, dry_penalty_last_n=3)
    for token in (a, b, c, a, b):
        short.accept(token)
    scores[[c, other]] = 5.1, 5
    assert short.pick(scores, 0, 0) == c, "the window is too short to see the first ab"


def test_grammar(vocabulary):
    grammar = 'root ::= ("yes" | "no") " "? [0-9]+'
    texts = {write(on(vocabulary, grammar=grammar), vocabulary, seed) for seed in range(30)}
    assert len(texts) > 5
    for text in texts:
        number = text.removeprefix("yes").removeprefix("no").removeprefix(" ")
        assert text.startswith(("yes", "no"))
        assert number.isascii()
        assert number.isdigit()


def test_greedy_under_a_grammar_is_the_best_allowed_token(vocabulary):
    tokens = {letter: vocabulary.tokenize(letter, add_special=False, parse_special=False)[0] for letter in "abz"}
    scores = np.zeros(vocabulary.n_tokens, np.float32)
    scores[[tokens["z"], tokens["a"], tokens["b"]]] = 9, 3, 3
    greedy = on(vocabulary, temperature=0, grammar="root ::= [ab]")
    assert greedy.pick(scores, 0, 0) == min(tokens["a"], tokens["b"])
    assert on(vocabulary, temperature=0).pick(scores, 0, 0) == tokens["z"]


def test_json_schema(vocabulary):
    schema = {"properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    for seed in range(3):
        text = write(on(vocabulary, json_schema=json.dumps({"type": "object"} | schema)), vocabulary, seed)
        parsed = json.loads(text)
        assert list(parsed) == ["n"]
        assert type(parsed["n"]) is int


def test_a_grammar_without_a_way_on(vocabulary):
    scores = np.zeros(vocabulary.n_tokens, np.float32)
    end = next(token for token in range(vocabulary.n_tokens) if vocabulary.is_eog(token))
    chosen = on(vocabulary, grammar='root ::= "a"')
    chosen.accept(vocabulary.tokenize("a", add_special=False, parse_special=False)[0])
    assert vocabulary.is_eog(chosen.pick(scores, 0, 1))
    scores[[token for token in range(vocabulary.n_tokens) if vocabulary.is_eog(token)]] = -np.inf
    with pytest.raises(EvaluationError, match="grammar"):
        chosen.pick(scores, 0, 1)
    chosen.accept(end)


def test_accepting_what_the_grammar_forbids_raises(vocabulary):
    """llama.cpp would end the process."""
    for grammar in ('root ::= "yes"', 'root ::= "y" [0-9]'):
        chosen = on(vocabulary, grammar=grammar)
        for forbidden in (0, 262, 264):
            with pytest.raises(EvaluationError, match=f"token {forbidden} breaks the grammar"):
                chosen.accept(forbidden)
        chosen.accept(vocabulary.tokenize("y", add_special=False, parse_special=False)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"grammar": 'root ::= ( "yes" '},
        {"grammar": 'answer ::= "yes"'},
        {"grammar": "root ::= missing"},
        {"grammar": "root ::= root"},
        {"grammar": " \n"},
        {"grammar": "nonsense"},
    ],
)
def test_a_wrong_grammar_is_a_usage_error_and_the_terminal_stays_clean(vocabulary, capfd, options):
    with pytest.raises(UsageError) as caught:
        on(vocabulary, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("options", [{"grammar": 'root ::= "a"'}, {"dry_multiplier": 1.0}])
def test_what_needs_llama_cpps_vocabulary_says_so(options):
    with pytest.raises(UsageError, match="vocabulary"):
        sampler(**options)


def test_closing_twice_is_fine():
    chosen = sampler(top_k=3, repeat_penalty=1.1)
    chosen.close()
    chosen.close()
