"""What people say of a run: a note and tags, in a small file in its folder. No torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded, write_atomically
from megatron_model.util.text import safe
from megatron_model.util.toml import read_toml

ABOUT_FILE = "about.toml"
LONGEST_NOTE = 10_000
"""Characters."""
MOST_TAGS = 50

_TAG = re.compile(r"\w[\w.:-]{0,49}")


class About(Struct, frozen=True):
    """A run's note, and its tags in their order."""

    note: str = ""
    tags: tuple[str, ...] = ()


def read_about(folder: RunFolder) -> About:
    """Return what was said of a run; what cannot be read, or is no note or tag, was not said."""
    said: dict[str, object] = {}
    with contextlib.suppress(RequestError):
        said = read_toml(folder.path / ABOUT_FILE)
    note, tags = said.get("note"), said.get("tags")
    good = [tag for tag in tags if _is_tag(tag)] if isinstance(tags, list) else []
    return About(
        note[:LONGEST_NOTE] if isinstance(note, str) else "",
        tuple(dict.fromkeys(good))[:MOST_TAGS],
    )


def write_about(folder: RunFolder, about: About) -> None:
    """Write down what is said of a run; what else stands in the file stays there.

    Raises:
        RequestError: a note or tag cannot be one, or the file cannot be read or written.
    """
    import tomlkit

    check_about(about)
    path = folder.path / ABOUT_FILE
    document = tomlkit.document()
    if path.exists():
        read_toml(path)  # says what is wrong with it
        document = tomlkit.parse(read_bounded(path).decode("utf-8"))
    document["note"] = about.note
    document["tags"] = list(about.tags)
    try:
        write_atomically(path, tomlkit.dumps(document).encode())
    except OSError as error:
        where = safe(str(path), one_line=True)
        raise RequestError(f"Cannot write {where}: {error.strerror}.") from None


def with_tags(about: About, words: Iterable[str]) -> About:
    """Return what is said of a run with ``+TAG`` or ``TAG`` put on it, and ``-TAG`` taken off."""
    tags = dict.fromkeys(about.tags)
    for word in words:
        if word.startswith("-"):
            tags.pop(word[1:], None)
        else:
            tags[word.removeprefix("+")] = None
    return replace(about, tags=tuple(tags))


def check_about(about: About) -> None:
    """Raise `RequestError` where a note or tag cannot be one."""
    if len(about.note) > LONGEST_NOTE:
        raise RequestError(f"The note is longer than {LONGEST_NOTE:,} characters; shorten it.")
    try:
        about.note.encode()
    except UnicodeEncodeError:
        raise RequestError("The note has bytes that are not UTF-8.") from None
    for tag in about.tags:
        if not _is_tag(tag):
            raise RequestError(
                f'"{safe(tag, one_line=True)}" cannot be a tag; use letters, digits, dots, colons, '
                "dashes and underscores, and begin with a letter or digit."
            )
    if len(about.tags) > MOST_TAGS:
        raise RequestError(f"A run has at most {MOST_TAGS} tags; take some off.")


def _is_tag(tag: object) -> bool:
    return isinstance(tag, str) and _TAG.fullmatch(tag) is not None
