"""Read the scalars in TensorBoard's event files, of any program."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from megatron_model.events.tensorboard import read_records
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

MOST_BYTES = 1 << 30
"""Of all files together; curves alone are a thousandth of that."""
MOST_POINTS = 5_000_000
"""Of all curves together, lest they take the memory of the machine."""
_LONGEST_SCALAR = 1 << 16
"""Bytes of a message that is looked into: longer ones are pictures and graphs."""

Scalars = dict[str, dict[int, tuple[float, float]]]
"""By tag and step: the moment (Unix seconds), and the value."""


def read_scalars(folder: Path) -> Scalars:
    """Return every scalar; a step that came again has its later value, torn files their whole part.

    Raises:
        RequestError: there are no event files, those of several runs, or they cannot be read.
    """
    name = safe(str(folder), one_line=True)
    scalars: Scalars = {}
    try:
        files = _files(folder)
        if sum(path.stat().st_size for path in files) > MOST_BYTES:
            raise RequestError(f"The event files in {name} are longer than {MOST_BYTES:,} bytes.")
        for path in files:
            with path.open("rb") as file:
                for message, _ in read_records(file, _LONGEST_SCALAR):
                    _take(message, scalars)
            if sum(map(len, scalars.values())) > MOST_POINTS:
                raise RequestError(f"The event files in {name} have over {MOST_POINTS:,} points.")
    except OSError as error:
        where = safe(str(error.filename or folder), one_line=True)
        raise RequestError(f"Cannot read {where}: {error.strerror}.") from None
    return scalars


def _files(folder: Path) -> list[Path]:
    """Return the event files of one run in the order they were written."""
    if folder.is_file():
        return [folder]
    by_run: dict[Path, list[Path]] = {}
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        found = sorted(p for p in place.iterdir() if "tfevents" in p.name and p.is_file())
        if found:
            by_run[place] = found
    name = safe(str(folder), one_line=True)
    if not by_run:
        raise RequestError(f"{name} has no event files of TensorBoard (*tfevents*).")
    if folder not in by_run and len(by_run) > 1:
        names = ", ".join(safe(path.name, one_line=True) for path in by_run)
        raise RequestError(f"{name} has several runs: {names}. Name the folder of one.")
    return by_run.get(folder) or next(iter(by_run.values()))


def _take(message: bytes, scalars: Scalars) -> None:
    """Add what a message (``tensorflow.Event``) says; one that is damaged says nothing."""
    moment, step, summaries, restarted = 0.0, 0, [], False
    try:
        for number, value in _fields(message):
            match number, value:
                case 1, bytes():
                    (moment,) = struct.unpack("<d", value)
                case 2, int():
                    step = value
                case 5, bytes():
                    summaries.append(value)
                case 7, bytes():  # the log of a session: 1 is its start
                    restarted = (1, 1) in _fields(value)
                case _:
                    pass
        if restarted:
            for points in scalars.values():
                for later in [at for at in points if at >= step]:
                    del points[later]
        for summary in summaries:
            for number, value in _fields(summary):
                if number == 1 and isinstance(value, bytes):
                    tag, scalar = _scalar(value)
                    if tag and scalar is not None:
                        scalars.setdefault(tag, {})[step] = moment, scalar
    except (struct.error, IndexError, UnicodeDecodeError):
        return


def _scalar(summary: bytes) -> tuple[str, float | None]:
    """Return a value's tag and number (``Summary.Value``); None if it holds something else."""
    tag, scalar = "", None
    for number, value in _fields(summary):
        match number, value:
            case 1, bytes():
                tag = value.decode()
            case 2, bytes():
                (scalar,) = struct.unpack("<f", value)
            case 8, bytes():
                scalar = _one_number(value)
            case _:
                pass
    return tag, scalar


def _one_number(tensor: bytes) -> float | None:
    """Return what a tensor of one float or double holds (``TensorProto``)."""
    parts = dict(_fields(tensor))
    layout = {1: "<f", 2: "<d"}.get(int(parts.get(1, 0))) if not parts.get(3) else None
    if layout is None:
        return None
    for number in (4, 5, 6):  # as raw bytes, as floats, as doubles
        value = parts.get(number)
        if isinstance(value, bytes) and len(value) == struct.calcsize(layout):
            return float(struct.unpack(layout, value)[0])
    return None


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield a protobuf message's fields: numbers as they are, everything else as its bytes.

    Raises:
        IndexError: it ends in the middle of one; `struct.error`: it has a kind there is not.
    """
    place = 0

    def varint() -> int:
        nonlocal place
        number, shift = 0, 0
        while True:
            byte = data[place]
            place += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise struct.error("a number that is too long")

    while place < len(data):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
                continue
            case 1:
                length = 8
            case 5:
                length = 4
            case 2:
                length = varint()
            case _:
                raise struct.error("an unknown kind of field")
        if place + length > len(data):
            raise IndexError
        yield key >> 3, data[place : place + length]
        place += length
