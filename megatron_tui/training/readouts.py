"""What the Training screen says in numbers and short lines, worked out from a run's state. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from textual.content import Content

from megatron_model.events.schema import local_time
from megatron_model.events.smoothing import smooth
from megatron_model.events.state import LogLine, RunState
from megatron_model.util.text import safe
from megatron_tui.training.alerts import Alert
from megatron_tui.training.chart_view import SMOOTHING, Axis, ChartView, Unit, in_unit, nearest
from megatron_tui.training.curves import Metric, memory_unit, metric_series
from megatron_tui.training.other_runs import OtherRun
from megatron_tui.ui import formatting
from megatron_tui.ui.formatting import MISSING


def now_figures(state: RunState, *, short: bool = False) -> list[tuple[str, str]]:
    """Return (label, value) of everything measured, in the order of interest, for two columns."""
    train, validation = _last(state.train_loss.values), _last(state.val_loss.values)
    bits = train / math.log(2) if train is not None else None
    best = MISSING
    if state.best_val_loss is not None and state.best_step is not None:
        best = formatting.loss(state.best_val_loss)
        if not short:
            best += f" at {state.best_step:,}"
    speed = _last(state.speed.values)
    per_step = state.characters_per_step
    step_seconds = per_step / speed if speed and per_step else None
    return [
        ("loss", formatting.loss(train)),
        # Of the train loss beside it, always: that of the validation is under another key (u).
        ("bits/char", formatting.bits(bits)),
        ("validation", formatting.loss(validation)),
        ("best", best),
        ("speed", f"{formatting.count(speed)} char/s" if speed else MISSING),
        ("step", formatting.duration(step_seconds)),
        ("rate", formatting.rate(_last(state.learning_rate.values))),
        ("gradient", formatting.rate(_last(state.gradient_norm.values))),
        ("epoch", _epochs(state)),
        ("data wait", formatting.percent(state.data_wait)),
        ("MFU", formatting.percent(matrix_share(state))),
    ]


def matrix_share(state: RunState) -> float | None:
    """Return the share of this device's rate in plain matrix products that training reaches.

    What others call MFU, against a measured rate instead of the one in a data sheet.
    """
    started, speed = state.started, _last(state.speed.values)
    if started is None or not speed or not started.flops_per_character or not started.matrix_rate:
        return None
    return started.flops_per_character * speed / started.matrix_rate


def about_figures(state: RunState) -> list[tuple[str, str]]:
    """Return (label, value) of what the run is, for two columns."""
    started = state.started
    if started is None:
        return []
    times = f"{started.devices} x " if started.devices > 1 else ""
    return [
        ("model", formatting.count(started.parameters)),
        ("device", f"{times}{safe(started.device, one_line=True)}"),
        ("corpus", formatting.count(started.characters)),
        ("vocab", formatting.exact(started.vocabulary_size)),
    ]


def memory_title(state: RunState) -> str:
    """Return the title of the memory panel, which says whose memory it is."""
    device = state.device
    if device is None:
        return "memory"
    name = safe(device.name, one_line=True)
    whose = f"memory, {name}" if device.kind == "gpu" else "memory, RAM of the trainer"
    if state.started is not None and state.started.devices > 1:
        whose = f"memory of rank 0, {name if device.kind == 'gpu' else 'RAM'}"
    return whose


def memory_line(state: RunState, width: int) -> Content:
    """Return used, peak and total memory in words, as many as fit."""
    device = state.device
    if device is None:
        return Content("")
    used = Content.assemble(
        (formatting.size(device.used), "$chart-memory bold"),
        (f" of {formatting.size(device.total)}", "$quiet"),
    )
    peak = Content.styled(f"peak {formatting.size(device.peak)}", "$quiet")
    own = device.process if device.process is not None else device.reserved
    if own is None:
        return joined([used, peak], width, "  ")
    # What the card holds is everybody's; what is compared with the peak is this process's.
    run = Content.styled(
        f"this run {formatting.size(own)}, peak {formatting.size(device.peak)}", "$quiet"
    )
    return joined([Content.assemble(("card ", "$quiet"), used), run], width, "  ")


def metric_title(state: RunState, metric: Metric) -> str:
    """Return the title of a chart."""
    return {
        "memory": memory_title(state),
        "gradient": "gradient norm",
        "rate": "learning rate",
        "speed": "speed, characters/s",
    }[metric]


def metric_line(state: RunState, view: ChartView, metric: Metric, width: int) -> Content:
    """Return the newest value of a measurement in words, or the one at the cursor."""
    series = metric_series(state, metric)
    if metric == "memory" and view.cursor is None:
        return memory_line(state, width)
    if not len(series):
        return Content("")
    write = {"memory": formatting.size, "speed": formatting.count}.get(metric, formatting.rate)
    index = len(series) - 1 if view.cursor is None else nearest(series.steps, view.cursor)
    value = series.values[index]
    colour = f"$chart-{'memory' if metric in ('memory', 'speed') else 'train'} bold"
    words = [Content.styled(write(value), colour)]
    finite = [v for v in series.values if math.isfinite(v)]
    if view.cursor is not None:
        words.append(Content.styled(f"at step {series.steps[index]:,}", "$quiet"))
    elif finite and metric != "rate":
        words.append(Content.styled(f"lowest {write(min(finite))}", "$quiet"))
        words.append(Content.styled(f"highest {write(max(finite))}", "$quiet"))
    return joined(words, width, "  ")


def metric_note(state: RunState, metric: Metric | Literal[""]) -> str:
    """Return what stands at the lower edge: how busy the device is, and the unit of one chart."""
    device = state.device
    notes = []
    if device is not None and device.utilization is not None:
        notes.append(f"busy {formatting.percent(device.utilization)}")
    if device is not None and device.temperature is not None:
        notes.append(f"{formatting.exact(device.temperature)} °C")
    if metric == "memory" and len(state.memory):
        notes.append(memory_unit(state))
    return " · ".join(notes)


def in_words(value: float | None, unit: Unit) -> str:
    """Return a loss in a unit."""
    return formatting.loss(None if value is None else in_unit(value, unit))


def loss_legend(
    state: RunState,
    view: ChartView,
    width: int,
    others: Sequence[OtherRun] = (),
    signs: tuple[str, str, str] = ("━", "━", "◆"),
) -> Content:
    """Return the legend over the loss chart, cut at whole entries.

    `signs` are what draws the train loss, the validation loss and the best one.
    """
    line, dots, diamond = signs
    train, validation = _last(state.train_loss.values), _last(state.val_loss.values)
    for told in (True, False):  # the losses are in another panel too; whose line is whose is not
        entries = [
            _entry(line, "chart-train", "train", in_words(train, view.unit) if told else ""),
            _entry(
                dots, "chart-validation", "validation",
                in_words(validation, view.unit) if told else "",
            ),
        ]  # fmt: skip
        left = width - sum(entry.cell_length + 3 for entry in entries)
        compared = _other_entries(others, view, left, line)
        if sum(entry.cell_length + 3 for entry in compared) <= left:
            break
    entries += compared
    if state.best_val_loss is not None and state.best_step is not None:
        best = _entry(diamond, "chart-validation", "best", in_words(state.best_val_loss, view.unit))
        entries.append(Content.assemble(best, f" at {state.best_step:,}"))
    kept = SMOOTHING[view.smoothing]
    entries.append(Content.styled(f"smoothing {kept:g}" if kept else "not smoothed", "$quiet"))
    return joined(entries, width)


def _other_entries(
    others: Sequence[OtherRun], view: ChartView, width: int, line: str
) -> list[Content]:
    """Return the entries of other runs, their names as short as the width asks for.

    Where even a few letters are too many, the letter that is in the chart and the loss remain, and
    then the letter alone. A parent has no letter: some of its name stays.
    """
    entries: list[Content] = []
    for longest in (20, 14, 9, 0):
        entries = []
        for other in others:
            best = in_words(other.state.best_val_loss, view.unit) if other.sign else ""
            length = longest if other.sign else max(9, longest)
            name = formatting.shortened(other.name, length) if length else ""
            entries.append(_entry(other.sign or line, other.colour, name, best))
        if sum(entry.cell_length + 3 for entry in entries) <= width:
            return entries
    parents = [
        _entry(line, other.colour, formatting.shortened(other.name, 7), "")
        for other in others if not other.sign
    ]  # fmt: skip
    letters = [_entry(other.sign, other.colour, "", "") for other in others if other.sign]
    return [*parents, Content(" ").join(letters)] if letters else parents


def cursor_line(state: RunState, view: ChartView, width: int) -> Content:
    """Return the values at the cursor, in place of the legend."""
    step = view.cursor
    assert step is not None
    train, validation, unit = state.train_loss, state.val_loss, view.unit
    axis = Axis(state, view.x_axis)
    where = f"step {step:,}"
    if axis.kind != "step":
        where += f" · {axis.label(axis.place(step))}"
    entries = [Content.styled(where, "bold $chart-cursor")]
    if len(train):
        index = nearest(train.steps, step)
        kept = SMOOTHING[view.smoothing]
        entries.append(_reading("chart-train", "train", in_words(train.values[index], unit)))
        if kept:
            smoothed = smooth(train.values[: index + 1], kept)[-1]
            entries.append(_reading("chart-train", "smooth", in_words(smoothed, unit)))
    if len(validation):
        index = nearest(validation.steps, step)
        value, at = in_words(validation.values[index], unit), validation.steps[index]
        entry = _reading("chart-validation", "validation", value)
        entry = entry if at == step else Content.assemble(entry, f" at {at:,}")
        entries.insert(2, entry)
    for name, series in (("rate", state.learning_rate), ("gradient", state.gradient_norm)):
        if len(series):
            value = formatting.rate(series.values[nearest(series.steps, step)])
            entries.append(_reading("quiet", name, value))
    return joined(entries, width, "  ", skip=True)


def _reading(colour: str, name: str, value: str) -> Content:
    return Content.assemble((f"{name} ", f"${colour}"), (value, "bold"))


def joined(
    entries: Sequence[Content], width: int, gap: str = "   ", *, skip: bool = False
) -> Content:
    """Return the entries side by side, as many as fit; `skip` goes on behind one that does not."""
    line = entries[0] if entries else Content("")
    for entry in entries[1:]:
        if line.cell_length + len(gap) + entry.cell_length > width:
            if skip:
                continue
            break
        line = Content.assemble(line, gap, entry)
    return line


def alert_lines(found: Sequence[Alert], chosen: int) -> Content:
    """Return the chosen alert in words, and how many more there are."""
    alert = found[chosen]
    sign, colour = ("✗", "$error") if alert.level == "error" else ("!", "$warning")
    place = f"{chosen + 1} of {len(found)}  " if len(found) > 1 else ""
    return Content.assemble(
        (f"{sign} ", f"bold {colour}"),
        (place, "$quiet"),
        (alert.text, f"bold {colour}"),
        " " if alert.advice else "",
        alert.advice,
    )


def _entry(sign: str, colour: str, name: str, value: str) -> Content:
    return Content.assemble(
        (sign, f"bold ${colour}"),
        f" {name}" if name else "",
        (f" {value}" if value else "", "bold"),
    )


def log_lines(state: RunState, limit: int = 200) -> Content:
    """Return the newest lines of the log, oldest first."""
    colours = {"info": "", "good": "$success", "warning": "$warning", "error": "$error"}
    lines = [_log_line(line, colours[line.level]) for line in list(state.log)[-limit:]]
    return Content("\n").join(lines)


def progress_bar(share: float, width: int) -> Content:
    """Return a bar of `width` cells."""
    filled = int(min(1.0, max(0.0, share)) * width) if share == share else 0  # NaN is not itself
    return Content.assemble(("━" * filled, "$primary"), ("─" * (width - filled), "$line"))


def _log_line(line: LogLine, colour: str) -> Content:
    when = local_time(line.time, "%H:%M:%S")
    return Content.assemble((when, "$quiet"), " ", (safe(line.text, one_line=True), colour))


def _epochs(state: RunState) -> str:
    started = state.started
    if started is None or not state.characters_per_step or not started.characters:
        return MISSING
    seen = state.step * state.characters_per_step
    return formatting.times(seen / started.characters)


def _last(values: list[float]) -> float | None:
    return values[-1] if values else None
