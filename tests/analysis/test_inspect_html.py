"""The inspector's page in a real browser: what it shows, and that the keyboard reaches all of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eft_local import Candidate, Emulator, RoleStatistics, Step
from eft_local.analysis import CANDIDATES, Inspection
from eft_local.analysis.page import page

webdriver = pytest.importorskip("selenium.webdriver", reason="the browser tests need selenium")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402 - after the check
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
)

EVIL = "<script>document.title = 'taken'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=800,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER)) as driver:
        yield driver


@pytest.fixture(scope="module")
def peru() -> Inspection:
    with Emulator.load("demo") as emulator:
        return Inspection(tuple(emulator.stream_chat("Tell me about Peru", top=CANDIDATES)))


class Page:
    """What a person sees and presses."""

    def __init__(self, browser: Any, folder: Path, inspection: Inspection, **about: Any) -> None:
        file = folder / "page.html"
        file.write_text(page(inspection, **{"title": "t", "question": "q", "details": {}} | about), encoding="utf-8")
        self.browser = browser
        browser.get("about:blank")
        browser.get(file.as_uri())

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    @property
    def tokens(self) -> list[Any]:
        return self.browser.find_elements("css selector", "#answer a")

    @property
    def focused(self) -> int:
        """The number of the token that has the focus, from 1."""
        return int(self.browser.switch_to.active_element.get_attribute("href").rpartition("-")[2])

    @property
    def tables(self) -> list[int]:
        """The numbers of the tokens whose tables can be seen."""
        shown = "return [...document.querySelectorAll('section')].filter(each => each.checkVisibility())"
        return [int(name.rpartition("-")[2]) for name in self.browser.execute_script(f"{shown}.map(each => each.id)")]

    def seen(self, selector: str) -> str:
        return self.browser.find_element("css selector", selector).text

    def style(self, element: Any, name: str) -> str:
        return element.value_of_css_property(name)

    @property
    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


def step(text: str, piece: bytes, *, change: float = 0.0, top_changed: bool = False, ends: bool = False) -> Step:
    roles = {"base": RoleStatistics(3, -1.0), "eft": RoleStatistics(0, -0.1)}
    other = Candidate(
        8, b" other", False, {"base": RoleStatistics(0, -0.5), "eft": RoleStatistics(1, -3.0)}, -0.25, 1.5
    )
    own = Candidate(7, piece, ends, roles, 2.0, -0.5)
    return Step(7, text, -0.1, roles=roles, candidates=(own, other), change=change, top_changed=top_changed)


def test_the_answer_is_shown_with_tints_and_underlines(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru, question="Tell me about Peru", details={"recipe": "demo"})
    assert shown.seen("#answer") == peru.text.strip() + "‹end›"
    assert shown.seen("h1") == "Who decided each token"
    assert "Tell me about Peru" in shown.seen(".question")
    assert f"{peru.summary().changed} of {len(peru.steps)} first choices" in shown.seen("dl")
    first, second = shown.tokens[:2]
    assert "underline" in shown.style(first, "text-decoration-line")
    assert "underline" not in shown.style(second, "text-decoration-line")
    assert shown.style(first, "background-color") != shown.style(second, "background-color")
    assert shown.tables == []
    assert len(browser.find_elements("css selector", ".strip rect")) == len(peru.steps)
    assert browser.execute_script("return document.compatMode") == "CSS1Compat"
    assert shown.complaints == []


def test_the_keyboard_reaches_every_token(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru)
    shown.press(Keys.TAB)
    reached = [shown.focused]
    for _ in peru.steps[1:]:
        shown.press(Keys.ARROW_RIGHT)
        reached.append(shown.focused)
        assert shown.tables == [shown.focused]
    assert reached == list(range(1, len(peru.steps) + 1))
    shown.press(Keys.ARROW_RIGHT)
    assert shown.focused == len(peru.steps), "the last one has nothing behind it"
    shown.press(Keys.ARROW_LEFT)
    assert shown.focused == len(peru.steps) - 1
    shown.press(Keys.HOME)
    assert shown.focused == 1
    shown.press(Keys.END)
    assert shown.focused == len(peru.steps)
    assert shown.complaints == []


def test_arrows_go_from_line_to_line_and_the_focus_is_seen(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru)
    tops = [element.rect["y"] for element in shown.tokens]
    shown.press(Keys.TAB, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    lines = sorted(set(tops))
    assert len(lines) > 2
    assert tops[shown.focused - 1] == lines[1]
    focused = browser.switch_to.active_element
    assert shown.style(focused, "outline-style") == "solid"
    assert float(shown.style(focused, "outline-width").removesuffix("px")) >= 2
    shown.press(Keys.ARROW_UP)
    assert tops[shown.focused - 1] == lines[0]
    shown.press(Keys.ARROW_UP)
    assert tops[shown.focused - 1] == lines[0], "above the first line there is nothing"


def test_escape_closes_the_table_and_keeps_the_place(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru)
    shown.press(Keys.TAB, Keys.ARROW_RIGHT)
    assert shown.tables == [2]
    shown.press(Keys.ESCAPE)
    assert shown.tables == []
    assert shown.focused == 2
    shown.press(Keys.ENTER)
    assert shown.tables == [2]
    shown.press(Keys.ESCAPE, Keys.ARROW_RIGHT)
    assert shown.tables == [3]


def test_the_whole_answer_is_one_stop_of_the_tab_key(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru)
    shown.press(Keys.TAB, Keys.ARROW_RIGHT, Keys.TAB)
    assert browser.switch_to.active_element not in shown.tokens
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    assert shown.focused == 2, "back where it was left"


def test_a_table_comes_under_the_pointer_and_stays(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru)
    ActionChains(browser).move_to_element(shown.tokens[3]).perform()
    assert shown.tables == [4]
    ActionChains(browser).move_to_element(browser.find_element("css selector", "h1")).perform()
    assert shown.tables == [4]
    ActionChains(browser).move_to_element(shown.tokens[5]).click().perform()
    assert (shown.tables, shown.focused) == ([6], 6)
    shown.press(Keys.ARROW_RIGHT)
    assert shown.tables == [7]


def test_a_table_says_who_thought_what(browser: Any, tmp_path: Path) -> None:
    shown = Page(browser, tmp_path, Inspection((step("Hi", b"Hi", change=0.62, top_changed=True),)))
    shown.press(Keys.TAB)
    assert shown.seen("#token-1 caption") == "Hi: token 1, change 0.62, the experts changed the first choice"
    described = browser.switch_to.active_element.get_attribute("aria-describedby")
    assert shown.seen(f"#{described}") == "token 1, change 0.62, the experts changed the first choice"
    heads = [each.text for each in browser.find_elements("css selector", "#token-1 thead tr:first-child th")]
    assert heads == ["candidate", "eft", "base", "added to the antiexpert"]
    rows = [
        [cell.text for cell in row.find_elements("css selector", "th, td")]
        for row in browser.find_elements("css selector", "#token-1 tbody tr")
    ]
    assert rows == [
        ["Hi ◂ chosen", "90.5", "1", "36.8", "4", "+2.00", "−0.50"],
        ["␣other", "4.98", "2", "60.7", "1", "−0.25", "+1.50"],
    ]


def test_what_a_model_writes_is_text(browser: Any, tmp_path: Path) -> None:
    odd = (step(EVIL, EVIL.encode()), step("&lt;b&gt;", b"&lt;b&gt;"), step(' " onfocus="x', b' " onfocus="x'))
    shown = Page(browser, tmp_path, Inspection(odd), title=EVIL, question=EVIL, details={EVIL: EVIL})
    assert browser.title == EVIL
    assert shown.seen("#answer") == EVIL + '&lt;b&gt; " onfocus="x'
    assert shown.seen(".question") == f"Question: {EVIL}"
    assert len(browser.find_elements("css selector", "script")) == 1
    shown.press(Keys.TAB)
    assert EVIL.replace(" ", "␣") in shown.seen("#token-1")
    assert shown.complaints == []


def test_tokens_without_a_text_of_their_own_can_be_seen(browser: Any, tmp_path: Path) -> None:
    odd = (step("", b"\xe6\x97"), step("日", b"\xa5"), step("\n\n", b"\n\n"), step("b", b"b"), step("", b"", ends=True))
    shown = Page(browser, tmp_path, Inspection(odd))
    assert [each.text.strip() for each in shown.tokens] == ["\\xe6\\x97", "日", "⏎", "b", "‹end›"]
    assert shown.tokens[3].rect["y"] > shown.tokens[1].rect["y"] + 20, "the line ends are there too"
    shown.press(Keys.TAB, Keys.ARROW_RIGHT)
    assert shown.seen("#token-2 tbody th") == "\\xa5 ◂ chosen"


def test_dark_and_light_are_both_readable(browser: Any, tmp_path: Path) -> None:
    shown = Page(browser, tmp_path, Inspection(tuple(step("x", b"x", change=c) for c in (0, 0.1, 0.3, 0.6, 0.9))))
    for scheme in ("light", "dark"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        body = browser.find_element("css selector", "body")
        papers = [shown.style(each, "background-color") for each in shown.tokens]
        papers[0] = shown.style(body, "background-color")
        assert len(set(papers)) == 5, "every tint is another"
        for paper in papers:
            assert contrast(paper, shown.style(body, "color")) >= 4.5, "WCAG AA"
        assert (luminance(papers[0]) < 0.2) == (scheme == "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_paper_gets_the_most_changed_tables(browser: Any, tmp_path: Path, peru: Inspection) -> None:
    shown = Page(browser, tmp_path, peru)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert shown.tables == sorted(index + 1 for index in peru.most_changed(3))
    assert not browser.find_element("css selector", ".keys").is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_scripts_all_tables_stand_below_and_tokens_lead_to_them(
    browser: Any, tmp_path: Path, peru: Inspection
) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown = Page(browser, tmp_path, peru)
        assert shown.tables == list(range(1, len(peru.steps) + 1))
        shown.tokens[8].click()
        assert browser.current_url.endswith("#token-9")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_an_answer_without_tokens_is_a_page_too(browser: Any, tmp_path: Path) -> None:
    shown = Page(browser, tmp_path, Inspection((Step(None, "", finish_reason="cancelled"),)))
    shown.press(Keys.TAB, Keys.ARROW_RIGHT, Keys.ESCAPE)
    assert shown.tokens == []
    assert shown.complaints == []


def luminance(colour: str) -> float:
    """WCAG's relative luminance of rgb(r, g, b) or rgba(r, g, b, a)."""
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
