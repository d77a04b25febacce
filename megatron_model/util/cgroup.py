"""What a container may use of its machine: the limits of memory and processor of control groups.

Linux tells a process in a container of the whole machine's memory and cores; what it may use of
them is in files, in one of two layouts (version 1 has a tree for each resource, version 2 one for
all). A limit of any group above the process's own holds too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


class _Layout(NamedTuple):
    """Names of the files of one version."""

    limit: str
    used: str
    reclaimable: str
    """Line of ``memory.stat``: file contents that are dropped when room is needed."""


_FIRST = _Layout("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_SECOND = _Layout("memory.max", "memory.current", "inactive_file")


class MemoryLimit(NamedTuple):
    """Bytes that a control group lets its processes have together, and how many are left."""

    total: int
    free: int


def memory_limit(root: Path = _ROOT, own: Path = _OWN) -> MemoryLimit | None:
    """Return the memory of this process's container; None without a limit.

    Args:
        root: where the control groups are mounted.
        own: the file that says in which groups this process is.
    """
    limits = [
        found
        for folder, layout in _folders("memory", root, own)
        if (found := _memory_of(folder, layout)) is not None
    ]
    if not limits:
        return None
    return MemoryLimit(min(limit.total for limit in limits), min(limit.free for limit in limits))


def core_limit(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """Return how many cores this process's container may keep busy; None without a limit."""
    quotas = [
        quota
        for folder, layout in _folders("cpu", root, own)
        if (quota := _quota_of(folder, layout)) is not None
    ]
    return min(quotas, default=None)


def _folders(controller: str, root: Path, own: Path) -> list[tuple[Path, _Layout]]:
    """Return the groups of a resource that this process is in, with the layout of each.

    In a container the path is often that on the host, while the mount begins at the container's own
    group: both ends are looked at.
    """
    found: dict[Path, _Layout] = {}
    for line in _read(own).splitlines():
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            # Beside version 1 the tree of version 2 is mounted apart.
            bases, layout = [root, root / "unified"], _SECOND
        elif controller in names.split(","):
            bases, layout = [root / names, root / controller], _FIRST
        else:
            continue
        for base in bases:
            folder = base / path.lstrip("/")
            for each in (folder, *folder.parents):
                if each.is_relative_to(base) and ".." not in each.parts:
                    found[each] = layout
    return list(found.items())


def _memory_of(folder: Path, layout: _Layout) -> MemoryLimit | None:
    total, used = _number(folder / layout.limit), _number(folder / layout.used)
    # Version 1 writes "no limit" as the largest number of pages.
    if total is None or total >= 1 << 60:
        return None
    statistics = dict(
        line.split(maxsplit=1)
        for line in _read(folder / "memory.stat").splitlines()
        if len(line.split(maxsplit=1)) == 2
    )
    reclaimable = statistics.get(layout.reclaimable, "0")
    held = max(0, (used or 0) - (int(reclaimable) if reclaimable.isdecimal() else 0))
    return MemoryLimit(total, max(0, total - held))


def _quota_of(folder: Path, layout: _Layout) -> float | None:
    if layout is _SECOND:
        words = _read(folder / "cpu.max").split()
        quota, period = ([*words, "100000"] if len(words) == 1 else words or ["max", "0"])[:2]
    else:
        quota = _read(folder / "cpu.cfs_quota_us").strip()
        period = _read(folder / "cpu.cfs_period_us").strip()
    if not (quota.isdecimal() and period.isdecimal()) or not int(quota) or not int(period):
        return None  # "max" and -1 are no limit
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""
