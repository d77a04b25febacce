"""How this process uses memory and cores: what has to be said to the C library, once."""

from __future__ import annotations

import contextlib
import os
import sys
import threading

from megatron_model.util.cgroup import core_limit

# The numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


_SPINS = "10000"
"""Rounds a thread waits awake at the end of a parallel loop: some tens of microseconds."""


def wait_without_spinning() -> None:
    """Have threads that wait for each other sleep instead of spinning; before torch is loaded.

    Two threads that spin beside any other busy thread keep each other from the cores, and a step
    takes ten times as long. Nor are there more threads than a container has cores. What the user
    has set stays.
    """
    if (limit := core_limit()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(os.cpu_count() or 1, int(limit)))))
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def yield_to_other_threads() -> None:
    """Give the other threads of this process, which draw and listen, precedence over this one.

    A batch thread does not interrupt another one when it wakes up, but the others interrupt it; it
    loses no share of the core by that. Niceness would: ten steps of it leave a tenth beside a
    thread of another user. Both are per thread on Linux, and what torch starts later inherits them.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 1)


def keep_freed_memory() -> None:
    """Tell glibc's allocator to hold on to large blocks.

    Left alone it gives them back at every step, and a quarter of the step goes into page faults.
    One arena for all threads, because the others cannot grow large blocks in place. Elsewhere than
    on glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    import ctypes  # slow to load, and of use to trainers only

    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TOP_PAD, 1 << 26)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
