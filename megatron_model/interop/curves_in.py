"""Curves of others become a run: from a table (CSV) or TensorBoard's event files; no weights."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import tomlkit
from msgspec import Struct

from megatron_model.config.fields import RunConfig
from megatron_model.events import schema as events
from megatron_model.events.schema import Event, encode_event
from megatron_model.interop.event_files import read_scalars
from megatron_model.run.folder import CREATED, RUN_FILE, RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded, write_atomically
from megatron_model.util.text import plural, safe

MOST_BYTES = 64 << 20
"""Of a table: over a million rows."""

NAMES = {
    "step": "step steps global_step trainer_global_step training_step iteration iterations iter "
    "iters it update updates",
    "time": "time wall_time timestamp unix_time",
    "elapsed": "elapsed elapsed_seconds seconds relative_time relative runtime duration",
    "train_loss": "train_loss training_loss loss_train loss_training train_loss_step loss value "
    "train training train_loss_epoch",
    "val_loss": "val_loss validation_loss valid_loss eval_loss loss_val loss_validation loss_valid "
    "loss_eval val_loss_epoch test_loss dev_loss val validation",
    "learning_rate": "learning_rate lr train_learning_rate train_lr lr_adamw lr_adam lr_sgd",
    "gradient_norm": "gradient_norm grad_norm train_grad_norm train_gradient_norm",
    "speed": "speed characters_per_second tokens_per_second tokens_per_sec train_tokens_per_second",
}
"""What a column or a tag may be called, the likeliest first; as `_plain` writes them."""

_WORDS = {
    "train_loss": "train loss",
    "val_loss": "validation loss",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
}
_EMPTY = frozenset({"", "nan", "none", "null", "na", "n/a", "inf", "-inf", "infinity", "-infinity"})
_FIRST_DATE = 1e8
"""A larger time is a date in Unix seconds, a smaller one the seconds since the run began."""

Row = dict[str, float]


class Curves(Struct, frozen=True):
    """What was found: a row of values by step, what each was called there, and what was left."""

    rows: dict[int, Row]
    found: dict[str, str]
    unused: list[str]

    def sentence(self) -> str:
        """Say what was found, and under which names."""
        parts = []
        for name, there in self.found.items():
            if name in ("train_loss", "val_loss") or name in _WORDS or name == "speed":
                points = sum(name in row for row in self.rows.values())
                parts.append(f"{_WORDS.get(name, name)} from {there} ({plural(points, 'point')})")
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{', '.join(parts)}{unused}"


def read_csv(path: Path) -> Curves:
    """Read a table with a step column and a loss, by forgiving names.

    Raises:
        RequestError: it cannot be read, or a column or a cell is not what it has to be.
    """
    name = safe(str(path), one_line=True)
    try:
        text = read_bounded(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"Cannot read {name}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise RequestError(f"{name} is not a table in UTF-8.") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = csv.reader(io.StringIO(text), delimiter=delimiter)
        titles = next(lines, [])
        columns, unused = _known(titles)
        _check_found(columns, titles, name, "column")
        rows: dict[int, Row] = {}
        for cells in lines:
            row = {
                column: number
                for column, place in columns.items()
                if place < len(cells)
                and (number := _number(cells[place], delimiter, f"{name}, line {lines.line_num}"))
                is not None
            }
            step = row.pop("step", None)
            if step is None:
                continue
            if not 0 <= step < 2**62 or step != int(step):
                raise RequestError(f"{name}, line {lines.line_num}: {step:g} cannot be a step.")
            rows.setdefault(int(step), {}).update(row)
    except csv.Error as error:
        raise RequestError(f"{name} is not a table: {error}.") from None
    found = {column: _shown(titles[place]) for column, place in columns.items()}
    return Curves(rows, found, unused)


def read_tensorboard(folder: Path) -> Curves:
    """Read the event files of one run.

    Raises:
        RequestError: there are none that can be read, or no loss is in them.
    """
    scalars = read_scalars(folder)
    columns, unused = _known(list(scalars), ignored=("step", "time", "elapsed"))
    _check_found(columns, list(scalars), safe(str(folder), one_line=True), "scalar", "step")
    rows: dict[int, Row] = {}
    tags = list(scalars)
    for column, place in columns.items():
        for step, (moment, value) in scalars[tags[place]].items():
            if 0 <= step < 2**62 and math.isfinite(value):
                rows.setdefault(step, {}).update({column: value, "time": moment})
    return Curves(rows, {column: _shown(tags[place]) for column, place in columns.items()}, unused)


def _known(titles: list[str], ignored: Iterable[str] = ()) -> tuple[dict[str, int], list[str]]:
    """Return the place of each column that is known by name, and the titles that are not used."""
    plain = [_plain(title) for title in titles]
    places: dict[str, int] = {}
    for column, names in NAMES.items():
        if column not in ignored:
            known = [plain.index(name) for name in names.split() if name in plain]
            if known:
                places[column] = known[0]
    unused = [_shown(title) for i, title in enumerate(titles) if i not in places.values()]
    return places, unused


def _plain(title: str) -> str:
    """Return a title without its unit and what trackers put before it, in small letters."""
    title = re.sub(r"[\[(][^\])]*[\])]", "", title.rpartition(" - ")[2])
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", title)
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")


def _shown(title: str) -> str:
    return f'"{safe(title, one_line=True)[:60]}"'


def _check_found(
    columns: dict[str, int], titles: list[str], name: str, kind: str, given: str = ""
) -> None:
    there = ", ".join(map(_shown, titles[:12])) or "none"
    if "step" not in columns and not given:
        raise RequestError(f'{name} has no column of steps; call it "step". There are {there}.')
    if "train_loss" not in columns and "val_loss" not in columns:
        raise RequestError(
            f'{name} has no {kind} with a loss; call it "train_loss" or "val_loss". There are '
            f"{there}."
        )


def _number(cell: str, delimiter: str, where: str) -> float | None:
    """Return a cell's number; None where it is empty or not finite."""
    text = cell.strip()
    if text.lower() in _EMPTY:
        return None
    try:
        number = float(text.replace(",", ".") if delimiter == ";" else text)
    except ValueError:
        raise RequestError(f"{where}: {_shown(cell)} is not a number.") from None
    return number if math.isfinite(number) else None


