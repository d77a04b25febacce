"""Collects what this process does without, so that it is reported once instead of failing.

A cache, a folder's fsync, a chmod, a kernel lock: code that misses one notes a sentence here, and
code with a reader (a session with its log, the command line with stderr) reports it. Notes belong
to the process, not to a run, because the code that notes them knows no run; a process trains one
run at a time.
"""

from __future__ import annotations

import errno

UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES}
    | {errno.EBADF, errno.EISDIR, errno.ENOTTY, errno.ENOLCK}
)
"""How file systems say that they do not know of something, or do not allow it."""

_missing: dict[str, None] = {}


def do_without(sentence: str) -> None:
    """Note what is missing and what follows; the same sentence is noted once."""
    _missing[sentence] = None


def take_missing(said: set[str]) -> list[str]:
    """Return what was noted and is not in `said`, and put it there."""
    new = [sentence for sentence in list(_missing) if sentence not in said]
    said.update(new)
    return new


def forget() -> None:
    """Let the next run report again what it does without."""
    _missing.clear()
