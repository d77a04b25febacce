"""The page of a run: whole in itself, true to the run, and harmless whatever the run holds."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_model.cli.asked import request
from megatron_model.cli.parser import parse, run
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import PRESETS, fitted
from megatron_model.events import schema as events
from megatron_model.events.schema import encode_event
from megatron_model.interop.charts import Line, chart
from megatron_model.interop.curves_in import import_curves, read_csv
from megatron_model.interop.page import visible
from megatron_model.interop.repeat import command_of
from megatron_model.interop.report import write_report
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from tests.model.helpers import TEXT, tiny_config

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """What a page holds: its elements balanced, and the text of it all."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(tmp_path: Path, *folders: RunFolder) -> Page:
    write_report(folders, tmp_path / "out.html")
    return Page(tmp_path / "out.html")


def test_a_page_tells_of_the_run_and_needs_nothing_else(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    page, state = page_of(tmp_path, finished_run), finished_run.state()
    assert state.best_val_loss is not None
    assert f"{state.best_val_loss:.3f}" in page.text
    assert f"best {state.best_val_loss:.3f} at step {state.best_step}" in page.text
    assert f"{len(TEXT):,}" in page.text
    for sample in state.samples:
        assert f"step {sample.step}" in page.text
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "a"}
    assert "svg" in names
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", page.source)
    assert "default-src 'none'" in page.source


def test_the_command_on_the_page_makes_the_same_configuration(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    page = page_of(tmp_path, finished_run)
    found = re.search(r"megatron-model train (.+?)\n\S", page.text.split("Once more")[1], re.DOTALL)
    text = found[1] if found else page.text.split("Once more")[1].split("Notices")[0]
    words = shlex.split(
        text.split("Made with")[0].replace("\\\n", " ").removeprefix("megatron-model train")
    )
    words = [word for word in words if word not in ("megatron-model", "train")]
    corpus = finished_run.read_config().data.corpus
    words = words[words.index(corpus) :]
    config = request(parse(["train", *words])).config
    assert config == finished_run.read_config()


CHANGES: list[Mapping[str, object]] = [
    {},
    {"model.layers": 3},
    {"training.max_seconds": 20.0},
    {"training.steps": 77, "training.log_every": 7},
    {"model.embed_dim": 96, "model.heads": 3, "training.optimizer": "adamw"},
    {"training.sample_prompt": "a b=c'\"\n", "data.validation_fraction": 0.2},
]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: "+".join(changes) or "none")
def test_a_command_repeats_any_configuration(
    preset: str, changes: Mapping[str, object], corpus: Path
) -> None:
    if preset == "seed" and "model.heads" in changes:
        changes = {**changes, "model.embed_dim": 96}
    asked = with_settings(PRESETS[preset].config, {**changes, "data.corpus": str(corpus)})
    config = fitted(asked, len(TEXT), changes.keys())
    again = request(parse(command_of(config, len(TEXT))[1:])).config
    assert again == config


HARM = "<script>alert(1)</script>&\"'\x1b[31m\x00\u202e\ufeff\r\U000e0041"


def test_whatever_a_run_holds_stays_text(run_copy: RunFolder, tmp_path: Path) -> None:
    name = "<b onclick=x>&'\""
    path = run_copy.path.rename(run_copy.path.with_name(name))
    folder = RunFolder.open(path)
    with folder.events_path.open("ab") as log:
        for event in (
            events.SampleGenerated(step=18, prompt=HARM, text=HARM),
            events.Notice(step=18, text=HARM),
            events.RunFailed(step=18, error=HARM),
        ):
            log.write(encode_event(event))
    page = page_of(tmp_path, folder)
    names = {tag for tag, _ in page.tags}
    assert "script" not in names
    assert all("onclick" not in attributes for _, attributes in page.tags)
    assert page.text.count("<script>alert(1)</script>&\"'␛[31m␀U+202EU+FEFF␍U+E0041") >= 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ufeff]", page.source)


def test_control_characters_are_seen() -> None:
    assert visible("a\x1b<") == 'a<span class="ctl">␛</span>&lt;'
    assert visible("\x85\ud800") == (
        '<span class="ctl">U+0085</span><span class="ctl">U+D800</span>'
    )