def import_curves(runs_dir: Path, name: str, source: Path, curves: Curves) -> RunFolder:
    """Make a run of curves that were read from `source`.

    Raises:
        RequestError: the name cannot be taken, there is no point, or it cannot be written.
    """
    place = safe(str(source.absolute()), one_line=True)
    log = b"".join(map(encode_event, _events(name, place, curves)))
    folder = RunFolder.create(runs_dir, name, RunConfig())
    with folder.removed_unless_written():
        _describe(folder, place)
        write_atomically(folder.events_path, log)
    return folder


def _describe(folder: RunFolder, place: str) -> None:
    """Write run.toml without settings: those of the run are not known."""
    document = tomlkit.document()
    about = tomlkit.table()
    about.add("name", folder.name)
    about.add("created", time.strftime(CREATED, time.gmtime()))
    about.add("identity", folder.read_identity())
    about.add("imported", place)
    document.add("run", about)
    write_atomically(folder.path / RUN_FILE, tomlkit.dumps(document).encode())


def _events(name: str, place: str, curves: Curves) -> Iterator[Event]:
    rows = {step: row for step, row in sorted(curves.rows.items()) if _has_loss(row)}
    if not rows:
        raise RequestError(f"{place} has no step with a loss.")
    clock = _clock(rows)
    began = clock[next(iter(rows))][0] - clock[next(iter(rows))][1]
    last = max(rows)
    yield events.RunStarted(
        step=0,
        time=began,
        name=name,
        corpus=f"imported from {place}",
        characters=0,
        vocabulary_size=0,
        parameters=0,
        steps=last,
        device="elsewhere",
    )
    yield events.Notice(
        step=0,
        time=began,
        text=f"Imported {curves.sentence()}. A loss counts by what its run called a token.",
    )
    known: Row = {}
    for step, row in sorted(curves.rows.items()):
        known |= row  # a rate may be reported at other steps than the loss
        if step not in rows:
            continue
        moment, elapsed = clock[step]
        if "train_loss" in row:
            yield events.MetricsReported(
                step=step,
                time=moment,
                train_loss=row["train_loss"],
                learning_rate=known.get("learning_rate", 0.0),
                gradient_norm=known.get("gradient_norm", 0.0),
                tokens_per_second=known.get("speed", 0.0),
                elapsed_seconds=elapsed,
            )
        if "val_loss" in row:
            yield events.Evaluated(
                step=step,
                time=moment,
                val_loss=row["val_loss"],
                bits_per_character=row["val_loss"] / math.log(2),
                elapsed_seconds=elapsed,
            )
    moment, elapsed = clock[last]
    yield events.RunFinished(step=last, time=moment, reason="completed", elapsed_seconds=elapsed)


def _has_loss(row: Row) -> bool:
    return "train_loss" in row or "val_loss" in row


def _clock(rows: dict[int, Row]) -> dict[int, tuple[float, float]]:
    """Return for each step its moment in Unix seconds, and the seconds since the run began.

    What is not known stands still: a moment is now then, and no time has passed.
    """
    now = time.time()
    moment, elapsed, began = 0.0, 0.0, None
    clock = {}
    for step, row in rows.items():
        stamp = row.get("time")
        if stamp is not None and abs(stamp) > 1e11:
            stamp /= 1000  # milliseconds
        dated = stamp is not None and stamp > _FIRST_DATE
        passed = row.get("elapsed", None if dated else stamp)
        if dated and stamp is not None:
            moment = max(moment, stamp)
            began = moment - (passed or 0.0) if began is None else began
            passed = moment - began if passed is None else passed
        elapsed = max(elapsed, passed or 0.0)
        clock[step] = moment, elapsed
    if began is None:
        clock = {step: (now - elapsed + seconds, seconds) for step, (_, seconds) in clock.items()}
    return clock
