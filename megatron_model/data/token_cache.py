"""From a corpus to its token array, streamed once into a cache and read from it ever after.

The cache folder holds, per content, ``<fingerprint>.tokens`` (the bare array) and
``<fingerprint>.json`` (what is needed to read it), and per corpus ``<key>.source``, which says
which fingerprint the files had when they were last read. What is missing or damaged is made again.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct, structs

from megatron_model.config.fields import FIRST_RULES, DataConfig, Errors
from megatron_model.data.code_points import COUNT, CharacterCounts, code_points, keep_chunk_memory
from megatron_model.data.corpus import Changes, CorpusSource, find_corpus, read_chunks
from megatron_model.data.encoding import canonical_encoding
from megatron_model.data.tokenizer import UnknownCharacterError
from megatron_model.events.schema import CorpusProgress
from megatron_model.util.errors import RequestError, RunFailedError
from megatron_model.util.fallback import do_without
from megatron_model.util.files import read_bounded, sync_file
from megatron_model.util.text import plural, safe
from megatron_model.util.user_folders import user_folder

Tokens: TypeAlias = npt.NDArray[Any]
"""One-dimensional, unsigned, of the smallest size that holds the vocabulary."""

_VERSION = 1
_LONGEST_DESCRIPTION = 64 << 20
"""Bytes: a million different characters and their counts."""
_PROGRESS_SECONDS = 0.05
_MEMORY_BYTES = 256 << 20
"""Token arrays up to this size live in memory: shortening a mapped file kills the process."""
_KEEP_BYTES = 20_000_000_000
_STALE_SECONDS = 24 * 3600


class PreparedCorpus(Struct, frozen=True, eq=False):
    """A corpus as tokens, with what is known of its characters."""

    tokens: Tokens
    """Read-only, and memory-mapped where they are many."""
    vocabulary: str
    counts: tuple[int, ...]
    """Occurrences of every character of the vocabulary."""
    characters: int
    lines: int
    fingerprint: str
    """Digest of the raw bytes and the encoding: the same text in another place has the same."""
    line_ends: int = 0
    """Line ends put between files; this and what follows as in `corpus.Changes`."""
    marks: int = 0
    damaged: int = 0

    @property
    def unigram_entropy(self) -> float:
        """Nats per character of the best guess that ignores context."""
        total = self.characters
        return -sum(count / total * math.log(count / total) for count in self.counts if count) + 0.0


class _Description(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What ``<fingerprint>.json`` says of the array beside it."""

    version: int
    vocabulary: str
    counts: tuple[int, ...]
    line_ends: int = 0
    marks: int = 0
    damaged: int = 0

    @property
    def characters(self) -> int:
        return sum(self.counts)

    @property
    def dtype(self) -> np.dtype[Any]:
        return _dtype_for(len(self.vocabulary))

    @property
    def size(self) -> int:
        return self.characters * self.dtype.itemsize


def default_cache_dir() -> Path:
    """Return the folder of token arrays that all runs of this user share.

    A user without a home gets a path at which nothing can be read or written.
    """
    folder = user_folder("cache")
    return (Path(os.devnull) if folder is None else folder) / "tokens"


def prepare_corpus(
    source: CorpusSource,
    encoding: str = "auto",
    cache_dir: Path | None = None,
    errors: Errors = "stop",
) -> Generator[CorpusProgress, None, PreparedCorpus]:
    """Turn a corpus into tokens; yield progress (none when cached) and return the result.

    Raises:
        RequestError: the corpus cannot be read or decoded, has no characters, or changed meanwhile;
            or it is large and the cache folder cannot be written.
    """
    folder = cache_dir if cache_dir is not None else default_cache_dir()
    work = _Preparation(source, canonical_encoding(encoding), folder, errors)
    if (prepared := _lookup(folder, work.key)) is not None:
        return prepared
    return (yield from work.run())


def prepare_now(
    source: CorpusSource,
    encoding: str = "auto",
    cache_dir: Path | None = None,
    errors: Errors = "stop",
) -> PreparedCorpus:
    """Do all of `prepare_corpus` at once."""
    work = prepare_corpus(source, encoding, cache_dir, errors)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: PreparedCorpus = stop.value
            return result