def test_a_corpus_that_is_gone_or_another_is_said(run_copy: RunFolder, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(TEXT + "more")
    for corpus, words in ((tmp_path / "gone.txt", "gone.txt"), (other, "it has changed")):
        config = with_settings(run_copy.read_config(), {"data.corpus": str(corpus)})
        run_copy.write_config(config, fingerprint=run_copy.read_corpus_fingerprint())
        page = page_of(tmp_path, run_copy)
        assert "The text itself could not be looked at" in page.text
        assert words in page.text
        assert f"{len(TEXT):,}" in page.text


def test_several_runs_are_laid_over_each_other(
    finished_run: RunFolder, runs_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished_run.path, runs_dir / "second")
    second = RunFolder.open(runs_dir / "second")
    config = tiny_config({"data.corpus": str(corpus), "training.learning_rate": 0.007})
    second.write_config(config, fingerprint=second.read_corpus_fingerprint())
    table = tmp_path / "their.csv"
    table.write_text("step,train_loss,val_loss\n1,3,4\n10,2,2.5\n")
    theirs = import_curves(runs_dir, "theirs", table, read_csv(table))
    page = page_of(tmp_path, finished_run, second, theirs)
    assert "training.learning_rate" in page.text
    assert "0.007" in page.text
    assert "training.batch_size" not in page.text.split("What differs")[1].split("Once more")[0]
    assert "The settings of theirs are not known" in page.text
    drawn = {a["class"] for tag, a in page.tags if tag == "path" and a.get("class")}
    assert {"line s1", "line s2", "line s3"} <= drawn


def test_an_imported_run_has_a_page(runs_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "their.csv"
    table.write_text("step,loss\n1,3\n10,2\n")
    page = page_of(tmp_path, import_curves(runs_dir, "theirs", table, read_csv(table)))
    assert "settings and weights are not known" in page.text
    assert "Gradient norm" not in page.text


def test_what_cannot_be_written_is_said(
    finished_run: RunFolder, runs_dir: Path, config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="Cannot write"):
        write_report([finished_run], tmp_path / "gone" / "out.html")
    with pytest.raises(RequestError, match="named twice"):
        write_report([finished_run, finished_run], tmp_path / "out.html")
    with pytest.raises(RequestError, match="6 runs at most"):
        write_report([finished_run] * 7, tmp_path / "out.html")
    new = RunFolder.create(runs_dir, "new", config)
    with pytest.raises(RequestError, match="no curves yet"):
        write_report([new], tmp_path / "out.html")
    with pytest.raises(RequestError, match=r"must end in \.html"):
        run(parse(["report", "new", "out"]))
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize(
    "values",
    [[1.0], [2.0, 2.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 1e6], [float("nan"), 1.0, float("inf")]],
)
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    best = (1 if len(values) > 1 else 0, values[min(1, len(values) - 1)])
    drawn = chart("x", [Line("x", range(len(values)), values, "s1")], best=best)
    places = re.findall(r'[xy]="(-?[\d.]+|nan|inf)"', drawn)
    assert places
    assert all(-50 <= float(place) <= 900 for place in places)


def test_a_long_curve_keeps_its_spikes() -> None:
    values = [1.0] * 100_000
    values[54_321] = 9.0
    drawn = chart("x", [Line("x", range(100_000), values, "s1")])
    assert len(drawn) < 200_000
    (path, _) = re.findall(r'class="line s1" d="M([^"]+)"', drawn)
    heights = {float(point.split()[1]) for point in path.split("L")}
    assert len(heights) == 2


MEASURE = """<!doctype html><body><script>
addEventListener("load", () => {
  const found = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const shown = kind => page.querySelectorAll(`svg.${kind}`)[0].getBoundingClientRect().width > 0;
    found.push([root.scrollWidth, root.clientWidth, shown("wide"), shown("narrow"),
      page.querySelectorAll("h2").length]);
  }
  document.body.textContent = "measured " + JSON.stringify(found);
});
</script><iframe src="out.html" width="1280" height="900" style="border:0"></iframe>
<iframe src="out.html" width="390" height="800" style="border:0"></iframe></body>"""


@pytest.mark.slow
def test_a_browser_shows_it_on_a_wide_and_on_a_narrow_screen(
    run_copy: RunFolder, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    path = run_copy.path.rename(run_copy.path.with_name("a" * 100))
    with (path / "events.jsonl").open("ab") as log:
        log.write(encode_event(events.SampleGenerated(step=18, prompt="", text="w" * 2000)))
        log.write(encode_event(events.Notice(step=18, text="n" * 500)))
    write_report([RunFolder.open(path)], tmp_path / "out.html")
    (tmp_path / "measure.html").write_text(MEASURE)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    flags += [
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=10000",
    ]
    address = (tmp_path / "measure.html").as_uri()
    done = subprocess.run(
        [browser, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120
    )
    measured = re.search(r"measured (\[.*\])", done.stdout)
    assert measured is not None, done.stderr
    wide, narrow = json.loads(measured[1])
    assert wide == [1280, 1280, True, False, 8]
    assert narrow == [390, 390, False, True, 8]
