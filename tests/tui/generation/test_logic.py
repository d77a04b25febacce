"""What is behind the Generation screen: rows of text, the history, the draft, the saved file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_model.config.fields import SamplingConfig
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.generation.prompt_history import LONGEST, MANY, PromptHistory
from megatron_tui.generation.sampling_draft import DEFAULTS, PRESETS, SamplingDraft
from megatron_tui.generation.written_text import RULE, WrittenText
from megatron_tui.services.model_cache import Live
from megatron_tui.services.preferences import Preferences
from megatron_tui.terminal import editor as external_editor
from megatron_tui.ui.heat_view import lead_tint, share_tint, surprise_tint
from megatron_tui.ui.wrapping import BREAK, Wrapping
from tests.tui.generation.helpers import run_header

PIECES = st.lists(st.text(alphabet="ab \n日é\u0301x", max_size=12), max_size=20)


# Rows


@example(["日", "aaaa", "\u0301"], 5, False)
@given(PIECES, st.integers(1, 12), st.booleans())
def test_rows_of_a_growing_text_are_those_of_the_whole(
    pieces: list[str], width: int, breaks: bool
) -> None:
    growing, whole = Wrapping(breaks=breaks), Wrapping(breaks=breaks)
    growing.lay_out(width)
    for piece in pieces:
        growing.append(piece)
    whole.append("".join(pieces))
    whole.lay_out(width)
    assert growing.rows == whole.rows or "".join(pieces) == ""
    assert growing.text == "".join(pieces)
    shown = "".join(row.text for row in whole.rows)
    assert shown == "".join(pieces).replace("\n", BREAK if breaks else "")
    for index, row in enumerate(whole.rows):
        if row.text and breaks:
            assert whole.row_of(row.start) == index
            assert whole.text[row.start] == row.text[0].replace(BREAK, "\n")


@pytest.mark.parametrize("unit", ["word ", "x", "日本", "a line\n"])
def test_a_hundred_thousand_characters_cost_no_more_at_the_end(unit: str) -> None:
    rows = Wrapping()
    rows.lay_out(80)
    piece = unit * 20
    while rows.length < 100_000:
        before = len(rows.rows)
        changed = rows.append(piece)
        # Only the row at the end and those that are new are wrapped and drawn.
        assert changed >= before - 1
    assert len(rows.rows) > 1000


def test_another_width_wraps_anew() -> None:
    rows = Wrapping()
    rows.append("one two three\nfour")
    rows.lay_out(8)
    assert [row.text for row in rows.rows] == ["one two ", "three", "four"]
    rows.lay_out(4)
    assert [row.text for row in rows.rows] == ["one ", "two ", "thre", "e", "four"]


# History


def test_prompts_are_kept_from_one_session_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "preferences.json"
    history = PromptHistory(Preferences(path))
    for prompt in ("one", "two\nlines", "one", "  ", "x" * (LONGEST + 1)):
        history.add(prompt)
    assert PromptHistory(Preferences(path)).prompts == ["two\nlines", "one"]
    for number in range(MANY + 5):
        history.add(f"prompt {number}")
    assert len(PromptHistory(Preferences(path)).prompts) == MANY


def test_what_was_typed_is_there_after_a_walk_through_the_past() -> None:
    history = PromptHistory(Preferences())
    history.add("first")
    history.add("second")
    assert history.newer() is None
    assert [history.older("draft"), history.older("x"), history.older("x")] == [
        "second", "first", None,
    ]  # fmt: skip
    assert [history.newer(), history.newer(), history.newer()] == ["second", "draft", None]


def test_the_past_is_searched_by_words_newest_first() -> None:
    history = PromptHistory(Preferences())
    for prompt in ("The king", "the queen and the King", "a wolf"):
        history.add(prompt)
    assert history.search("king the") == ["the queen and the King", "The king"]
    assert history.search("king wolf") == []
    assert len(history.search("")) == 3


# The draft


def test_every_preset_is_a_way_of_sampling() -> None:
    draft = SamplingDraft(Preferences())
    draft.put("seed", "9")
    for _, values in PRESETS.values():
        draft.take(values)
        assert draft.errors == {}
        assert draft.texts == {**DEFAULTS, **values, "seed": "9"}


def test_values_are_nudged_along_steps_that_make_sense() -> None:
    draft = SamplingDraft(Preferences())
    for key, direction, value in (
        ("temperature", -1, 0.7), ("temperature", 1, 0.8), ("top_k", -1, 80), ("top_k", -1, 40),
        ("top_k", 1, 80), ("top_k", 1, 0), ("top_k", 1, 0), ("top_p", 1, 1.0), ("top_p", -1, 0.98),
    ):  # fmt: skip
        draft.nudge(key, direction)
        assert getattr(draft.sampling, key) == value
    draft.put("temperature", "0.85")
    draft.nudge("temperature", 1)
    assert draft.sampling.temperature == 0.9
    draft.put("temperature", "0.85")
    draft.nudge("temperature", -1)
    assert draft.sampling.temperature == 0.8
    draft.put("top_k", "7")
    draft.nudge("top_k", -1)
    assert draft.sampling.top_k == 5
    draft.nudge("top_k", 1)
    assert draft.sampling.top_k == 10


def test_the_draft_is_remembered_but_for_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "preferences.json"
    draft = SamplingDraft(Preferences(path))
    draft.put("temperature", "1.5")
    draft.put("stop", "a=b")
    draft.next_seed()
    again = SamplingDraft(Preferences(path))
    assert again.texts == {**DEFAULTS, "temperature": "1.5", "stop": "a=b"}
    again.put("temperature", "hot")
    assert SamplingDraft(Preferences(path)).texts == DEFAULTS


# The saved text


def written(run: RunFolder, sampling: SamplingConfig, prompt: str) -> WrittenText:
    from megatron_model.run.checkpoint import load_model

    best = run.best_checkpoint()
    assert best is not None
    path = best.path / "model.safetensors"
    text = WrittenText(path, run.name, "best", sampling, prompt)
    for character in load_model(path).stream(prompt, sampling):
        text.append(character)
    return text


@pytest.mark.parametrize("prompt", ["the", "", "the  king sang.\nwolf"])
def test_the_header_of_a_saved_text_writes_it_again(
    finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    sampling = SamplingConfig(max_new_tokens=60, temperature=1.2, top_k=9, seed=5, min_p=0.01)
    text = written(finished_run, sampling, prompt)
    path = tmp_path / "text.txt"
    text.save(path)
    body = path.read_text(encoding="utf-8").partition(RULE + "\n")[2]
    assert body == text.text + "\n"
    assert run_header(path, monkeypatch) == body


def test_a_file_is_written_over_only_when_asked_twice(tmp_path: Path) -> None:
    text = WrittenText(tmp_path / "m.safetensors", "run", "best, step 4", SamplingConfig(), "p")
    path = tmp_path / text.file_name
    assert path.name == "run-best-step-4-seed-1337.txt"
    path.write_text("mine")
    with pytest.raises(RequestError, match="already"):
        text.save(path)
    assert path.read_text() == "mine"
    text.save(path, over=True)
    assert path.read_text().endswith("p\n")
    with pytest.raises(RequestError, match="Cannot write"):
        text.save(tmp_path / "no" / "such.txt")


def test_the_command_quotes_what_shells_would_take_apart(tmp_path: Path) -> None:
    sampling = SamplingConfig(stop="\n\n")
    prompt = "it's $HOME\n\x1b[2J\\"
    text = WrittenText(tmp_path / "m", "run", "best", sampling, prompt)
    header = text.header()
    assert "\x1b" not in header
    assert "\\u001b[2J" in header
    assert r"it\'s $HOME\n" in header
    assert r"$'--stop=\n\n'" in header


def test_live_weights_cannot_be_had_again(tmp_path: Path) -> None:
    live = Live(tmp_path, lambda request: None, lambda: False)
    text = WrittenText(live, "run", "live", SamplingConfig(), "p")
    assert text.command() == ""
    assert "not kept" in text.header()


# Tints


def test_tints_rise_with_what_they_stand_for() -> None:
    surprise = [surprise_tint(bits) for bits in (0, 0.6, 2, 4, 6, 20)]
    assert surprise == sorted(set(surprise))
    shares = [share_tint(share, 1.0) for share in (0, 0.1, 0.3, 0.5, 0.8, 1.0)]
    assert shares == sorted(set(shares))
    assert share_tint(0.5, 0.0) == shares[0]
    leads = [lead_tint(lead) for lead in (-3, -1, 0, 1, 3)]
    assert len(set(leads)) == 5
    assert leads[0].startswith("heat--first")
    assert leads[-1].startswith("heat--second")


def test_what_an_editor_left_has_the_line_ends_of_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert external_editor._read("vi", path, "one") == "one\ntwo"
