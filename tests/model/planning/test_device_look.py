"""Devices are looked at by another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_model import device
from megatron_model.device import DeviceInfo
from megatron_model.planning.device_look import look_at, look_at_one
from megatron_model.util.errors import RequestError
from megatron_tui.services import torch_loader

CARD = DeviceInfo("cuda", "a card", "GPU 0", 1 << 30, 1 << 29, True, 1e12)


def test_what_another_process_finds_is_what_is_there() -> None:
    found = look_at(["cpu", "cuda:99", "fancy"])
    here = device.describe_device("cpu")
    known = found["cpu"].device
    assert known is not None
    assert (known.kind, known.name, known.memory_total) == ("cpu", here.name, here.memory_total)
    assert known.matrix_rate is not None
    assert known.matrix_rate > 1e8
    assert "this machine has" in found["cuda:99"].error
    assert "must be auto, cpu, cuda" in found["fancy"].error


def test_a_process_that_cannot_look_is_no_disaster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RequestError, match='The device "auto" gives no answer'):
        look_at_one("auto")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(RequestError, match="Cannot look at the devices: No such file"):
        look_at_one("auto")


def test_the_workbench_never_looks_at_a_card_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> DeviceInfo:
        raise AssertionError("a context of the card in the workbench's process")

    monkeypatch.setattr(device, "choose_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(device, "measured_device", never)
    monkeypatch.setattr(torch_loader, "look_at_one", lambda name: CARD)
    assert torch_loader.describe_machine() == CARD


def test_nothing_of_torch_is_needed_to_ask(tmp_path: Path) -> None:
    code = "import sys, megatron_model.planning.device_look; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"
