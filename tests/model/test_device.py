"""What is read of a card, with the driver's library and CUDA's answers in place of a card."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_model.device import MemoryMeter, choose_precision, measure_matrix_rate

CARD = torch.device("cuda", 1)
MIB = 1 << 20


class Nvml(SimpleNamespace):
    """The driver's library; what is not allowed here raises, as for a part of a card."""

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None:  # noqa: N802
        """Be there."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        """Know one card."""
        if uuid != self.uuid:
            raise RuntimeError("not found")
        return uuid

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        """Tell how busy it is, unless it is a part."""
        assert handle == self.uuid
        if self.part:
            raise RuntimeError("not supported")
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        """Tell how warm it is."""
        assert (handle, sensor) == (self.uuid, 0)
        return 61

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        """Tell who is on it."""
        assert handle == self.uuid
        own = [] if self.part else [SimpleNamespace(pid=os.getpid(), usedGpuMemory=70)]
        return [SimpleNamespace(pid=1, usedGpuMemory=900 * MIB), *own]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> str:
    """A card that CUDA calls by a bare number."""
    uuid = "b354a39f-be14"
    answers = {
        "mem_get_info": (1000 * MIB, 3000 * MIB),
        "get_device_properties": SimpleNamespace(uuid=uuid),
        "get_device_name": "a card",
        "max_memory_reserved": 900 * MIB,
        "memory_reserved": 800 * MIB,
        "memory_allocated": 700 * MIB,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, answer=answer: answer)
    return uuid


@pytest.mark.parametrize(("prefix", "part"), [("GPU-", False), ("MIG-", True)])
def test_each_sensor_is_read_by_itself(
    prefix: str, part: bool, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(uuid=prefix + card, part=part))
    sample = MemoryMeter(CARD).sample(5)
    assert sample is not None
    assert sample.temperature == 61.0
    assert sample.utilization == (None if part else 0.37)
    assert sample.process == (None if part else 70)
    assert (sample.used, sample.total) == (2000 * MIB, 3000 * MIB)
    assert (sample.peak, sample.reserved, sample.allocated) == (900 * MIB, 800 * MIB, 700 * MIB)


@pytest.mark.parametrize("emulated", [True, False])
def test_emulated_bfloat16_is_not_taken_for_bfloat16(
    emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_supported(including_emulation: bool = True) -> bool:
        return including_emulation or not emulated

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    wanted = torch.float32 if emulated else torch.bfloat16
    assert choose_precision("auto", CARD) == wanted
    assert choose_precision("bfloat16", CARD) == torch.bfloat16


def test_measuring_leaves_the_random_generator_alone() -> None:
    before = torch.get_rng_state()
    assert measure_matrix_rate(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.get_rng_state(), before)
