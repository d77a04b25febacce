"""The curves of a run for other programs: a table (CSV), or TensorBoard's event files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from megatron_model.events import schema as events
from megatron_model.events.schema import Event
from megatron_model.events.tensorboard import EventFile
from megatron_model.interop.history import read_history
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import write_asked_for
from megatron_model.util.text import safe

COLUMNS = {
    "step": "step",
    "time": "time [Unix s]",
    "elapsed": "elapsed [s]",
    "train_loss": "train_loss [nats/character]",
    "val_loss": "val_loss [nats/character]",
    "bits": "bits_per_character [bits]",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "speed": "speed [characters/s]",
    "memory": "memory [bytes]",
}
"""The columns of the table, and their titles with the unit."""

_MEASURED_HERE = ("learning_rate", "gradient_norm", "speed")
"""What a run that was imported may not have: its events say 0 then."""


def write_csv(folder: RunFolder, path: Path) -> int:
    """Write a row for each step that was reported or evaluated; return how many there are.

    Raises:
        RequestError: there is nothing to write, or the file cannot be written.
    """
    rows = list(_rows(read_history(folder)))
    if folder.read_imported():
        for name in _MEASURED_HERE:
            if not any(row.get(name) for row in rows):
                rows = [{**row, name: ""} for row in rows]
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows)
    write_asked_for(path, out.getvalue().encode())
    return len(rows)


def _rows(history: list[Event]) -> Iterator[dict[str, object]]:
    row: dict[str, object] = {}
    memory: int | None = None
    for event in history:
        if isinstance(event, events.DeviceSampled):
            memory = event.used
        if not isinstance(event, events.MetricsReported | events.Evaluated):
            continue
        if row and row["step"] != event.step:
            yield row
            row = {}
        row |= {"step": event.step, "time": event.time, "elapsed": event.elapsed_seconds}
        if memory is not None:  # measured by the clock, between two reports
            row["memory"], memory = memory, None
        if isinstance(event, events.Evaluated):
            row |= {"val_loss": event.val_loss, "bits": event.bits_per_character}
        else:
            row["train_loss"] = event.train_loss
            row["learning_rate"] = event.learning_rate
            row["gradient_norm"] = event.gradient_norm
            row["speed"] = event.tokens_per_second
    if row:
        yield row


def write_tensorboard(folder: RunFolder, out: Path) -> int:
    """Write one event file into a folder that has none; return how many events are in it.

    Raises:
        RequestError: there is nothing to write, the folder has event files, or cannot be written.
    """
    history = read_history(folder)
    try:
        if out.is_dir() and any("tfevents" in path.name for path in out.iterdir()):
            raise RequestError(
                f"{safe(str(out), one_line=True)} has event files already; TensorBoard would draw "
                "two runs as one. Name another folder."
            )
        file = EventFile(out, step=0, moment=history[0].time)
        try:
            for event in history:
                file.write(event)
        except OSError:
            file.path.unlink(missing_ok=True)
            raise
        finally:
            file.close()
    except OSError as error:
        raise _cannot_write(out, error) from None
    return len(history)


def _cannot_write(path: Path, error: OSError) -> RequestError:
    where = safe(str(error.filename or path), one_line=True)
    return RequestError(f"Cannot write {where}: {error.strerror or error}.")
