"""The curves of a run as TensorBoard's event files: the format, and a file that grows with a run.

A file is a row of records, each a length and its checksum, a message and its checksum (TFRecord:
masked CRC-32C). A message is a protobuf ``tensorflow.Event`` with a scalar or a text in it. Both
are so small that writing them here takes less than any library that does would take to import.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from megatron_model.events import schema as events
from megatron_model.events.schema import Event
from megatron_model.util.fallback import do_without
from megatron_model.util.text import safe

FOLDER = "tensorboard"
"""Where a run keeps the files that are written while it trains, in its own folder."""
LONGEST_RECORD = 64 << 20
"""Bytes of a message; a length beyond that is damage."""

_NAME = re.compile(r"events\.out\.tfevents\.\d+\.megatron\.\d+")
_LARGEST_FLOAT = 3.4028234663852886e38
_MEBIBYTE = 1 << 20


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def masked_crc(data: bytes) -> int:
    """Return the checksum of a record's part: CRC-32C, turned and shifted as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _record(message: bytes) -> bytes:
    head = struct.pack("<Q", len(message))
    crcs = struct.pack("<I", masked_crc(head)), struct.pack("<I", masked_crc(message))
    return head + crcs[0] + message + crcs[1]


def _varint(number: int) -> bytes:
    number &= 2**64 - 1  # a negative one, which only a damaged log has, takes ten bytes
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _message(moment: float, step: int, body: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", moment) + b"\x10" + _varint(step) + body


def _scalar(tag: str, value: float) -> bytes:
    if abs(value) > _LARGEST_FLOAT:
        value = float("inf") if value > 0 else float("-inf")
    return _field(5, _field(1, _field(1, tag.encode()) + b"\x15" + struct.pack("<f", value)))


def _text(tag: str, text: str) -> bytes:
    plugin = _field(9, _field(1, _field(1, b"text")))
    one_string = b"\x08\x07" + _field(2, _field(2, b"\x08\x01"))
    tensor = _field(8, one_string + _field(8, text.encode(errors="replace")))
    return _field(5, _field(1, _field(1, f"{tag}/text_summary".encode()) + plugin + tensor))


def _bodies(event: Event) -> Iterator[bytes]:
    """Yield what an event adds to the curves."""
    match event:
        case events.MetricsReported():
            yield _scalar("loss/train", event.train_loss)
            yield _scalar("learning_rate", event.learning_rate)
            yield _scalar("gradient_norm", event.gradient_norm)
            yield _scalar("characters_per_second", event.tokens_per_second)
        case events.Evaluated():
            yield _scalar("loss/validation", event.val_loss)
            yield _scalar("bits_per_character", event.bits_per_character)
        case events.DeviceSampled():
            yield _scalar(f"memory_mib/{event.kind}", event.used / _MEBIBYTE)
        case events.SampleGenerated():
            # TensorBoard takes texts as Markdown: indented they stay as they were written.
            text = (event.prompt + event.text).replace("\n", "\n    ")
            yield _text("sample", f"    {text}")
        case _:
            pass


class EventFile:
    """A new event file in a folder, which is made; its curves begin behind `step`.

    Raises:
        OSError: it cannot be made; so do the methods where it cannot be written.
    """

    def __init__(self, folder: Path, *, step: int, moment: float) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        number = 0
        while True:
            # In the order of their names files are read: a second of the clock may have several.
            name = f"events.out.tfevents.{int(time.time()):010d}.megatron.{number:03d}"
            self.path = folder / name
            try:
                self._descriptor = os.open(self.path, flags, 0o600)
                break
            except FileExistsError:
                number += 1
        try:
            started = _message(moment, step + 1, _field(7, b"\x08\x01")) if step else b""
            version = _message(moment, 0, _field(3, b"brain.Event:2"))
            self._append(b"".join(_record(part) for part in (version, started) if part))
        except BaseException:
            self.close()
            raise

    def write(self, event: Event) -> None:
        """Add what an event says, whole or not at all."""
        data = b"".join(_record(_message(event.time, event.step, b)) for b in _bodies(event))
        if data:
            self._append(data)

    def _append(self, data: bytes) -> None:
        about = os.fstat(self._descriptor)
        if not about.st_nlink:
            raise OSError(errno.ENOENT, "it was deleted", str(self.path))
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if written < len(data):
            os.ftruncate(self._descriptor, about.st_size)  # a part would spoil what follows
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class CurveLog:
    """Writes along while a run trains; what it cannot write costs the curves, never the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: EventFile | None = None

    def record(self, event: Event) -> None:
        """Add an event to the curves; each start of the run goes on in a file of its own."""
        try:
            if isinstance(event, events.RunStarted):
                self.close()
                cut_back(self._folder, event.step)
                self._file = EventFile(self._folder, step=event.step, moment=event.time)
            elif self._file is not None:
                self._file.write(event)
        except OSError as error:
            where = safe(str(error.filename or self._folder), one_line=True)
            why = safe(error.strerror or str(error), one_line=True)
            do_without(
                f"Cannot write {where}: {why}. The curves for TensorBoard have a gap; the run "
                "trains on, and megatron-model export RUN --tensorboard DIR writes them whole."
            )

    def close(self) -> None:
        """Close the file that grows, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None


def cut_back(folder: Path, step: int) -> None:
    """Take from the files in `folder` what lies beyond `step`, and what a crash tore.

    A run that goes on from a checkpoint takes the steps after it again.

    Raises:
        OSError: a file cannot be read or cut.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not _NAME.fullmatch(path.name) or not stat.S_ISREG(path.lstat().st_mode):
            continue
        with open(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), "r+b") as file:
            end = 0
            for message, after in read_records(file):
                if _step_of(message) > step:
                    break
                end = after
            file.truncate(end)


def read_records(file: IO[bytes], longest: int = LONGEST_RECORD) -> Iterator[tuple[bytes, int]]:
    """Yield the messages of an event file and where each record ends, up to the first damage.

    Those of more than `longest` bytes are passed over unread.
    """
    end = 0
    while len(head := file.read(12)) == 12:
        length, crc = struct.unpack("<QI", head)
        if length > LONGEST_RECORD or crc != masked_crc(head[:8]):
            return
        if length > longest:
            end = file.seek(length + 4, os.SEEK_CUR)
            continue
        message, tail = file.read(length), file.read(4)
        if len(message) < length or len(tail) < 4:
            return
        if struct.unpack("<I", tail)[0] != masked_crc(message):
            return
        end += 16 + length
        yield message, end


def _step_of(message: bytes) -> int:
    """Return the step of a message as it is written here: time first, then step."""
    step = 0
    for place, byte in enumerate(message[10:20]):
        step |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            break
    return step - 2**64 if step >= 2**63 else step