def check_whole(tokens: Tokens) -> None:
    """Refuse a mapped token array whose file was shortened: reading beyond its end would kill.

    It costs a look at the file's size, and nothing where the array is in memory.

    Raises:
        RunFailedError: the file is shorter than it was.
    """
    array: Any = tokens
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    # The map's length is the file's when it was opened.
    if array is not None and (mapped := vars(array)["_mmap"]).size() < len(mapped):
        raise RunFailedError(
            f"The token cache {safe(str(array.filename))} was shortened while it was read. Resume "
            "the run: the cache is made again."
        )


def prepare_asked(data: DataConfig) -> PreparedCorpus:
    """Find and prepare the corpus that a configuration asks for, read as it says."""
    return prepare_now(find_corpus(data.corpus, data.reading), data.encoding, errors=data.errors)


def with_characters(prepared: PreparedCorpus, unused: str) -> PreparedCorpus:
    """Return the corpus with a vocabulary that ends with characters it has not; tokens stay."""
    counts = prepared.counts + (0,) * len(unused)
    return structs.replace(prepared, vocabulary=prepared.vocabulary + unused, counts=counts)


def retokenize(prepared: PreparedCorpus, vocabulary: str) -> Tokens:
    """Return the corpus in the tokens of another vocabulary, such as that of a trained model.

    Raises:
        UnknownCharacterError: the corpus has characters that the vocabulary has not.
    """
    if vocabulary == prepared.vocabulary:
        return prepared.tokens
    places = {character: token for token, character in enumerate(vocabulary)}
    unknown = [character for character in prepared.vocabulary if character not in places]
    if unknown:
        raise UnknownCharacterError(unknown, "The corpus")
    lut = np.array([places[c] for c in prepared.vocabulary], dtype=_dtype_for(len(vocabulary)))
    return lut[prepared.tokens]


def split(
    prepared: PreparedCorpus, validation_fraction: float, block_size: int
) -> tuple[Tokens, Tokens]:
    """Return views of the training tokens and of the validation tokens, the last part of the text.

    Raises:
        RequestError: one of them is too short for a block and the character that follows it.
    """
    total = prepared.characters
    border = int(total * (1 - validation_fraction))
    training, validation = prepared.tokens[:border], prepared.tokens[border:]
    name, shorter = min(
        ("validation", len(validation)), ("training", len(training)), key=lambda part: part[1]
    )
    if shorter > block_size:
        return training, validation
    largest = f"a model.block_size of at most {shorter - 1:,}" if shorter > 1 else "a smaller block"
    raise RequestError(
        f"The corpus has {plural(total, 'character')}; with data.validation_fraction "
        f"{validation_fraction:g} its {name} split has {shorter:,}, and model.block_size "
        f"{block_size:,} needs at least {block_size + 1:,}. Use a longer text or {largest}."
    )


def prune(cache_dir: Path, keep_bytes: int = _KEEP_BYTES) -> None:
    """Remove the arrays longest unused until the rest fits `keep_bytes`, and abandoned leftovers.

    What another process has mapped stays readable to it.
    """
    now = time.time()
    arrays: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in cache_dir.iterdir():
            with suppress(OSError):
                status = path.stat()
                if path.suffix == ".tokens":
                    arrays.append((max(status.st_atime, status.st_mtime), status.st_size, path))
                elif path.suffix == ".tmp" and now - status.st_mtime > _STALE_SECONDS:
                    path.unlink()
    total = sum(size for _, size, _ in arrays)
    for _, size, path in sorted(arrays):
        if total <= keep_bytes:
            break
        with suppress(OSError):
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
            total -= size


