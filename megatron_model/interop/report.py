"""A run, or several laid over each other, as one page to read: no network, no scripts."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from megatron_model import __version__
from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import local_time
from megatron_model.events.state import RunState, Status
from megatron_model.interop import report_parts as parts
from megatron_model.interop.charts import Line, chart, legend
from megatron_model.interop.page import line, loss, plain, section, short, table, whole
from megatron_model.run.folder import RUN_FILE, RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import write_asked_for
from megatron_model.util.text import safe
from megatron_model.util.toml import read_toml

STYLES = 6
"""Runs whose curves can be told apart; see report.css."""


class Told(Struct, frozen=True):
    """A run as its folder tells of it."""

    folder: RunFolder
    state: RunState
    status: Status
    config: RunConfig | None
    """None of a run that was imported: its settings are not known."""
    about: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name, for HTML."""
        return line(self.folder.name)


def write_report(folders: Sequence[RunFolder], out: Path) -> None:
    """Write the page of one run, or of several.

    Raises:
        RequestError: a run cannot be read or has no curves, or the page cannot be written.
    """
    if len(folders) > STYLES:
        raise RequestError(f"A report shows {STYLES} runs at most; leave some out.")
    names = [folder.name for folder in folders]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f'The run "{safe(twice, one_line=True)}" is named twice.')
    told = [_told(folder) for folder in folders]
    body = _of_one(told[0]) if len(told) == 1 else _of_several(told)
    title = ", ".join(plain(name) for name in names)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"{_footer(told)}</main>\n</body>\n</html>\n"
    )
    write_asked_for(out, page.encode("utf-8", "replace"))


def _told(folder: RunFolder) -> Told:
    folder.check_readable()
    state = folder.state()
    if not len(state.train_loss) and not len(state.val_loss):
        name = safe(folder.name, one_line=True)
        raise RequestError(f'The run "{name}" has no curves yet: it has not reported a loss.')
    config = None if folder.read_imported() else folder.read_config()
    about = read_toml(folder.path / RUN_FILE).get("run", {})
    return Told(folder, state, folder.status(state), config, about)


# --- one run ------------------------------------------------------------------------------------


def _of_one(told: Told) -> str:
    state, config = told.state, told.config
    sections = [
        _heading("Training report", told.name, parts.lead(state, config, told.status)),
        parts.figures(state),
        section("Loss", _loss_chart(state), parts.loss_note(state)),
        section("How it went", _multiples(told), "Along the same steps as the loss."),
    ]
    if state.samples:
        sections.append(section("Samples", parts.strip(state), parts.samples_note(state)))
    if config is not None:
        sections.append(section("The text", *parts.corpus(told.folder, config, state)))
        sections.append(section("Settings", parts.settings(config), parts.SETTINGS_NOTE))
        body, note = parts.repeat(config, state)
        sections.append(section("Once more", body, note))
    if notices := parts.notices(state):
        sections.append(section("Notices", notices, "What the run had to say besides its losses."))
    sections.append(section("Made with", parts.versions(told.folder, told.about, state)))
    return "\n".join(sections)


def _heading(eyebrow: str, title: str, lead: str) -> str:
    return f'<p class="eyebrow">{eyebrow}</p><h1>{title}</h1><p class="lead">{lead}</p>'


def _loss_chart(state: RunState) -> str:
    train, val = state.train_loss, state.val_loss
    lines = [
        Line("train", train.steps, train.values, "train"),
        Line("validation", val.steps, val.values, "s1", marked=True),
    ]
    entries = []
    if len(train):
        entries.append(("train", f"train <b>{loss(train.values[-1])}</b>", False))
    if len(val):
        entries.append(("s1", f"validation <b>{loss(val.values[-1])}</b>", True))
    best = None
    if state.best_val_loss is not None and state.best_step is not None:
        best = (state.best_step, state.best_val_loss)
    return legend(entries) + chart(
        "Training and validation loss over the steps",
        lines,
        height=380,
        narrow=300,
        levels=parts.levels(state),
        best=best,
        number=loss,
        unit=f"nats per {parts.token_of(state)}",
    )


def _multiples(told: Told) -> str:
    state = told.state
    memory = "memory of the device" if state.device and state.device.kind == "gpu" else "memory"
    charts = (
        ("Learning rate", state.learning_rate, "", 1.0),
        ("Gradient norm", state.gradient_norm, "", 1.0),
        ("Speed", state.speed, f"{parts.token_of(state)}s a second", 1.0),
        (memory.capitalize(), state.memory, "GiB", 1 / 2**30),
    )
    cells = []
    for title, series, unit, factor in charts:
        if told.config is None and not any(series.values):
            continue  # an imported run has 0 where nothing was measured
        values = [value * factor for value in series.values]
        drawn = chart(
            f"{title} over the steps",
            [Line(title, series.steps, values, "plain")],
            height=220,
            narrow=210,
            wide_width=400,
            from_zero=True,
        )
        cells.append(f"<div><h3>{title}</h3><p>{unit or '&nbsp;'}</p>{drawn}</div>")
    return f'<div class="multiples">{"".join(cells)}</div>'


