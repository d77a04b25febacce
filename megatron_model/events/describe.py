"""What happened, in words: each sentence stands here once, for the screen, stderr and the hook.

An entry of the log on screen has its time beside it, a line on stderr the step in a column of its
own, so that the two differ in form.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

from megatron_model.events import schema as events
from megatron_model.events.schema import Event

Level: TypeAlias = Literal["info", "good", "warning", "error"]


NAMED = 5
"""New characters that are named; more would push the rest off the line."""


class Words(NamedTuple):
    """An event in words."""

    level: Level
    text: str
    """What happened, without the step."""
    at: str = ""
    """`` at step 1,000`` where the text alone would leave the question open."""
    details: str = ""
    """What is worth saying where there is a whole line for it."""


def describe(event: Event) -> Words | None:
    """Return an event in words; None if it is no news by itself, as the report of some steps."""
    at = f" at step {event.step:,}"
    match event:
        case events.RunStarted():
            began = f"resumed{at}" if event.step else "training began"
            where = f"{event.devices} x {event.device}" if event.devices > 1 else event.device
            details = (
                f", {event.precision}, {event.characters:,} characters "
                f"({event.vocabulary_size:,} different)"
            )
            text = f"{began} on {where}, {event.parameters:,} parameters"
            return Words("info", text, details=details)
        case events.Evaluated():
            details = f" ({event.bits_per_character:.4f} bits per character)"
            return Words("info", f"validation {loss_text(event.val_loss)}", at, details)
        case events.CheckpointSaved():
            return Words("info", "checkpoint saved", at, f": {event.path}")
        case events.WeightsTakenOver():
            known, new = event.known_characters, event.new_characters
            named = ", ".join(map(repr, new[:NAMED]))
            more = ", ..." if len(new) > NAMED else ""
            text = f"weights of {event.model} at step {event.model_step:,} taken over"
            details = f": {known:,} characters known, {len(new):,} new"
            return Words("info", text, details=details + (f" ({named}{more})" if new else ""))
        case events.SettingChanged():
            name = event.key.removeprefix("training.").replace("_", " ")
            old, new = (
                f"{value:,}" if isinstance(value, int) else f"{value:g}"
                for value in (event.old, event.new)
            )
            return Words("info", f"{name} changed from {old} to {new}", at)
        case events.Notice():
            return Words("warning", event.text)
        case events.Alert():
            return Words("error", event.text)
        case events.RunPaused():
            return Words("info", "paused", at)
        case events.RunResumed():
            return Words("info", "training continues")
        case events.RunHandedOver():
            return Words("info", "handed over to another process", at)
        case events.RunFinished():
            seconds = f" ({event.elapsed_seconds:.1f} s)"
            match event.reason:
                case "completed":
                    text, at = f"finished: all {event.step:,} steps are done", ""
                case "budget":
                    text = "finished: the time budget is used up"
                case "patience":
                    text = "finished: the validation loss got no better for too long"
                case "target":
                    text = "finished: the validation loss is as low as it was to be"
                case "stopped":
                    text = "stopped"
            return Words("good", text, at, seconds)
        case events.RunFailed():
            return Words("error", event.error)
        case _:
            return None


def line_of(event: Event) -> str:
    """Return an event as one line for stderr; empty if there is nothing to say."""
    column = f"step {event.step:>7,}  "
    if isinstance(event, events.MetricsReported):
        return (
            f"{column}loss {event.train_loss:.4f}  "
            f"{event.tokens_per_second:,.0f} characters/s  {event.elapsed_seconds:.1f} s"
        )
    words = describe(event)
    match event, words:
        case _, None:
            return ""
        case events.RunFailed(), Words(text=text):
            return f"failed at step {event.step:,}: {text}"
        case ((events.RunStarted() | events.RunFinished()), Words(_, text, at, details)):
            return f"{text}{at}{details}"
        case _, Words(text=text, details=details):
            return f"{column}{text}{details}"


def resume_hint(event: events.RunFinished, saved: int | None) -> str:
    """Return how a run that was stopped can go on, as the end of a sentence.

    Args:
        event: its end.
        saved: step of its newest checkpoint.
    """
    if event.reason != "stopped":
        return ""
    if saved is None:
        return "; nothing was saved, so it can only start over"
    return "; it can be resumed" + ("" if saved == event.step else f" from step {saved:,}")


def loss_text(loss: float) -> str:
    """Return a loss as it is shown; a huge one would fill the line."""
    return f"{loss:.4f}" if abs(loss) < 1e6 else f"{loss:.4g}"
