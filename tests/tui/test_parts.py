"""The app's parts that need no screen: config, presets, footer, clipboard, what is typed, threads."""

from __future__ import annotations

import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from eft_local.chats.knobs import KNOB, KNOBS, nudged, turned
from eft_local.chats.presets import Presets, knobs_of
from eft_local.chats.typed import Typed
from eft_local.errors import UsageError
from eft_local.hub.references import find_recipe
from eft_local.machine.cores import CoreUse
from eft_local.tui import clipboard, config
from eft_local.tui.actions.handlers import HANDLERS
from eft_local.tui.actions.registry import ACTIONS, completions, read_slash
from eft_local.tui.engine import with_threads
from eft_local.tui.pace import LONGEST, TYPING, WHILE_TYPING, Pace
from eft_local.tui.widgets.footer import Figures, line


def test_without_a_file_the_config_has_defaults(tmp_path: Path) -> None:
    assert config.load(tmp_path / "config.toml", {}) == config.Config()


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('theme = "nord"\nrecipe = "demo-two"\nthreads = 2\n[keys]\n"answer.stop" = "f12"\n')
    loaded = config.load(file, {"EFT_THEME": "gruvbox", "EFT_THREADS": "3"})
    assert (loaded.theme, loaded.recipe, loaded.threads) == ("gruvbox", "demo-two", 3)
    assert loaded.keys == {"answer.stop": "f12"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('them = "x"', 'the nearest valid key is "theme"'),
        ("threads = 0", "threads = 0"),
        ("sidebar = 1", "true or false"),
        ("theme =", "not valid TOML"),
        ("keys = 3", "action ids"),
    ],
)
def test_a_wrong_config_is_reported_with_its_file(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        config.load(file, {})
    assert words in str(error.value)
    assert str(file) in str(error.value)


def test_a_wrong_variable_is_reported_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="EFT_THREADS"):
        config.load(tmp_path / "config.toml", {"EFT_THREADS": "many"})


def test_keys_of_unknown_actions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"answer\.stop"):
        config.check_keys(config.Config(keys={"answer.stp": "f12"}), [action.id for action in ACTIONS], tmp_path)


def test_every_action_has_a_handler() -> None:
    assert set(HANDLERS) == {action.id for action in ACTIONS}


def test_ids_commands_and_keys_are_unique() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    commands = [action.slash for action in ACTIONS if action.slash]
    assert len(set(commands)) == len(commands)
    for scope in {action.scope for action in ACTIONS}:
        keys = [key for action in ACTIONS if action.scope == scope for key in action.keys.split(",") if key]
        assert len(set(keys)) == len(keys), scope


def test_commands_are_read_and_completed() -> None:
    action, argument = read_slash("/alpha assistant=0.5 ")
    assert (action.id, argument) == ("knob.alpha", "assistant=0.5")
    assert [action.slash for action in completions("/exp")] == ["export"]
    assert list(completions("no command")) == []
    with pytest.raises(UsageError, match="did you mean /alpha"):
        read_slash("/alhpa 1")


@pytest.mark.parametrize("knob", KNOBS, ids=lambda knob: knob.name)
def test_every_knob_moves_and_comes_back(knob: object) -> None:
    recipe = find_recipe("demo")
    moved = nudged(recipe, knob, 1) if knob.name not in ("top-p", "repeat") else nudged(recipe, knob, -1)
    assert knobs_of(moved) != knobs_of(recipe)
    if not knob.optional and knob.key != "draft":
        assert knobs_of(turned(moved, knob, knob.shown(knob.value(recipe)))) == knobs_of(recipe)


def test_presets_bring_every_knob_back(tmp_path: Path) -> None:
    presets = Presets(tmp_path / "presets.toml")
    recipe = find_recipe("demo")
    kept = turned(turned(recipe, KNOB["alpha"], "0.3"), KNOB["seed"], "5")
    presets.save(kept, "mild")
    assert knobs_of(presets.load(recipe, "mild")) == knobs_of(kept)
    presets.save(recipe, "plain")
    assert presets.load(kept, "plain").sampling.seed is None
    with pytest.raises(UsageError, match="mild"):
        presets.load(recipe, "mld")
    presets.forget(recipe, "mild")
    assert list(presets.of(recipe)) == ["plain"]


