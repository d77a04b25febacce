"""Where a run computes: choosing the device and its arithmetic, and reading its memory.

torch is imported inside the functions: describing a device is also asked for by programs that have
not needed torch yet.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from megatron_model.events.schema import DeviceSampled
from megatron_model.util.cgroup import MemoryLimit, core_limit, memory_limit
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

if TYPE_CHECKING:
    import torch

DeviceKind = Literal["cuda", "mps", "cpu"]


class DeviceInfo(Struct, frozen=True):
    """A device as the preflight and the screens see it; memory in bytes."""

    kind: DeviceKind
    name: str
    label: str
    memory_total: int
    memory_free: int
    bfloat16: bool = False
    """Whether ``training.precision`` auto takes bfloat16 here."""
    matrix_rate: float | None = None
    """Floating-point operations a second in matrix products; None before it was measured."""


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device meant by `name`.

    Raises:
        RequestError: the name is unknown, or this machine has no such device.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise RequestError(
            f'training.device is "{safe(name, one_line=True)}"; '
            "it must be auto, cpu, cuda, cuda:N or mps."
        )
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            has = f"{count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
            raise RequestError(f'training.device is "{name}", but this machine has {has}.')
    if kind == "mps" and not torch.backends.mps.is_available():
        raise RequestError('training.device is "mps", but this machine has no Apple GPU.')
    return torch.device(name)


def may_have_accelerator() -> bool:
    """Whether there may be another device than the CPU; torch knows, but it loads for a second."""
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return sys.platform == "darwin" or any(map(os.path.exists, drivers))


def describe_device(name: str = "auto") -> DeviceInfo:
    """Return what is known of the device `name` without starting work on it."""
    import torch

    device = choose_device(name)
    half = choose_precision("auto", device) == torch.bfloat16
    if device.type == "cuda":
        index = device.index or 0
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        return DeviceInfo("cuda", name, f"GPU {index}", total, free, half)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        used = torch.mps.driver_allocated_memory()
        return DeviceInfo("mps", "Apple GPU", "Apple GPU", total, max(0, total - used), half)
    name = f"{available_cores()} CPU cores"
    memory = available_memory()
    return DeviceInfo("cpu", name, "RAM", memory.total, memory.free, half)


def available_memory() -> MemoryLimit:
    """Return the memory that this process may have, and what is free of it: bytes."""
    import psutil

    machine = psutil.virtual_memory()
    limit = memory_limit() or MemoryLimit(machine.total, machine.available)
    return MemoryLimit(min(machine.total, limit.total), min(machine.available, limit.free))


def available_cores() -> int:
    """Return how many cores this process may keep busy; of a part of a core, one."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    # Rounded down: threads that wait for each other all wait for the one without its share.
    return max(1, min(cores, int(core_limit() or cores)))


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the matrix products: what was asked, or what is fast on this device."""
    import torch

    if precision == "float32":
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        # A card that only emulates bfloat16 is slower with it.
        known = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if known else torch.float32
    if device.type == "cpu" and cpu_computes_bfloat16():
        return torch.bfloat16
    return torch.float32


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of matrix products of a transformer's size."""
    import torch

    size = 512 if device.type == "cpu" else 4096
    # Of numbers as they occur: with ones a card draws less power, and is faster than it will be.
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(size, size, dtype=dtype, device=device, generator=generator)
    if device.type == "cuda":
        return 2.0 * size**3 / _seconds_on_card(lambda: left @ left)
    best, begun, rounds = math.inf, time.perf_counter(), 0
    # The best of many: a compiler, or somebody else's program, may have a core at any moment.
    while rounds < 4 or time.perf_counter() - begun < CPU_SECONDS:
        rounds += 1
        start = time.perf_counter()
        product = left @ left
        float(product[0, 0])  # waits for an accelerator
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


CPU_SECONDS = 0.05
"""For so long products are timed on a CPU."""
WARM_UP_SECONDS, TIMED = 0.05, 20
"""A card's clocks rise when there is work; then so much of it is timed, without a wait between."""


def _seconds_on_card(work: Callable[[], object]) -> float:
    """Return what one piece of work takes on the card by its own clock."""
    import torch

    start = time.perf_counter()
    while time.perf_counter() - start < WARM_UP_SECONDS:
        work()
        torch.cuda.synchronize()
    make: Any = torch.cuda.Event
    begin, end = make(enable_timing=True), make(enable_timing=True)
    begin.record()
    for _ in range(TIMED):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / TIMED