class _Preparation:
    """The work on one corpus: a first reading counts its characters, a second makes the tokens."""

    def __init__(self, source: CorpusSource, encoding: str, folder: Path, errors: Errors) -> None:
        self._source = source
        self._encoding = encoding
        self._folder = folder
        self._identity = _identity(source)
        self._said = -math.inf
        self._errors = errors
        self._changes = Changes()
        # Nothing is added under the first rules: arrays and fingerprints of old runs stay theirs.
        plain = source.rules == FIRST_RULES and errors == "stop"
        self._manner: list[object] = [] if plain else [source.rules, errors]
        self.key = _digest(msgspec.json.encode([_VERSION, encoding, self._identity, *self._manner]))

    def run(self) -> Generator[CorpusProgress, None, PreparedCorpus]:
        """Read, write the cache, return what is in it."""
        keep_chunk_memory()
        fingerprint, counts = yield from self._survey()
        prepared = _load(self._folder, fingerprint)
        if prepared is None:
            description, lut = self._describe(counts)
            if (yield from self._store(fingerprint, description, lut)):
                prepared = _load(self._folder, fingerprint)
            if prepared is None:
                tokens = yield from self._keep(description, lut)
                prepared = _prepared(tokens, description, fingerprint)
        else:
            self._check_unchanged()
        with suppress(OSError):
            _write_whole(self._folder / f"{self.key}.source", fingerprint.encode("ascii"))
        size = self._source.size
        yield CorpusProgress(step=0, done=size, total=size)
        return prepared

    def _progress(self, done: float) -> Iterator[CorpusProgress]:
        """Yield how far both readings together are, if it is time to say so."""
        now = time.monotonic()
        if now - self._said >= _PROGRESS_SECONDS:
            self._said = now
            size = self._source.size
            yield CorpusProgress(step=0, done=min(int(done), size), total=size)

    def _survey(self) -> Generator[CorpusProgress, None, tuple[str, CharacterCounts]]:
        """Return the fingerprint of the corpus and how often each character occurs."""
        digest = hashlib.sha256()
        counts = CharacterCounts()
        for text, done in read_chunks(
            self._source,
            self._encoding,
            on_bytes=digest.update,
            errors=self._errors,
            changes=self._changes,
        ):
            counts.add(text)
            yield from self._progress(done / 2)
        # Where a file ends matters: a line end or a byte-order mark may be cut differently.
        sizes = [size for _, size, _, _ in self._identity]
        digest.update(msgspec.json.encode([self._encoding, sizes, *self._manner]))
        self._said = -math.inf  # The second reading says at once that it began.
        return digest.hexdigest(), counts

    def _describe(self, counts: CharacterCounts) -> tuple[_Description, Tokens]:
        """Return what the token array will be, and the token of every code point."""
        codes, occurrences = counts.occurring()
        if not len(codes):
            raise RequestError(
                f"{safe(self._source.spec, one_line=True)} has no characters; choose a text that "
                "has."
            )
        description = _Description(
            version=_VERSION,
            vocabulary="".join(map(chr, codes.tolist())),
            counts=tuple(occurrences.tolist()),
            line_ends=self._changes.line_ends,
            marks=self._changes.marks,
            damaged=self._changes.damaged,
        )
        lut = np.zeros(COUNT, dtype=description.dtype)
        lut[codes] = np.arange(len(codes))
        return description, lut

    def _store(
        self, fingerprint: str, description: _Description, lut: Tokens
    ) -> Generator[CorpusProgress, None, bool]:
        """Write the tokens into the cache; False when that failed and they fit into memory."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _whole_file(self._folder / f"{fingerprint}.tokens") as file:
                for tokens, done in self._token_chunks(description, lut):
                    file.write(tokens)
                    yield from self._progress((self._source.size + done) / 2)
            _write_whole(self._folder / f"{fingerprint}.json", msgspec.json.encode(description))
        except OSError as error:
            if description.size <= _MEMORY_BYTES:
                do_without(
                    f"Cannot write the token cache in {safe(str(self._folder))}: {error.strerror}; "
                    "the corpus is read again each time; XDG_CACHE_HOME names another folder."
                )
                return False
            raise RequestError(
                f"Cannot write the token cache in {self._folder}: {error.strerror}. Make "
                f"{description.size:,} bytes free there, or set XDG_CACHE_HOME to another folder."
            ) from None
        prune(self._folder)
        return True

    def _keep(
        self, description: _Description, lut: Tokens
    ) -> Generator[CorpusProgress, None, Tokens]:
        """Return the tokens in memory."""
        array = np.empty(description.characters, dtype=description.dtype)
        memory, filled = array.data.cast("B"), 0
        for tokens, done in self._token_chunks(description, lut):
            memory[filled : filled + len(tokens)] = tokens
            filled += len(tokens)
            yield from self._progress((self._source.size + done) / 2)
        array.flags.writeable = False
        return array

    def _token_chunks(
        self, description: _Description, lut: Tokens
    ) -> Iterator[tuple[bytes | memoryview[int], int]]:
        """Yield the tokens as bytes, with the bytes of the corpus read so far.

        Nothing is yielded that would be too much, and the end is reached only when the corpus is
        still the one that was counted, so that what is stored belongs to its fingerprint.
        """
        table = lut[:256].tobytes() if lut.itemsize == 1 else b""
        left = description.size
        for text, done in read_chunks(self._source, self._encoding, errors=self._errors):
            tokens: bytes | memoryview[int]
            if table and text.isascii():
                tokens = text.encode("ascii").translate(table)
            else:
                tokens = lut.take(code_points(text)).data.cast("B")
            left -= len(tokens)
            if left < 0:
                break
            yield tokens, done
        self._check_unchanged(complete=left == 0)

    def _check_unchanged(self, complete: bool = True) -> None:
        if not complete or _identity(self._source) != self._identity:
            raise RequestError(
                f"{safe(self._source.spec, one_line=True)} changed while it was read; try again "
                "when it is finished."
            )


def _dtype_for(vocab_size: int) -> np.dtype[Any]:
    return np.min_scalar_type(vocab_size - 1)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _identity(source: CorpusSource) -> list[tuple[str, int, int, int]]:
    """Return what changes when the corpus does, without reading it.

    The change time is there for files put in place with their old modification time (rsync, cp -p).
    """
    if not source.files:
        return [(_digest(source.text.encode("utf-8")), 0, 0, 0)]
    try:
        return [
            (_name(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            for path in source.files
            for status in (path.stat(),)
        ]
    except OSError as error:
        raise RequestError(
            f"Cannot read {safe(str(error.filename), one_line=True)}: {error.strerror}."
        ) from None


def _name(path: Path) -> str:
    """Return a path as a text that can be stored; no two paths have the same."""
    name = os.fsencode(path)
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return f"\0{name.hex()}"  # no path has a NUL


def _prepared(tokens: Tokens, description: _Description, fingerprint: str) -> PreparedCorpus:
    newlines = dict(zip(description.vocabulary, description.counts, strict=True)).get("\n", 0)
    unfinished = description.vocabulary[tokens[-1]] != "\n"
    return PreparedCorpus(
        tokens=tokens,
        vocabulary=description.vocabulary,
        counts=description.counts,
        characters=description.characters,
        lines=newlines + unfinished,
        fingerprint=fingerprint,
        line_ends=description.line_ends,
        marks=description.marks,
        damaged=description.damaged,
    )


def _lookup(folder: Path, key: str) -> PreparedCorpus | None:
    try:
        fingerprint = read_bounded(folder / f"{key}.source", 4096).decode("ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return _load(folder, fingerprint) if fingerprint.isalnum() else None


def _load(folder: Path, fingerprint: str) -> PreparedCorpus | None:
    """Map the cached array of this content; None when it is not there or not whole."""
    path = folder / f"{fingerprint}.tokens"
    try:
        raw = read_bounded(path.with_suffix(".json"), _LONGEST_DESCRIPTION)
        description = msgspec.json.decode(raw, type=_Description)
        if description.version != _VERSION or not description.vocabulary:
            return None
        if len(description.counts) != len(description.vocabulary):
            return None
        status = path.stat()
        if status.st_size != description.size:
            return None
        tokens = _read_tokens(path, description)
        if tokens is None:
            return None
        if tokens[-1] >= len(description.vocabulary):
            return None
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
        return None
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))  # Says to `prune`: in use.
    return _prepared(tokens, description, fingerprint)


def _read_tokens(path: Path, description: _Description) -> Tokens | None:
    """Return the array: a copy, or the mapped file where that is large; see `check_whole`."""
    if description.size > _MEMORY_BYTES:
        return np.asarray(np.memmap(path, dtype=description.dtype, mode="r"))
    tokens = np.fromfile(path, dtype=description.dtype)
    if len(tokens) != description.characters:
        return None
    tokens.flags.writeable = False
    return tokens


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name only when all of it is on disk."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            yield file
            file.flush()
            sync_file(file.fileno(), path)
            os.replace(file.name, path)
        except BaseException:  # Also when the generator that writes is closed half way.
            with suppress(OSError):
                os.unlink(file.name)
            raise


def _write_whole(path: Path, data: bytes) -> None:
    with _whole_file(path) as file:
        file.write(data)