def test_the_footer_leaves_out_what_has_no_room() -> None:
    shares, used = {"base": 0.7, "assistant": 0.3}, {"base": 100, "assistant": 120}
    figures = Figures("writing", 41.7, 0.61, shares, used, 512)
    wide = line(figures, 123_000_000, 200)
    assert "42 tokens/s" in wide
    assert "drafted 61 %" in wide
    assert "time base 70 % assistant 30 %" in wide
    assert "context base 100 assistant 120 of 512" in wide
    assert "RAM 123 MB" in wide
    narrow = line(figures, 123_000_000, 45)
    assert len(narrow) <= 45
    assert "context 120/512" in narrow


def test_the_footer_reports_a_busy_machine() -> None:
    calm = Figures("writing", 41.7, cores=CoreUse(0.4, 2))
    assert "busy" not in line(calm, 123_000_000, 200)
    busy = Figures("writing", 41.7, cores=CoreUse(1.94, 2))
    assert line(busy, 123_000_000, 200).startswith("writing │ 42 tokens/s │ busy: other programs use 1.9 of 2 cores │")


def test_what_is_typed_is_kept_for_the_user_alone(tmp_path: Path) -> None:
    file = tmp_path / "chats" / "typed.json"
    Typed(file).keep("abc", "not sent", ["one", "two"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = Typed(file)
    assert (again.unsent, again.recalled) == ({"abc": "not sent"}, ("one", "two"))
    again.keep("abc", " ", ["one"])
    assert Typed(file).unsent == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"recalled": 3}', '{"recalled": [], "unsent": []}'])
def test_a_damaged_record_of_what_was_typed_is_forgotten(tmp_path: Path, content: str) -> None:
    file = tmp_path / "typed.json"
    file.write_text(content)
    assert Typed(file).unsent == {}


def test_the_clipboard_is_chosen_by_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipboard.shutil, "which", lambda name: name if name == "xclip" else None)
    assert clipboard.native_command({"DISPLAY": ":0"}, "linux") == ["xclip", "-selection", "clipboard"]
    assert clipboard.native_command({}, "linux") is None
    assert clipboard.native_command({}, "darwin") is None
    assert not clipboard.copy_native("text", None)
    assert not clipboard.copy_native("text", ["false"])
    assert clipboard.copy_native("text", ["cat"])
    assert clipboard.understands_osc52({"TERM": "xterm-256color"})
    assert not clipboard.understands_osc52({"TERM": "linux"})


def test_the_apps_threads_are_for_recipes_that_order_none() -> None:
    recipe = find_recipe("demo")
    assert with_threads(recipe, None).placement.threads is None
    assert with_threads(recipe, 2).placement.threads == 2
    assert with_threads(recipe.replace(threads=7), 2).placement.threads == 7


def test_descriptor_2_is_guarded_and_given_back(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from eft_local.tui.terminal import guarded\n"
        f"with guarded(Path({str(tmp_path / 'log')!r})):\n"
        "    os.write(2, b'noise')\n"
        "    sys.__stderr__.write('screen'); sys.__stderr__.flush()\n"
        "os.write(2, b' after')\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == "screen after"
    assert (tmp_path / "log").read_text() == "noise"


def test_drawing_takes_a_small_share_of_the_time() -> None:
    now, spent = [0.0], [0.0]
    pace = Pace(lambda: now[0], lambda: spent[0])
    drawn = []
    for beat in range(100):  # each drawing costs 9 ms
        now[0] = 0.05 * beat
        if pace.due():
            drawn.append(now[0])
            spent[0] += 0.009
    assert 23 <= len(drawn) <= 28
    spent[0] += 10.0  # something took all the time
    now[0] = drawn[-1] + 0.2
    assert not pace.due()
    now[0] += LONGEST
    assert pace.due()


def test_drawing_waits_for_somebody_who_types_but_not_for_long() -> None:
    now, spent = [0.0], [0.0]
    pace = Pace(lambda: now[0], lambda: spent[0])
    assert pace.due()
    drawn = []
    for beat in range(1, 161):  # a key every 0.1 s for 4 s; then nothing
        now[0] = 0.05 * beat
        spent[0] += 0.05  # this thread has no time
        if beat <= 80 and beat % 2:
            pace.typed()
        if pace.due():
            drawn.append(now[0])
    gaps = [after - before for before, after in pairwise([0.0, *drawn])]
    typing = [gap for at, gap in zip(drawn, gaps, strict=True) if at <= 4]
    assert typing == pytest.approx([WHILE_TYPING] * round(4 / WHILE_TYPING), abs=0.06)
    assert all(gap <= LONGEST + TYPING + 0.06 for at, gap in zip(drawn, gaps, strict=True) if at > 4)
    assert gaps[-1] == pytest.approx(LONGEST, abs=0.06)
