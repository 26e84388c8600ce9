"""Answers are kept as they come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eft_local.errors import OutputError
from eft_local.evals.kept import Kept, key_of


def test_what_was_kept_is_there_again(tmp_path: Path):
    path = tmp_path / "new" / "answers.jsonl"
    with Kept(path) as kept:
        kept.put("a", ["text\n", "stop", 3], {"target": "eft"})
        assert json.loads(path.read_text(encoding="utf-8")) == {
            "key": "a",
            "target": "eft",
            "result": ["text\n", "stop", 3],
        }
    with Kept(path) as kept:
        assert len(kept) == 1
        assert kept.get("a") == ["text\n", "stop", 3]
        assert kept.get("b") is None


def test_a_line_that_a_crash_cut_is_dropped_and_the_rest_stays(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with Kept(path) as kept:
        kept.put("a", [1.0, True], {})
    with path.open("ab") as file:
        file.write(b'{"key": "b", "resu')
    with Kept(path) as kept:
        assert kept.get("b") is None
        kept.put("c", [2.0, False], {})
    with Kept(path) as kept:
        assert (kept.get("a"), kept.get("c"), len(kept)) == ([1.0, True], [2.0, False], 2)


def test_only_what_is_missing_is_asked_for(tmp_path: Path):
    asked: list[list[int]] = []

    def ask(places, done):
        asked.append(places)
        for at, place in enumerate(places):
            done(at, [place])

    counted: list[int] = []
    with Kept(tmp_path / "a.jsonl") as kept:
        kept.put("b", ["kept"], {})
        made = kept.through(["a", "b", "c", "a"], lambda place: {}, ask, lambda: counted.append(1))
        assert made == [[3], ["kept"], [2], [3]], "equal questions once"
    assert asked == [[3, 2]]
    assert len(counted) == 4


def test_nothing_is_kept_without_a_path():
    kept = Kept()
    kept.put("a", [1], {})
    assert kept.get("a") == [1]


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path):
    with pytest.raises(OutputError, match="cannot keep answers in"):
        Kept(tmp_path)


def test_keys_are_equal_for_equal_questions():
    assert key_of({"a": 1, "b": [2]}, "x") == key_of({"b": [2], "a": 1}, "x") != key_of({"a": 1}, "x")
