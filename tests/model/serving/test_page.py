"""The page of `serve` in a real browser: typed into, written by the model, stopped, taken back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.serving.server import Server
from tests.model.serving.browser import CTRL, Browser, found_browser
from tests.model.serving.test_server import TOKEN
from tests.model.serving.test_server import served as served  # the fixture counts here too

pytestmark = pytest.mark.slow
ENTER, ESCAPE = ("Enter", 13), ("Escape", 27)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = found_browser()
    if program is None:
        pytest.skip("no Chromium here")
    with Browser(program, tmp_path / "profile") as opened:
        yield opened


def text_of(browser: Browser) -> str:
    return str(browser.value("document.getElementById('text').textContent"))


def test_a_person_types_and_the_model_goes_on(served: Server, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{served.port}/#token={TOKEN}")
    browser.until("document.title === 'first'")
    assert browser.value("location.hash") == "", "the token stays in the address"
    browser.type("abc")
    browser.press(*ENTER, modifiers=CTRL)
    browser.until("/^400 characters/.test(said.textContent) && !of('write').disabled")
    assert len(text_of(browser)) == 403
    assert text_of(browser).startswith("abc")
    assert set(text_of(browser)) <= set("\n abcdefgh")

    browser.click("back")
    browser.until("said.textContent === 'taken back'")
    assert text_of(browser) == "abc"
    assert browser.complaints == []


def test_escape_stops_and_what_is_written_stays(served: Server, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{served.port}/#token={TOKEN}")
    browser.until("document.title === 'first'")
    browser.value("of('length').max = of('length').value = 200000")
    browser.type("a")
    browser.click("write")
    browser.until("written && written.textContent.length > 5")
    browser.press(*ESCAPE)
    browser.until("!running && !of('write').disabled")
    stopped = text_of(browser)
    assert 6 < len(stopped) < 200_001
    browser.until("of('back').disabled === false")
    assert text_of(browser) == stopped
    assert browser.complaints == []


def test_without_the_token_the_page_says_what_is_missing(served: Server, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{served.port}/")
    browser.until("said.classList.contains('wrong')")
    assert "token" in browser.value("said.textContent")
    assert browser.complaints == []


def test_what_is_typed_is_never_taken_for_a_page(served: Server, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{served.port}/#token={TOKEN}")
    browser.until("document.title === 'first'")
    browser.type("<img src=x onerror=window.harmed=1>a")
    browser.press(*ENTER, modifiers=CTRL)
    browser.until("/^400 characters/.test(said.textContent) && !of('write').disabled")
    assert browser.value("document.querySelectorAll('#text img').length") == 0
    assert browser.value("window.harmed") is None