def measured_device(name: str = "auto", precision: str = "auto") -> DeviceInfo:
    """Return what is known of the device `name`, its matrix rate too: time is estimated by it."""
    device = choose_device(name)
    rate = measure_matrix_rate(device, choose_precision(precision, device))
    return msgspec.structs.replace(describe_device(name), matrix_rate=rate)


@cache
def cpu_computes_bfloat16() -> bool:
    """Whether bfloat16 products really are faster than float32 ones here.

    The processor's flags are not enough (some emulate it): two short products are timed.
    """
    import torch

    capabilities: dict[str, Any] = {}
    with contextlib.suppress(AttributeError, RuntimeError):
        capabilities = dict(torch.cpu.get_capabilities())
    if not any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")):
        return False

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        start = time.perf_counter()
        left @ right
        return time.perf_counter() - start

    # In turns, and the best of many: another program may take the core at any moment.
    rounds = [(seconds(torch.bfloat16), seconds(torch.float32)) for _ in range(12)]
    half, single = (min(times) for times in zip(*rounds, strict=True))
    return bool(half < single)


class MemoryMeter:
    """Reads the memory of one device; never raises, and never creates a CUDA context."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml: Any = None
        self._total = 0
        if device.type == "cuda":
            with contextlib.suppress(
                Exception
            ):  # no driver, no library, no permission: all mean "no"
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml

    def sample(self, step: int) -> DeviceSampled | None:
        """Return memory in use, its peak and the total in bytes; None when it cannot be read."""
        with contextlib.suppress(Exception):  # a lost sensor must never end a run
            if self._device.type == "cuda":
                return self._cuda(step)
            if self._device.type == "mps":
                return self._mps(step)
            return self._ram(step)
        return None

    def _cuda(self, step: int) -> DeviceSampled:
        import torch

        index = (
            self._device.index if self._device.index is not None else torch.cuda.current_device()
        )
        free, total = torch.cuda.mem_get_info(index)
        utilization = temperature = process = None
        if self._nvml is not None and not torch.version.hip:
            # Each by itself: a part of a card (MIG) tells no utilisation, a container no processes.
            handle = self._handle(index)
            with contextlib.suppress(Exception):
                utilization = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            with contextlib.suppress(Exception):
                sensor = self._nvml.NVML_TEMPERATURE_GPU
                temperature = float(self._nvml.nvmlDeviceGetTemperature(handle, sensor))
            with contextlib.suppress(Exception):
                running = self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                process = next(int(p.usedGpuMemory) for p in running if p.pid == os.getpid())
        return DeviceSampled(
            step=step,
            kind="gpu",
            name=torch.cuda.get_device_name(index),
            used=total - free,
            peak=torch.cuda.max_memory_reserved(index),
            total=total,
            utilization=utilization,
            temperature=temperature,
            reserved=torch.cuda.memory_reserved(index),
            allocated=torch.cuda.memory_allocated(index),
            process=process,
        )

    def _handle(self, index: int) -> Any:
        """Return NVML's handle of a card, or of a part of one, by what CUDA calls it."""
        import torch

        # NVML counts every card, CUDA only the visible ones: the UUID is the same.
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        known = uuid.startswith(("GPU-", "MIG-"))
        for full in [uuid] if known else [f"GPU-{uuid}", f"MIG-{uuid}"]:
            with contextlib.suppress(Exception):
                return self._nvml.nvmlDeviceGetHandleByUUID(full)
        return None

    def _mps(self, step: int) -> DeviceSampled:
        import torch

        used = torch.mps.driver_allocated_memory()
        return DeviceSampled(
            step=step,
            kind="gpu",
            name="Apple GPU",
            used=used,
            peak=used,
            total=torch.mps.recommended_max_memory(),
        )

    def _ram(self, step: int) -> DeviceSampled:
        import psutil

        total = self._total = self._total or available_memory().total
        used = psutil.Process().memory_info().rss
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return DeviceSampled(
            step=step,
            kind="ram",
            name="this process",
            used=used,
            # Linux counts in KiB, macOS in bytes; the kernel's own count of the peak lags behind.
            peak=max(used, usage if sys.platform == "darwin" else usage * 1024),
            total=total,
        )
