"""A flipbook is what every checkpoint writes; its films play, and hold what was written."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pyte
import pytest

from megatron_model.analysis.flipbook import Page, changed_places, turn_pages
from megatron_model.config.fields import SamplingConfig
from megatron_model.interop.film import Film, Frame, Span, as_cast, as_svg, as_text, film_of_pages
from megatron_model.run.checkpoint import load_model
from megatron_model.run.folder import MODEL_FILE, RunFolder
from tests.model.cli.test_cli import Run, assert_refused, run

__all__ = ["run"]  # a fixture

SVG = "{http://www.w3.org/2000/svg}"
SAMPLING = SamplingConfig(max_new_tokens=60)


@pytest.fixture(scope="module")
def pages(finished_run: RunFolder) -> list[Page]:
    return list(turn_pages(finished_run, "the", SAMPLING))


def test_every_checkpoint_writes_a_page(finished_run: RunFolder, pages: list[Page]) -> None:
    checkpoints = finished_run.checkpoints()
    assert [page.step for page in pages] == [one.step for one in checkpoints]
    assert len(pages) > 1
    for page, checkpoint in zip(pages, checkpoints, strict=True):
        model = load_model(checkpoint.path / MODEL_FILE)
        assert page.text == "the" + "".join(model.stream("the", SAMPLING))
        assert page.val_loss == checkpoint.val_loss


def test_words_that_were_not_there_are_lit() -> None:
    assert list(changed_places("the king sang", "the king sang")) == []
    after = "the queen sang.\n"
    lit = "".join(after[place] for place in changed_places("the king sang", after))
    assert lit == "queen.\n"


def test_a_cast_played_in_a_terminal_shows_each_page(pages: list[Page]) -> None:
    film = film_of_pages(pages, "the", "tale", width=40)
    header, *events = map(json.loads, as_cast(film).splitlines())
    assert (header["version"], header["width"]) == (2, 40)
    screen = pyte.Screen(film.width, film.height)
    stream = pyte.Stream(screen)
    times = [time for time, _, _ in events]
    assert times == sorted(times)
    for (_, kind, data), frame in zip(events, film.frames, strict=False):
        assert kind == "o"
        stream.feed(data)
        shown = [row.rstrip() for row in screen.display]
        wanted = ["".join(span.text for span in row).rstrip() for row in frame.rows]
        assert shown[: len(wanted)] == wanted
        assert not any(shown[len(wanted) :])


def test_an_svg_holds_every_page_and_no_script(pages: list[Page]) -> None:
    film = film_of_pages(pages, "the", "a <tale> & more", width=40)
    svg = as_svg(film)
    root = ElementTree.fromstring(svg)
    assert root.findtext(f"{SVG}title") == "a <tale> & more"
    assert "<script" not in svg
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")
    stored = {
        row.get("id"): "".join(text.text or "" for text in row.iter(f"{SVG}text"))
        for row in root.iter(f"{SVG}g")
        if row.get("id")
    }
    frames = [g for g in root.iter(f"{SVG}g") if (g.get("transform") or "").startswith("trans")]
    assert len(frames) == len(pages)
    for page, frame in zip(pages, frames, strict=True):
        rows = [stored[(use.get("href") or "")[1:]] for use in frame.iter(f"{SVG}use")]
        assert rows[0].startswith(f"step {page.step:,}")
        shown = "".join(rows[1:]).replace(" ", "")
        assert shown == page.text.replace("\n", "").replace(" ", "")


def test_a_row_that_frames_share_is_stored_once() -> None:
    row = (Span("alike", "#ff0000", "#000000", bold=True),)
    film = Film("", 5, 1, [Frame((row,), 1.0), Frame((row,), 2.0)])
    svg = as_svg(film)
    assert svg.count("alike") == 1
    assert svg.count("<use ") == 2
    assert "animation:play 3.00s" in svg


def test_as_text_the_pages_follow_each_other(pages: list[Page]) -> None:
    text = as_text(film_of_pages(pages, "the", "", width=40))
    places = [text.index(f"step {page.step:,}") for page in pages]
    assert places == sorted(places)
    assert "\x1b" not in text


def test_what_a_terminal_would_obey_is_in_no_film() -> None:
    pages = [Page(1, None, "a\x1b[2Jb"), Page(2, 1.5, "a\x1b]0;x\x07c", (1, 2))]
    film = film_of_pages(pages, "a", "evil\x1b[31m")
    for written in (as_text(film), as_svg(film)):
        assert "\x1b" not in written
    assert "[2Jb" in as_text(film)
    assert "\x1b[2Jb" not in "".join(json.loads(x)[2] for x in as_cast(film).splitlines()[1:])


def test_the_verb(run: Run, finished_run: RunFolder, tmp_path: Path, pages: list[Page]) -> None:
    asked = ("flipbook", finished_run.path, "--prompt", "the", "--max-new-tokens", "60")
    assert run(*asked).out == as_text(film_of_pages(pages, "the", ""))
    for ending, beginning in ((".svg", "<svg "), (".cast", '{"version": 2'), (".txt", "step ")):
        path = tmp_path / f"film{ending}"
        run(*asked, "--out", path)
        assert path.read_text(encoding="utf-8").startswith(beginning)
    assert_refused(run(*asked, "--out", tmp_path / "film.gif"), "must end in", ".cast")
    assert_refused(run(*asked, "--out", tmp_path / "no" / "film.svg"), "Cannot write")
    assert_refused(run("flipbook", finished_run.path, "--prompt", "ß"), "ß")
