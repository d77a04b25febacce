"""What a corpus is, where it is found, and how its text is read, a piece at a time.

A corpus is a text file, a folder of text files, or a built-in text. It is never held whole: a file
of many gigabytes is read in constant memory. Nothing here imports numpy or torch.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from megatron_model.encoding import (
    AUTO,
    BYTE_ORDER_MARKS,
    TextDecoder,
    UndecodableError,
    binary,
    canonical_encoding,
    codec_for,
)
from megatron_model.errors import RequestError, nearest

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

    def open_parts(self) -> Iterator[tuple[str, BinaryIO]]:
        """Open one part after another: what errors call it, and its bytes; the caller closes it."""
        if not self.files:
            yield self.spec, io.BytesIO(self.text.encode("utf-8"))
        for path in self.files:
            try:
                yield str(path), path.open("rb", buffering=0)
            except OSError as error:
                raise _unreadable(path, error) from None


def find_corpus(spec: str) -> CorpusSource:
    """Find the corpus that `spec` names: a file, a folder, or ``builtin:...``.

    Raises:
        RequestError: there is none, or it has no text that can be read.
    """
    if spec.startswith(BUILTIN_PREFIX):
        return _find_builtin(spec)
    if not spec.strip():
        raise RequestError("No corpus is named; give a text file, a folder or a built-in corpus.")
    path = Path(os.path.abspath(os.path.expanduser(spec)))
    try:
        status = path.stat()
    except FileNotFoundError:
        raise RequestError(f'There is no file or folder "{spec}".' + _neighbour(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(spec, error) from None
    if stat.S_ISDIR(status.st_mode):
        files = _text_files(path)
    elif stat.S_ISREG(status.st_mode):
        files = [(path, status.st_size)]
        _check_readable(path)
    else:
        raise RequestError(f"{spec} is neither a file nor a folder; choose a text file.")
    size = sum(size for _, size in files)
    if not files:
        raise RequestError(f"The folder {spec} has no text files; hidden ones are not counted.")
    if not size:
        raise RequestError(f"{spec} is empty; choose a text with something in it.")
    return CorpusSource(
        spec=spec,
        location=str(path),
        name=(path.name if stat.S_ISDIR(status.st_mode) else path.stem) or "corpus",
        files=tuple(path for path, _ in files),
        size=size,
    )


def read_chunks(
    source: CorpusSource,
    encoding: str = AUTO,
    *,
    chunk_characters: int = CHUNK_CHARACTERS,
    translate_line_ends: bool = True,
    on_bytes: Callable[[bytes], object] | None = None,
) -> Iterator[tuple[str, int]]:
    """Yield the text in pieces, each with the bytes of the corpus read so far.

    Line ends become ``\\n`` as in ``open(path).read()``, or stay what they are. Under ``auto`` a
    byte-order mark decides the encoding of its file and is dropped; without one the text must be
    UTF-8. `on_bytes` is called with the raw bytes in order.

    Raises:
        RequestError: a file cannot be read or decoded, or looks binary.
    """
    encoding = canonical_encoding(encoding)
    done = 0
    for label, stream in source.open_parts():
        with stream:
            raw = _read(label, stream, max(chunk_characters, 4))  # Room for a byte-order mark.
            decoder = TextDecoder(codec_for(raw, encoding), translate_line_ends)
            offset = 0
            while True:
                text = _decode(label, stream, decoder, raw, offset)
                offset += len(raw)
                if on_bytes is not None:
                    on_bytes(raw)
                if text:
                    yield text, done + offset
                if not raw:
                    break
                raw = _read(label, stream, chunk_characters)
            done += offset


def preview(source: CorpusSource, encoding: str = AUTO, characters: int = 4000) -> str:
    """Return the first `characters` of the corpus; raises as `read_chunks` does."""
    pieces: list[str] = []
    left = characters
    for text, _ in read_chunks(source, encoding, chunk_characters=max(characters, 1)):
        pieces.append(text[:left])
        left -= len(pieces[-1])
        if left <= 0:
            break
    return "".join(pieces)


def _decode(label: str, stream: BinaryIO, decoder: TextDecoder, raw: bytes, offset: int) -> str:
    """Decode `raw`, which begins at `offset` of the open file; the empty bytes are its end."""
    # In UTF-8 a NUL is a zero byte, and looking for that is far cheaper than searching the text.
    if decoder.is_utf8 and (nul := raw.find(0)) >= 0:
        raise binary(label, stream, decoder.codec, offset + nul)
    try:
        text = decoder.decode(raw, final=not raw)
    except UnicodeDecodeError as error:
        # The decoder may have kept bytes from before; what it saw ends where `raw` ends.
        where = offset + len(raw) - len(error.object) + error.start
        raise UndecodableError(label, stream, decoder.codec, where) from None
    except UnicodeError:
        raise UndecodableError(label, stream, decoder.codec, offset) from None
    if not decoder.is_utf8 and "\0" in text:
        raise binary(label, stream, decoder.codec, offset)
    return text


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


def _text_files(folder: Path) -> list[tuple[Path, int]]:
    """Return the text files under `folder` with their sizes, in the order of their relative paths.

    Links are skipped: one that stays inside names a file that is found anyway, and its text must
    not come twice; one that leads out would train on what nobody asked for.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename or folder, error)

    found: list[tuple[Path, int]] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # Gone since the folder was listed.
            if name.startswith(".") or not stat.S_ISREG(status.st_mode):
                continue
            if status.st_size and _is_text(path):
                found.append((path, status.st_size))
    found.sort(key=lambda item: item[0].relative_to(folder).parts)
    return found


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


def _neighbour(path: Path) -> str:
    """Suggest a name beside a path that does not exist, or a built-in corpus."""
    try:
        names = os.listdir(path.parent)[:1000]
    except OSError:
        names = []
    builtins = {name.removeprefix(BUILTIN_PREFIX): name for name in BUILTIN_CORPORA}
    if path.name in builtins:
        return f' Did you mean "{builtins[path.name]}"?'
    return nearest(path.name, names)


def _unreadable(what: object, error: OSError | ValueError) -> RequestError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return RequestError(f"Cannot read {what}: {reason}.")
