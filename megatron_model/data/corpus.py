"""What a corpus is, where it is found, and how its text is read, a piece at a time.

A corpus is a text file, a folder of text files, or a built-in text. It is never held whole: a file
of many gigabytes is read in constant memory. Nothing here imports numpy or torch.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from megatron_model.config.fields import FIRST_RULES, PRESENT_RULES, Errors
from megatron_model.data.encoding import (
    AUTO,
    BYTE_ORDER_MARK,
    BYTE_ORDER_MARKS,
    Damage,
    TextDecoder,
    UndecodableError,
    binary,
    canonical_encoding,
    codec_for,
)
from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.text import safe

BUILTIN_PREFIX = "builtin:"
BUILTIN_CORPORA: dict[str, str] = {
    "builtin:python-reference": "The Python language reference: English prose and grammar.",
    "builtin:python-stdlib": "The source of Python's standard library.",
}
"""Texts that every Python carries, so that the first run needs no download; name to description."""

CHUNK_CHARACTERS = 1 << 17
"""Large enough to hide Python's cost, small enough to stay in a processor's second-level cache."""

_TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".csv", ".html", ".py")
"""Files that are text whatever their bytes say: damage in them is reported, not skipped over."""

_SNIFFED = 8192

_LOOKED_THROUGH = 1 << 30
"""Bytes of a corpus that are looked through for what to advise; more would take minutes."""


class MissingCorpusError(RequestError):
    """There is nothing of this name; `neighbour` is what is called most like it, if anything."""

    def __init__(self, message: str, neighbour: Path | None) -> None:
        super().__init__(message)
        self.neighbour = neighbour


_ONE = {
    "links that lead nowhere": "link that leads nowhere",
    "links to what is read anyway": "link to what is read anyway",
    "links, as when this run began": "link, as when this run began",
    "neither files nor folders": "neither file nor folder",
}
"""How one of what was left out is called, where that is another word than for several."""


class LeftOut(Struct, frozen=True):
    """What a folder has and its corpus has not."""

    reason: str
    count: int
    example: str

    def __str__(self) -> str:
        """Return it in words, harmless to show."""
        more = " and others" if self.count > 1 else ""
        reason = self.reason if self.count > 1 else _ONE.get(self.reason, self.reason)
        return f"{self.count:,} {reason} ({safe(self.example, one_line=True)}{more})"


class Changes(Struct):
    """What reading by the present rules, and for the sake of damage, made of the bytes."""

    line_ends: int = 0
    """Put between files, where one was missing."""
    marks: int = 0
    """Byte-order marks within the text, left out."""
    damaged: int = 0
    """Places that do not decode, replaced or dropped."""


class CorpusSource(Struct, frozen=True):
    """A corpus that was found: which files it has, and how much there is to read."""

    spec: str
    """What was asked for."""
    location: str
    """What to ask for to find the same corpus from any working directory."""
    name: str
    files: tuple[Path, ...]
    size: int
    """Bytes."""
    text: str = ""
    """The whole text of a corpus that is in no file; `files` is then empty."""
    rules: int = PRESENT_RULES
    """By which it is found and read; see encoding.py."""
    left_out: tuple[LeftOut, ...] = ()

    def open_parts(self) -> Iterator[tuple[str, BinaryIO]]:
        """Open one part after another: what errors call it, and its bytes; the caller closes it."""
        if not self.files:
            yield self.spec, io.BytesIO(self.text.encode("utf-8"))
        for path in self.files:
            try:
                yield str(path), path.open("rb", buffering=0)
            except OSError as error:
                raise _unreadable(path, error) from None


def find_corpus(spec: str, rules: int = PRESENT_RULES) -> CorpusSource:
    """Find the corpus that `spec` names: a file, a folder, or ``builtin:...``.

    `rules` are those of the run that asks; see encoding.py.

    Raises:
        RequestError: there is none, or it has no text that can be read.
    """
    if spec.startswith(BUILTIN_PREFIX):
        return replace(_find_builtin(spec), rules=rules)
    if not spec.strip():
        raise RequestError("No corpus is named; give a text file, a folder or a built-in corpus.")
    path = Path(os.path.abspath(os.path.expanduser(spec)))
    try:
        spec.encode()
    except UnicodeEncodeError:
        raise RequestError(
            f"data.corpus is {safe(spec, one_line=True)}, whose name is not UTF-8 and cannot be "
            "kept in a run; rename it, or give a link to it."
        ) from None
    left_out: tuple[LeftOut, ...] = ()
    try:
        status = path.stat()
    except FileNotFoundError:
        hint, neighbour = _neighbour(path)
        raise MissingCorpusError(
            f'There is no file or folder "{safe(spec, one_line=True)}".{hint}', neighbour
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(spec, error) from None
    if stat.S_ISDIR(status.st_mode):
        files, left_out = _text_files(path, rules)
    elif stat.S_ISREG(status.st_mode):
        files = [(path, status.st_size)]
        _check_readable(path)
    else:
        raise RequestError(
            f"{safe(spec, one_line=True)} is neither a file nor a folder; choose a text file."
        )
    size = sum(size for _, size in files)
    if not files:
        others = f", only {', '.join(map(str, left_out))}" if left_out else ""
        raise RequestError(f"The folder {safe(spec, one_line=True)} has no text files{others}.")
    if not size:
        raise RequestError(
            f"{safe(spec, one_line=True)} is empty; choose a text with something in it."
        )
    return CorpusSource(
        spec=spec,
        location=str(path),
        name=(path.name if stat.S_ISDIR(status.st_mode) else path.stem) or "corpus",
        files=tuple(path for path, _ in files),
        size=size,
        rules=rules,
        left_out=left_out,
    )


def read_chunks(
    source: CorpusSource,
    encoding: str = AUTO,
    *,
    chunk_characters: int = CHUNK_CHARACTERS,
    translate_line_ends: bool = True,
    on_bytes: Callable[[bytes], object] | None = None,
    errors: Errors = "stop",
    changes: Changes | None = None,
) -> Iterator[tuple[str, int]]:
    """Yield the text in pieces, each with the bytes of the corpus read so far.

    Line ends become ``\\n`` as in ``open(path).read()``, or stay what they are. Under ``auto`` a
    byte-order mark decides the encoding of its file and is dropped; without one the text must be
    UTF-8. `on_bytes` is called with the raw bytes in order; `errors` says what becomes of those
    that do not decode, and `changes` is told of everything that is not as in the files.

    Raises:
        RequestError: a file cannot be read or decoded, or looks binary.
    """
    encoding = canonical_encoding(encoding)
    changes = Changes() if changes is None else changes
    done, end = 0, "\n"
    for label, stream in source.open_parts():
        with stream:
            raw = _read(label, stream, max(chunk_characters, 4))  # Room for a byte-order mark.
            codec = codec_for(raw, encoding, source.rules)
            decoder = TextDecoder(codec, translate_line_ends, errors)
            offset, begins = 0, True
            while True:
                damaged = decoder.damaged
                text = _decode(source, encoding, label, stream, decoder, raw, offset)
                changes.damaged += decoder.damaged - damaged
                offset += len(raw)
                if on_bytes is not None:
                    on_bytes(raw)
                if source.rules > FIRST_RULES and not text.isascii() and BYTE_ORDER_MARK in text:
                    changes.marks += text.count(BYTE_ORDER_MARK)
                    text = text.replace(BYTE_ORDER_MARK, "")
                if text:
                    if begins and source.rules > FIRST_RULES and end not in "\r\n":
                        text = "\n" + text
                        changes.line_ends += 1
                    begins, end = False, text[-1]
                    yield text, done + offset
                if not raw:
                    break
                raw = _read(label, stream, chunk_characters)
            done += offset


def preview(
    source: CorpusSource, encoding: str = AUTO, characters: int = 4000, errors: Errors = "stop"
) -> str:
    """Return the first `characters` of the corpus; raises as `read_chunks` does."""
    pieces: list[str] = []
    left = characters
    chunks = read_chunks(source, encoding, chunk_characters=max(characters, 1), errors=errors)
    for text, _ in chunks:
        pieces.append(text[:left])
        left -= len(pieces[-1])
        if left <= 0:
            break
    return "".join(pieces)


def estimated_characters(
    source: CorpusSource, encoding: str = AUTO, errors: Errors = "stop"
) -> int:
    """Return about how many characters the corpus has, from how many bytes its first ones take.

    Raises as `read_chunks` does.
    """
    for text, done in read_chunks(source, encoding, errors=errors):
        return max(1, round(len(text) * source.size / done))
    return 1


def codecs_of(source: CorpusSource, encoding: str = AUTO) -> list[str]:
    """Return the codec of each part, from its first bytes.

    Raises:
        RequestError: one cannot be read, or the encoding is unknown.
    """
    encoding = canonical_encoding(encoding)
    found = []
    for label, stream in source.open_parts():
        with stream:
            found.append(codec_for(_read(label, stream, 4), encoding, source.rules))
    return found


def _look_through(source: CorpusSource, encoding: str, guess: str | None) -> Damage:
    """Count where the corpus does not decode, and try what it was guessed to be in."""
    places = files = garbled = places_in_guess = looked = 0
    for label, stream in source.open_parts():
        with stream:
            raw = _read(label, stream, CHUNK_CHARACTERS)
            decoder = TextDecoder(codec_for(raw, encoding, source.rules), False, "drop")
            # A file with a mark of its own is read by that in any case.
            codec = codec_for(raw, guess, source.rules) if guess else decoder.codec
            trial = TextDecoder(codec, False, "drop")
            differs = False
            while True:
                try:
                    text = decoder.decode(raw, final=not raw)
                    tried = trial.decode(raw, final=not raw) if guess else text
                except UnicodeError:  # no mark where there must be one
                    decoder.damaged += 1
                    break
                differs = differs or text != tried
                if not raw:
                    break
                looked += len(raw)
                raw = _read(label, stream, CHUNK_CHARACTERS)
            places += decoder.damaged
            files += decoder.damaged > 0
            places_in_guess += trial.damaged if decoder.damaged else 0
            garbled += differs and not decoder.damaged
        if looked > _LOOKED_THROUGH:
            return Damage(places, files, garbled, places_in_guess, complete=False)
    return Damage(places, files, garbled, places_in_guess)


def _decode(
    source: CorpusSource,
    encoding: str,
    label: str,
    stream: BinaryIO,
    decoder: TextDecoder,
    raw: bytes,
    offset: int,
) -> str:
    """Decode `raw`, which begins at `offset` of the open file; the empty bytes are its end."""

    def look(guess: str | None) -> Damage:
        return _look_through(source, encoding, guess)

    # In UTF-8 a NUL is a zero byte, and looking for that is far cheaper than searching the text.
    if decoder.errors == "stop" and decoder.is_utf8 and (nul := raw.find(0)) >= 0:
        raise binary(label, stream, decoder.codec, offset + nul, look)
    try:
        text = decoder.decode(raw, final=not raw)
    except UnicodeError as error:
        where, unmarked = offset, not isinstance(error, UnicodeEncodeError)
        if isinstance(error, UnicodeDecodeError):
            # The decoder may have kept bytes from before; what it saw ends where `raw` ends.
            where += len(raw) - len(error.object) + error.start
            # Before Python 3.13 a mark that is missing was not an error of this type.
            unmarked = offset == 0 and _lacks_mark(raw, decoder.codec)
        raise UndecodableError(
            label, stream, decoder.codec, where, look, unmarked=unmarked
        ) from None
    if not decoder.is_utf8 and "\0" in text:
        raise binary(label, stream, decoder.codec, offset, look)
    return text


def _lacks_mark(head: bytes, codec: str) -> bool:
    """Whether a file in a codec that begins with a byte-order mark begins without one."""
    marks = [mark for mark, marked in BYTE_ORDER_MARKS if marked == codec != "utf-8-sig"]
    return bool(marks) and not head.startswith(tuple(marks))


def _read(label: str, stream: BinaryIO, size: int) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise _unreadable(label, error) from None


def _find_builtin(spec: str) -> CorpusSource:
    if spec not in BUILTIN_CORPORA:
        known = ", ".join(BUILTIN_CORPORA)
        hint = nearest(spec, BUILTIN_CORPORA)
        raise RequestError(f'There is no built-in corpus "{spec}"; there are {known}.{hint}')
    name = spec.removeprefix(BUILTIN_PREFIX)
    if name == "python-reference":
        return _python_reference(spec, name)
    import sysconfig

    folder = Path(sysconfig.get_path("stdlib"))
    files = tuple(sorted(folder.glob("*.py")))
    if not files:
        raise RequestError(f"This Python has no source files in {folder}; choose another corpus.")
    size = sum(path.stat().st_size for path in files)
    return CorpusSource(spec=spec, location=spec, name=name, files=files, size=size)


def _python_reference(spec: str, name: str) -> CorpusSource:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise RequestError(
            "This Python comes without its reference; use builtin:python-stdlib or another corpus."
        ) from None
    text = "".join(topics[key] for key in sorted(topics))
    size = len(text.encode("utf-8"))
    return CorpusSource(spec=spec, location=spec, name=name, files=(), size=size, text=text)


def _text_files(folder: Path, rules: int) -> tuple[list[tuple[Path, int]], tuple[LeftOut, ...]]:
    """Return the text files under `folder` with their sizes, in order, and what was left out."""
    walk = _Walk(folder, follows=rules > FIRST_RULES)
    found = list(walk.found.values())
    if rules > FIRST_RULES:
        found.sort(key=lambda item: _natural(item[0].relative_to(folder)))
    else:
        found.sort(key=lambda item: item[0].relative_to(folder).parts)
    return found, tuple(
        LeftOut(reason, len(paths), str(min(paths).relative_to(folder)))
        for reason, paths in walk.left_out.items()
    )


class _Walk:
    """Goes through a folder: first what is there itself, then what links lead to.

    Each file and folder is taken once, under its own name where it has one in the folder, so that
    no text comes twice and no loop of links is gone round.
    """

    def __init__(self, folder: Path, *, follows: bool) -> None:
        self.found: dict[str, tuple[Path, int]] = {}
        """By real path."""
        self.left_out: dict[str, list[Path]] = {}
        self._top = os.path.realpath(folder)
        self._entered: set[str] = set()
        self._links: list[Path] = []
        self._enter(folder)
        while follows and self._links:
            links, self._links = sorted(self._links, key=_natural), []
            for link in links:
                self._follow(link)
        for link in self._links:
            self._leave_out("links, as when this run began", link)

    def _leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def _enter(self, folder: Path) -> None:
        def refuse(error: OSError) -> None:
            raise _unreadable(error.filename or folder, error)

        for parent, folders, names in os.walk(folder, onerror=refuse):
            real = os.path.realpath(parent)
            if real in self._entered:  # by a link to it, or to one above it
                folders.clear()
                continue
            self._entered.add(real)
            for entries, are_files in ((folders, False), (names, True)):
                for path in [Path(parent, name) for name in entries]:
                    if path.name.startswith("."):
                        self._leave_out("hidden", path)
                    elif path.is_symlink():
                        self._links.append(path)
                    elif are_files:
                        self._take(path, f"{real}/{path.name}")
            folders[:] = [name for name in folders if not name.startswith(".")]

    def _follow(self, link: Path) -> None:
        real = os.path.realpath(link)
        try:
            status = link.stat()
        except OSError as error:
            if isinstance(error, PermissionError):
                raise _unreadable(link, error) from None
            self._leave_out("links that lead nowhere", link)  # or in a circle
            return
        above = os.path.commonpath([real, self._top]) == real
        if above or real in self._entered or real in self.found:
            self._leave_out("links to what is read anyway", link)
        elif stat.S_ISDIR(status.st_mode):
            self._enter(link)
        else:
            self._take(link, real)

    def _take(self, path: Path, real: str) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            return  # gone since the folder was listed
        except OSError as error:
            raise _unreadable(path, error) from None
        if not stat.S_ISREG(status.st_mode):
            self._leave_out("neither files nor folders", path)
        elif not status.st_size:
            self._leave_out("empty", path)
        elif not _is_text(path):
            self._leave_out("no text", path)
        else:
            self.found[real] = (path, status.st_size)


def _natural(path: Path) -> tuple[list[tuple[list[str | int], list[str | int]]], tuple[str, ...]]:
    """Return a key that sorts paths as people count: 1, 2, 10; ``a.txt`` before ``a2.txt``."""
    parts = [os.path.splitext(part) for part in path.parts]
    return [(_counted(stem), _counted(suffix)) for stem, suffix in parts], path.parts


def _counted(text: str) -> list[str | int]:
    """Return text and numbers in turn, beginning with a text."""
    pieces = re.split("([0-9]+)", text)
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]


def _is_text(path: Path) -> bool:
    """Say whether a file in a folder belongs to its corpus, from its name or its beginning."""
    if path.suffix.lower() in _TEXT_SUFFIXES:
        return True
    head = _check_readable(path)
    if head.startswith(tuple(mark for mark, _ in BYTE_ORDER_MARKS)):
        return True
    if 0 in head:
        return False
    try:
        # The last character may have been cut, unless this is the whole file.
        TextDecoder("utf-8").decode(head, final=len(head) < _SNIFFED)
    except UnicodeError:
        return False
    return True


def _check_readable(path: Path) -> bytes:
    """Return the beginning of a file."""
    try:
        with path.open("rb", buffering=0) as stream:
            return stream.read(_SNIFFED)
    except OSError as error:
        raise _unreadable(path, error) from None


def _neighbour(path: Path) -> tuple[str, Path | None]:
    """Suggest a name beside a path that does not exist, or a built-in corpus."""
    try:
        names = os.listdir(path.parent)[:1000]
    except OSError:
        names = []
    names = [name for name in names if not name.startswith(".") and name.isprintable()]
    builtins = {name.removeprefix(BUILTIN_PREFIX): name for name in BUILTIN_CORPORA}
    if path.name in builtins:
        return f' Did you mean "{builtins[path.name]}"?', None
    found = get_close_matches(path.name, names, n=1, cutoff=0.5)
    if not found:
        return "", None
    return f' Did you mean "{found[0]}"?', path.parent / found[0]


def _unreadable(what: object, error: OSError | ValueError) -> RequestError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return RequestError(f"Cannot read {safe(str(what), one_line=True)}: {reason}.")
