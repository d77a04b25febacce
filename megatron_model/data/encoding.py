"""Which encoding a text is in, and what to say when it is in none.

Knows bytes and open files; what a corpus is, is said in corpus.py.
"""

from __future__ import annotations

import codecs
import io
import re
import threading
from collections.abc import Callable
from typing import BinaryIO

from msgspec import Struct

from megatron_model.config.fields import FIRST_RULES, PRESENT_RULES, Errors
from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.text import safe

AUTO = "auto"

BYTE_ORDER_MARK = "\ufeff"

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
        f'data.encoding is "{encoding}", which is not a known encoding; use auto, utf-8, '
        "cp1252 or another of Python's." + nearest(wanted, (AUTO, *_COMMON))
    )


def codec_for(head: bytes, encoding: str, rules: int = PRESENT_RULES) -> str:
    """Return the codec for a file that begins with `head`; `encoding` is a canonical name.

    The mark of UTF-8 is three bytes that begin no text of any other encoding: such a file among
    others whose encoding was named is still UTF-8.
    """
    if encoding != AUTO:
        marked = rules > FIRST_RULES and head.startswith(codecs.BOM_UTF8)
        return "utf-8-sig" if marked and not encoding.startswith("utf-8") else encoding
    for mark, codec in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return codec
    return "utf-8"


_passed = threading.local()
"""How many places the decoder in this thread has skipped; its handler knows nothing else."""


def _passing(instead: str) -> str:
    """Return the name of an error handler of codecs that counts, and puts `instead` in place."""

    def handle(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        _passed.places += 1
        return instead, error.end

    name = f"megatron.{len(instead)}"
    codecs.register_error(name, handle)
    return name


_HANDLERS = {"stop": "strict", "replace": _passing("\ufffd"), "drop": _passing("")}
_ODD = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f\ue000-\uf8ff]")
_SURROGATES, _NUL = re.compile("[\ud800-\udfff]"), re.compile("\0")


class TextDecoder:
    """Bytes to text in pieces, every line end made ``\\n`` as ``open`` does it, unless told not to.

    What does not decode raises `UnicodeError`, is replaced by U+FFFD, or dropped; then so is NUL.
    """

    def __init__(
        self, codec: str, translate_line_ends: bool = True, errors: Errors = "stop"
    ) -> None:
        self.codec = codec
        self.errors = errors
        self.damaged = 0
        """Places that were replaced or dropped so far."""
        self.is_utf8 = codec in ("utf-8", "utf-8-sig")
        self._decoder = codecs.getincrementaldecoder(codec)(_HANDLERS[errors])
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._translates = translate_line_ends
        self._may_give_surrogates = not codec.startswith(_STRICT_UNICODE)

    def decode(self, data: bytes, *, final: bool) -> str:
        """Return the text that is whole after `data`; `final` says that nothing follows."""
        _passed.places = 0
        text = self._decoder.decode(data, final)
        self.damaged += _passed.places
        if self._may_give_surrogates and not text.isascii():
            if self.errors == "stop":
                text.encode("utf-8")  # A lone surrogate raises; no later stage could store it.
            else:
                text = self._without(_SURROGATES, text)
        if self.errors != "stop" and "\0" in text:
            text = self._without(_NUL, text)
        if not self._translates:
            return text
        # Searching the bytes for a carriage return is many times faster than searching the text;
        # where there is none, and none is held back (the state), the text is finished.
        if self.is_utf8 and b"\r" not in data and not self._newlines.getstate()[1]:
            return text
        return self._newlines.decode(text, final=final)

    def _without(self, wrong: re.Pattern[str], text: str) -> str:
        text, count = wrong.subn("\ufffd" if self.errors == "replace" else "", text)
        self.damaged += count
        return text


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


class Damage(Struct, frozen=True):
    """What a look through a whole corpus found where one file of it does not decode."""

    places: int
    """Where the bytes are invalid, in all files."""
    files: int
    """How many files have such places."""
    garbled: int = 0
    """Files that decode as it is, and would be read wrongly in the encoding that was guessed."""
    places_in_guess: int = 0
    """Where the damaged files do not decode in the encoding that was guessed either."""
    complete: bool = True
    """Whether all of a very large corpus was looked at."""


class UndecodableError(RequestError):
    """A file has a byte that its encoding has no character for."""

    def __init__(
        self,
        label: str,
        stream: BinaryIO,
        codec: str,
        offset: int,
        look: Callable[[str | None], Damage],
        *,
        unmarked: bool = False,
    ) -> None:
        """Look at byte `offset` of an open file, and around it, for what to say and to advise.

        Args:
            label: path of the file.
            stream: the open file.
            codec: what it was read in.
            offset: of the first byte that does not fit.
            look: looks through the whole corpus, with the encoding that is to be advised, if any.
            unmarked: whether it is the byte-order mark that is missing.
        """
        self.label = label
        self.offset = offset
        self.line = line_at(stream, codec, offset)
        self.encoding = codec.removesuffix("-sig")
        sample = window_around(stream, offset)
        # Where the text around the byte decodes, it is not the encoding that is wrong.
        self.is_damaged = not unmarked and _mostly_whole(sample, self.encoding)
        guess = None if self.is_damaged else guess_encoding(sample)
        if guess is not None and (guess.encoding == self.encoding or _is_odd(sample, guess)):
            guess = None
        self.damage = look(guess.encoding if guess is not None else None)
        # Advice that would garble other files is not given.
        self.guess = None if self.damage.garbled else guess
        stream.seek(offset)
        byte = stream.read(1)
        what = f"byte 0x{byte[0]:02X}" if byte else "the end of the file"
        found = (
            f"{safe(label, one_line=True)} is not valid {self.encoding}: {what} at offset "
            f"{offset:,} (line {self.line:,}) does not fit"
        )
        if self.is_damaged and is_shifted(stream, self.encoding):
            found += ", and its bytes are shifted by one from some place before on; repair it"
            self.found = found
            super().__init__(f"{found}, or choose another text.")
            return
        if self.is_damaged:
            found += ", though the text around it does"
        damage = self.damage
        if damage.places > 1:
            least = "" if damage.complete else "at least "
            within = f" in {damage.files:,} files" if damage.files > 1 else ""
            found += f"; there are {least}{damage.places:,} such places{within}"
        self.found = found
        """The sentence without its advice, for a caller with another one."""
        super().__init__(f"{found}; {_remedy(guess, damage, self.is_damaged)}.")


