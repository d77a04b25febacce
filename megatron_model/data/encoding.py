"""Which encoding a text is in, and what to say when it is in none.

Knows bytes and open files; what a corpus is, is said in corpus.py.
"""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO

from msgspec import Struct

from megatron_model.errors import RequestError, nearest

AUTO = "auto"

BYTE_ORDER_MARKS = (
    # UTF-32 before UTF-16: the little-endian mark of one begins with that of the other.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Marks at the start of a file, with the codec that reads the rest and drops the mark."""

_COMMON = (
    "utf-8",
    "utf-16",
    "utf-32",
    "cp1252",
    "latin-1",
    "shift_jis",
    "gb18030",
    "big5",
    "koi8-r",
)
_STRICT_UNICODE = ("utf-8", "utf-16", "utf-32")
"""Beginnings of codec names whose decoders never give lone surrogates."""

_IN_WIDE_USE = ("cp1252", "latin_1", "cp1251", "euc_jp", "gb18030")

_WINDOW = 1 << 16
"""Bytes around a damaged place that are read to guess the encoding."""


class EncodingGuess(Struct, frozen=True):
    """What an undecodable text is likely to be in; `confidence` is between 0 and 1."""

    encoding: str
    confidence: float


def canonical_encoding(encoding: str) -> str:
    """Return the one name of an encoding, or ``auto``.

    Raises:
        RequestError: Python has no such text encoding.
    """
    wanted = encoding.strip().lower()
    if wanted == AUTO:
        return AUTO
    try:
        info = codecs.lookup(wanted)
        # base64, rot13 and their like are codecs too, but none of text.
        if info._is_text_encoding and info.incrementaldecoder is not None:
            return info.name
    except (LookupError, ValueError):
        pass
    raise RequestError(
        f'data.encoding is "{encoding}", which is no encoding known here; use auto, utf-8, '
        "cp1252 or another of Python's." + nearest(wanted, (AUTO, *_COMMON))
    )


def codec_for(head: bytes, encoding: str) -> str:
    """Return the codec for a file that begins with `head`; `encoding` is a canonical name."""
    if encoding != AUTO:
        return encoding
    for mark, codec in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return codec
    return "utf-8"


class TextDecoder:
    """Bytes to text in pieces, every line end made ``\\n`` as ``open`` does it, unless told not to.

    Strict: what does not decode raises `UnicodeError`.
    """

    def __init__(self, codec: str, translate_line_ends: bool = True) -> None:
        self.codec = codec
        self.is_utf8 = codec in ("utf-8", "utf-8-sig")
        self._decoder = codecs.getincrementaldecoder(codec)()
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._translates = translate_line_ends
        self._may_give_surrogates = not codec.startswith(_STRICT_UNICODE)

    def decode(self, data: bytes, *, final: bool) -> str:
        """Return the text that is whole after `data`; `final` says that nothing follows."""
        text = self._decoder.decode(data, final)
        if self._may_give_surrogates and not text.isascii():
            text.encode("utf-8")  # A lone surrogate raises; no later stage could store it.
        if not self._translates:
            return text
        # Searching the bytes for a carriage return is many times faster than searching the text;
        # where there is none, and none is held back (the state), the text is finished.
        if self.is_utf8 and b"\r" not in data and not self._newlines.getstate()[1]:
            return text
        return self._newlines.decode(text, final=final)


def guess_encoding(sample: bytes) -> EncodingGuess | None:
    """Guess the encoding of bytes that are not UTF-8, or return None."""
    from charset_normalizer import from_bytes

    zero_even, zero_odd = sample[::2].count(0), sample[1::2].count(0)
    if max(zero_even, zero_odd) > len(sample) / 8:
        # Half of Latin UTF-16 is zeros; without a mark charset-normalizer gives up on it.
        name = "utf-16-le" if zero_odd > zero_even else "utf-16-be"
        return EncodingGuess(name, abs(zero_odd - zero_even) / max(zero_odd, zero_even))
    matches = from_bytes(sample)
    best = matches.best()
    if best is None or best.encoding in ("ascii", "utf_8"):
        return None
    rank = (best.chaos, best.coherence)
    tied = [match for match in matches if (match.chaos, match.coherence) == rank]
    equal = {name for match in tied for name in match.could_be_from_charset}
    # Where code pages fit equally well, the one in wide use is by far the likeliest.
    name = next((name for name in _IN_WIDE_USE if name in equal), best.encoding)
    return EncodingGuess(codecs.lookup(name).name, 1 - best.chaos)


def line_at(stream: BinaryIO, codec: str, offset: int) -> int:
    """Return the number, from 1, of the line on which byte `offset` of an open file stands."""
    decoder = codecs.getincrementaldecoder(codec)(errors="replace")
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    stream.seek(0)
    line, left = 1, offset
    while left > 0 and (data := stream.read(min(left, 1 << 20))):
        left -= len(data)
        line += newlines.decode(data).count("\n")
    return line


class UndecodableError(RequestError):
    """A file has a byte that its encoding has no character for."""

    def __init__(self, label: str, stream: BinaryIO, codec: str, offset: int) -> None:
        """Look at byte `offset` of an open file, and around it, for what to say and to advise."""
        self.label = label
        self.offset = offset
        self.line = line_at(stream, codec, offset)
        self.encoding = codec.removesuffix("-sig")
        sample = window_around(stream, offset)
        # Where the text around the byte is UTF-8, it is not the encoding that is wrong.
        self.is_damaged = self.encoding == "utf-8" and _mostly_utf8(sample)
        self.guess = None if self.is_damaged else guess_encoding(sample)
        stream.seek(offset)
        byte = stream.read(1)
        super().__init__(self._message(f"byte 0x{byte[0]:02X}" if byte else "the end of the file"))

    def _message(self, what: str) -> str:
        found = (
            f"{self.label} is not valid {self.encoding}: {what} at offset {self.offset:,} "
            f"(line {self.line:,}) does not fit"
        )
        if self.is_damaged:
            return f"{found}, though the text around it does; repair that line."
        if self.guess is None or self.guess.encoding == self.encoding:
            return f"{found}; save the text as UTF-8, or name its encoding in data.encoding."
        name = self.guess.encoding
        return f"{found}; it looks like {name}, so try --set data.encoding={name}."


def binary(label: str, stream: BinaryIO, codec: str, offset: int) -> RequestError:
    """Say that an open file has a NUL at byte `offset` and so is no text."""
    line = line_at(stream, codec, offset)
    found = f"{label} looks binary: it has a NUL byte at offset {offset:,} (line {line:,})"
    guess = guess_encoding(window_around(stream, offset))
    if guess is not None and guess.encoding.startswith("utf-16") and codec == "utf-8":
        return RequestError(
            f"{found}; if it is UTF-16, try --set data.encoding={guess.encoding}, "
            "else choose a text."
        )
    return RequestError(f"{found}; choose a text, or remove the NUL bytes.")


def window_around(stream: BinaryIO, offset: int) -> bytes:
    """Return enough bytes around byte `offset` of an open file to guess its encoding."""
    start = max(0, offset - _WINDOW // 2) & ~3  # Whole code units of UTF-16 and UTF-32.
    stream.seek(start)
    return stream.read(_WINDOW)


def _mostly_utf8(sample: bytes) -> bool:
    """Tell damaged UTF-8, whose other multi-byte characters are whole, from another encoding."""
    text = sample.decode("utf-8", errors="replace")
    damaged = text.count("\ufffd")
    characters = sum(character > "\x7f" for character in text) - damaged
    return characters > damaged
