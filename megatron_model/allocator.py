"""Keeps the memory a step frees for the next step, instead of fetching it from the system again."""

from __future__ import annotations

import ctypes
import sys

# The numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> None:
    """Tell glibc's allocator to hold on to large blocks.

    Left alone it gives them back at every step, and a quarter of the step goes into page faults.
    One arena for all threads, because the others cannot grow large blocks in place. Elsewhere than
    on glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TOP_PAD, 1 << 26)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