def _remedy(guess: EncodingGuess | None, damage: Damage, is_damaged: bool) -> str:
    """Return what helps; each advice was tried on the corpus."""
    go_on = "--set data.errors=replace (puts U+FFFD in place) or data.errors=drop"
    if is_damaged:
        what = "repair that line" if damage.places == 1 else "repair them"
        return f"{what}, or try {go_on}"
    if guess is None:
        return f"save the text as UTF-8, name its encoding in data.encoding, or try {go_on}"
    name = guess.encoding
    if damage.garbled:
        others = "another file is" if damage.garbled == 1 else f"{damage.garbled:,} others are"
        these = "it" if damage.files == 1 else f"the {damage.files:,} files that do not fit"
        return (
            f"it looks like {name}, but {others} not: make {these} UTF-8, as "
            f"iconv -f {name} -t utf-8 does"
        )
    if damage.places_in_guess:
        return (
            f"it looks like {name} with {damage.places_in_guess:,} damaged "
            f"{'place' if damage.places_in_guess == 1 else 'places'}, so repair it, or try "
            f"--set data.encoding={name} --set data.errors=drop"
        )
    return f"it looks like {name}, so try --set data.encoding={name}, or try {go_on}"


def binary(
    label: str,
    stream: BinaryIO,
    codec: str,
    offset: int,
    look: Callable[[str | None], Damage],
) -> RequestError:
    """Say that an open file has a NUL at byte `offset` and so is not text; see UndecodableError."""
    line = line_at(stream, codec, offset)
    found = (
        f"{safe(label, one_line=True)} looks binary: it has a NUL byte at offset {offset:,} "
        f"(line {line:,})"
    )
    sample = window_around(stream, offset)
    guess = guess_encoding(sample)
    if guess is not None and guess.encoding.startswith("utf-16") and codec == "utf-8":
        if is_shifted(stream, guess.encoding):
            return RequestError(
                f"{found}; if it is UTF-16, its bytes are shifted by one from some place on: "
                "repair it, or choose another text."
            )
        return RequestError(
            f"{found}; if it is UTF-16: {_remedy(guess, look(guess.encoding), False)}."
        )
    if sample.count(0) * 100 < len(sample) and _mostly_whole(sample, codec.removesuffix("-sig")):
        return RequestError(
            f"{found}; remove the NUL bytes, or skip them with --set data.errors=drop."
        )
    return RequestError(f"{found}; choose a text, or remove the NUL bytes.")


def window_around(stream: BinaryIO, offset: int) -> bytes:
    """Return enough bytes around byte `offset` of an open file to guess its encoding."""
    start = max(0, offset - _WINDOW // 2) & ~3  # Whole code units of UTF-16 and UTF-32.
    stream.seek(start)
    return stream.read(_WINDOW)


def is_shifted(stream: BinaryIO, encoding: str) -> bool:
    """Whether a byte too many or too few moved the rest of a file in UTF-16 by one.

    The zeros of Latin letters are on the other side then. What was read of it would be garbage
    without being invalid, so that no decoder notices.
    """
    if not encoding.startswith("utf-16"):
        return False
    size = stream.seek(0, io.SEEK_END)
    length = min(4096, size // 2) & ~1
    sides = []
    for start in (0, (size - length) & ~1):
        stream.seek(start)
        sample = stream.read(length)
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if max(even, odd) < 2 * min(even, odd) + 8:
            return False  # hardly a Latin text: nothing can be said
        sides.append(even > odd)
    return sides[0] != sides[1]


def _is_odd(sample: bytes, guess: EncodingGuess) -> bool:
    """Whether a guess finds what no text has: controls, or characters for private use.

    A stray byte in a text of nothing but ASCII fits some code page in any case.
    """
    return bool(_ODD.search(sample.decode(guess.encoding, errors="ignore")))


def _mostly_whole(sample: bytes, codec: str) -> bool:
    """Tell a damaged text, whose other characters beyond ASCII are whole, from another encoding."""
    text = sample.decode(codec, errors="replace")
    damaged = text.count("\ufffd")
    if codec != "utf-8":
        # Every byte of a small code page may be some character, so that this says nothing there.
        return codec.startswith(_STRICT_UNICODE) and damaged * 50 <= len(text)
    characters = sum(character > "\x7f" for character in text) - damaged
    return characters > damaged
