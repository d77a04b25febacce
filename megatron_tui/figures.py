"""What the Training screen says in numbers and short lines, worked out from a run's state. Pure."""

from __future__ import annotations

import math
import time

from textual.content import Content

from megatron_model.run_state import LogLine, RunState
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.formatting import MISSING


def now_figures(state: RunState, *, short: bool = False) -> list[tuple[str, str]]:
    """Return (label, value) of everything measured, in the order of interest, for two columns."""
    train, validation = _last(state.train_loss.values), _last(state.val_loss.values)
    latest = validation if validation is not None else train
    bits = latest / math.log(2) if latest is not None else None
    best = MISSING
    if state.best_val_loss is not None and state.best_step is not None:
        best = formatting.loss(state.best_val_loss)
        if not short:
            best += f" at {state.best_step:,}"
    speed = _last(state.speed.values)
    step_seconds = None
    if speed and state.started and state.started.batch_size:
        step_seconds = state.started.batch_size * state.started.block_size / speed
    entropy = state.started.unigram_entropy if state.started else None
    return [
        ("loss", formatting.loss(train)),
        ("bits/char", f"{bits:.2f}" if bits is not None and math.isfinite(bits) else MISSING),
        ("validation", formatting.loss(validation)),
        ("best", best),
        ("speed", f"{formatting.count(speed)} char/s"),
        ("step", formatting.duration(step_seconds)),
        ("rate", formatting.rate(_last(state.learning_rate.values))),
        ("gradient", formatting.rate(_last(state.gradient_norm.values))),
        ("epoch", _epochs(state)),
        ("unigram", formatting.loss(entropy)),
    ]


def about_figures(state: RunState) -> list[tuple[str, str]]:
    """Return (label, value) of what the run is, for two columns."""
    started = state.started
    if started is None:
        return []
    return [
        ("model", formatting.count(started.parameters)),
        ("device", safe(started.device, one_line=True)),
        ("corpus", f"{formatting.count(started.characters)} chars"),
        ("vocab", formatting.exact(started.vocabulary_size)),
    ]


def memory_title(state: RunState) -> str:
    """Return the title of the memory panel, which says whose memory it is."""
    device = state.device
    if device is None:
        return "memory"
    name = safe(device.name, one_line=True)
    return f"memory, {name}" if device.kind == "gpu" else "memory, RAM of the trainer"


def memory_line(state: RunState) -> Content:
    """Return used, peak and total memory in words."""
    device = state.device
    if device is None:
        return Content("")
    parts = [
        (formatting.size(device.used), "$chart-memory bold"),
        (f"  peak {formatting.size(device.peak)}  of {formatting.size(device.total)}", "$quiet"),
    ]
    if device.utilization is not None:
        parts.append((f"  busy {formatting.percent(device.utilization)}", "$quiet"))
    return Content.assemble(*parts)


def loss_legend(state: RunState, smoothing: float, width: int) -> Content:
    """Return the legend over the loss chart, cut at whole entries."""
    train, validation = _last(state.train_loss.values), _last(state.val_loss.values)
    entries = [
        Content.assemble(("━ ", "$chart-train"), "train ", (formatting.loss(train), "bold")),
        Content.assemble(
            ("━ ", "$chart-validation"), "validation ", (formatting.loss(validation), "bold")
        ),
    ]
    if state.best_val_loss is not None and state.best_step is not None:
        entries.append(
            Content.assemble(
                ("◆ ", "$chart-validation"),
                "best ",
                (formatting.loss(state.best_val_loss), "bold"),
                f" at {state.best_step:,}",
            )
        )
    entries.append(Content.assemble((f"smoothing {smoothing:g}" if smoothing else "raw", "$quiet")))
    line = entries[0]
    for entry in entries[1:]:
        if line.cell_length + 3 + entry.cell_length > width:
            break
        line = Content.assemble(line, "   ", entry)
    return line


def log_lines(state: RunState, limit: int = 200) -> Content:
    """Return the newest lines of the log, oldest first."""
    colours = {"info": "", "good": "$success", "warning": "$warning", "error": "$error"}
    lines = [_log_line(line, colours[line.level]) for line in list(state.log)[-limit:]]
    return Content("\n").join(lines)


def progress_bar(share: float, width: int) -> Content:
    """Return a bar of `width` cells."""
    filled = min(width, int(share * width))
    return Content.assemble(("━" * filled, "$primary"), ("─" * (width - filled), "$line"))


def _log_line(line: LogLine, colour: str) -> Content:
    when = time.strftime("%H:%M:%S", time.localtime(line.time))
    return Content.assemble((when, "$quiet"), " ", (safe(line.text, one_line=True), colour))


def _epochs(state: RunState) -> str:
    started = state.started
    if started is None or not started.batch_size or not started.characters:
        return MISSING
    seen = state.step * started.batch_size * started.block_size
    return formatting.times(seen / started.characters)


def _last(values: list[float]) -> float | None:
    return values[-1] if values else None