# --- several runs -------------------------------------------------------------------------------


def _of_several(told: Sequence[Told]) -> str:
    ranked = sorted(told, key=lambda each: each.state.best_val_loss or math.inf)
    first = ranked[0]
    names = [f"<b>{each.name}</b>" for each in told]
    lead = f"{', '.join(names[:-1])} and {names[-1]}, laid over each other."
    if first.state.best_val_loss is not None:
        lead += (
            f" The lowest validation loss, {loss(first.state.best_val_loss)} nats per "
            f"{parts.token_of(first.state)}, is that of {first.name}."
        )
    sections = [
        _heading("Training report", f"{len(told)} runs compared", lead),
        section("Figures", _figures_of(told)),
        section(
            "Validation", _overlay(told, "val_loss"), "Over the whole split that each keeps for it."
        ),
        section("Train", _overlay(told, "train_loss"), "Means over the steps of each report."),
        section("What differs", _differences(told), "Settings that are not the same in all."),
    ]
    last_words = [
        parts.card(each.state.samples[-1], each.name, each.state)
        for each in told
        if each.state.samples
    ]
    if last_words:
        body = f'<ul class="strip">{"".join(last_words)}</ul>'
        sections.append(section("Last samples", body, "What each wrote at its end."))
    commands = [
        f"<h3>{each.name}</h3>{parts.repeat(each.config, each.state)[0]}"
        for each in told
        if each.config is not None
    ]
    if commands:
        sections.append(section("Once more", "".join(commands), "The command that trains each."))
    return "\n".join(sections)


def _overlay(told: Sequence[Told], curve: str) -> str:
    lines, entries = [], []
    for number, each in enumerate(told, 1):
        series = getattr(each.state, curve)
        style = f"s{number}"
        if len(series):
            label = safe(each.folder.name, one_line=True)
            marked = curve == "val_loss"
            lines.append(Line(label, series.steps, series.values, style, marked=marked))
            entries.append((style, f"{each.name} <b>{loss(series.values[-1])}</b>", marked))
    best = None
    if curve == "val_loss":
        found = [
            (each.state.best_val_loss, each.state.best_step)
            for each in told
            if each.state.best_val_loss is not None and each.state.best_step is not None
        ]
        value, step = min(found, default=(None, None))
        best = None if value is None or step is None else (step, value)
    return legend(entries) + chart(
        "Loss of each run over the steps",
        lines,
        height=360,
        best=best,
        number=loss,
        unit=f"nats per {_token(told)}",
    )


def _token(told: Sequence[Told]) -> str:
    return " or ".join(sorted({parts.token_of(each.state) for each in told}))


def _figures_of(told: Sequence[Told]) -> str:
    rows = []
    for number, each in enumerate(told, 1):
        state = each.state
        best = state.best_val_loss
        swatch = (
            '<svg class="swatch" viewBox="0 0 34 12" aria-hidden="true">'
            f'<path class="line s{number}" d="M1 6H33"/></svg>'
        )
        rows.append(
            (
                f'<span class="key">{swatch}</span>{each.name}',
                f"<b>{loss(best)}</b>",
                loss(None if best is None else best / math.log(2)),
                whole(state.best_step),
                whole(state.step),
                parts.trained_for(state),
                parts.speed(state),
                short(state.started.parameters)
                if state.started and state.started.parameters
                else "–",
            )
        )
    head = ("run", "best loss", "in bits", "at step", "steps", "time", "speed", "parameters")
    return table(head, rows, "tight")


def _differences(told: Sequence[Told]) -> str:
    known = [each for each in told if each.config is not None]
    rows = parts.differing([each.config for each in known if each.config is not None])
    words = []
    if len(known) < len(told):
        others = ", ".join(each.name for each in told if each.config is None)
        words.append(f'<p class="sub">The settings of {others} are not known: imported.</p>')
    if not rows and len(known) < 2:
        return "".join(words)
    if not rows:
        words.insert(0, '<p class="quiet">Nothing: all known settings are the same.</p>')
        return "".join(words)
    return table(["setting", *(each.name for each in known)], rows) + "".join(words)


def _footer(told: Sequence[Told]) -> str:
    ends = [each.state.last_time for each in told if each.state.last_time]
    when = f" of {local_time(max(ends), '%-d %B %Y')}" if ends else ""
    plural = "runs" if len(told) > 1 else "run"
    today = local_time(time.time(), "%-d %B %Y")
    return (
        f"<footer>Written on {today} by megatron-model {__version__} with Python "
        f"{platform.python_version()}, from the log of the {plural}{when}.</footer>\n"
    )
