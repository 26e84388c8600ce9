"""TextStream: whatever the pieces, the text is the same."""

from itertools import pairwise

from hypothesis import assume, example, given
from hypothesis import strategies as st

from eft_local.engine.text import TextStream

# Few letters, so that stop strings occur; of one to four bytes each.
LETTERS = st.text("abé漢🦙\n", max_size=12)
STOPS = st.lists(st.text("abé漢🦙\n", min_size=1, max_size=4), max_size=4)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def written(stream: TextStream, parts: list[bytes]) -> tuple[list[str], bool]:
    shown = []
    for part in parts:
        shown.append(stream.push(part))
        if stream.stopped:
            break
    return [*shown, stream.flush()], stream.stopped


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Reading letter by letter, the first stop string that is complete ends the text (the longer one of two)."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(LETTERS, STOPS, st.lists(st.integers(0, 50), max_size=12))
@example("xabyz", ["ab", "xabyz"], [])
@example("aab", ["ab"], [1, 2])
@example("🦙", ["🦙"], [1, 2, 3])
def test_any_split_gives_the_same_text(text, stops, cuts):
    shown, stopped = written(TextStream(stops), pieces(text.encode(), cuts))
    assert ("".join(shown), stopped) == expected(text, stops)


@given(LETTERS, st.lists(st.integers(0, 50), max_size=12))
def test_without_stop_strings_every_character_is_shown_as_soon_as_it_is_whole(text, cuts):
    stream, seen, sent = TextStream(), "", b""
    for piece in pieces(text.encode(), cuts):
        seen, sent = seen + stream.push(piece), sent + piece
        assert seen == sent.decode("utf-8", "ignore")
    assert stream.flush() == ""


@given(LETTERS, STOPS, st.lists(st.integers(0, 50), max_size=12))
def test_nothing_is_shown_that_is_taken_back_and_nothing_is_held_without_reason(text, stops, cuts):
    stream, seen, sent = TextStream(stops), "", b""
    final, _ = expected(text, stops)
    for piece in pieces(text.encode(), cuts):
        seen, sent = seen + stream.push(piece), sent + piece
        assert final.startswith(seen)
        if stream.stopped:
            break
        held = sent.decode("utf-8", "ignore")[len(seen) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@given(st.binary(max_size=12), st.lists(st.integers(0, 50), max_size=12))
def test_any_bytes_give_the_same_text(data, cuts):
    whole, _ = written(TextStream(), [data])
    assert "".join(written(TextStream(), pieces(data, cuts))[0]) == "".join(whole)


@given(LETTERS, LETTERS, STOPS, st.lists(st.integers(0, 50), max_size=12))
@example("a", "b", ["ab"], [])
@example("xa", "ac", ["ab", "aac"], [1])
def test_after_a_prefix_the_rest_is_what_it_would_have_been(prefix, text, stops, cuts):
    whole, stopped = expected(prefix + text, stops)
    assume(not expected(prefix, stops)[1])  # the prefix had ended the answer already
    shown, found = written(TextStream(stops, prefix.encode()), pieces(text.encode(), cuts))
    assert found == stopped
    # A stop string that began in the prefix ends the answer with nothing; the prefix itself is not shown again.
    assert "".join(shown) == whole[len(prefix) :]


def test_a_prefix_may_end_within_a_character():
    stream = TextStream((), "é漢".encode()[:-1])
    assert stream.push("漢".encode()[-1:] + b"a") == "漢a"


def test_half_a_character_at_the_end_is_left_out():
    stream = TextStream(("stop",))
    assert stream.push(b"a\xf0\x9f") == "a"
    assert stream.flush() == ""


def test_nothing_follows_a_stop_string():
    stream = TextStream(("\n\n",))
    assert stream.push(b"one\n") == "one"
    assert not stream.stopped
    assert stream.push(b"\ntwo") == ""
    assert stream.stopped
    assert stream.flush() == ""
