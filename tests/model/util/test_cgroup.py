"""Limits of a container, read from folders that look like control groups."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from megatron_model import device
from megatron_model.util.cgroup import MemoryLimit, core_limit, memory_limit

GIB = 2**30


def tree(root: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        path = root / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (root / "groups").mkdir(exist_ok=True)
    (root / "own").write_text(own + "\n")
    return root / "groups", root / "own"


def test_version_2_in_a_container(tmp_path: Path) -> None:
    files = {
        "memory.max": str(4 * GIB),
        "memory.current": str(3 * GIB),
        "memory.stat": f"anon 1\ninactive_file {GIB}\nbroken",
        "cpu.max": "250000 100000",
    }
    where = tree(tmp_path, "0::/", files)
    assert memory_limit(*where) == (4 * GIB, 2 * GIB)
    assert core_limit(*where) == 2.5


def test_version_2_without_limits(tmp_path: Path) -> None:
    files = {"memory.max": "max", "memory.current": "5", "cpu.max": "max 100000"}
    where = tree(tmp_path, "0::/", files)
    assert memory_limit(*where) is None
    assert core_limit(*where) is None


def test_a_limit_of_a_group_above_holds_too(tmp_path: Path) -> None:
    files = {
        "job/memory.max": str(2 * GIB),
        "job/memory.current": str(GIB),
        "job/cpu.max": "100000",
        "job/task/memory.max": str(8 * GIB),
        "job/task/memory.current": "0",
        "job/task/cpu.max": "400000 100000",
        "other/memory.max": "1",
    }
    where = tree(tmp_path, "0::/job/task", files)
    assert memory_limit(*where) == (2 * GIB, GIB)
    assert core_limit(*where) == 1.0


def test_version_1_with_the_path_of_the_host(tmp_path: Path) -> None:
    own = "12:cpu,cpuacct:/docker/3f2a\n9:memory:/docker/3f2a\n1:name=systemd:/docker/3f2a\n0::/"
    files = {
        "memory/memory.limit_in_bytes": str(6 * GIB),
        "memory/memory.usage_in_bytes": str(GIB),
        "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 24",
        "cpu,cpuacct/cpu.cfs_quota_us": "150000",
        "cpu,cpuacct/cpu.cfs_period_us": "50000",
    }
    where = tree(tmp_path, own, files)
    assert memory_limit(*where) == (6 * GIB, 5 * GIB + 24)
    assert core_limit(*where) == 3.0


def test_version_1_without_limits(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }
    where = tree(tmp_path, "3:memory:/\n2:cpu:/", files)
    assert memory_limit(*where) is None
    assert core_limit(*where) is None


@pytest.mark.parametrize("text", ["", "x", "-5", "100 0", "0 100", "1 2 3", "٣", "\xff" * 9])
def test_nonsense_is_no_limit(tmp_path: Path, text: str) -> None:
    where = tree(tmp_path, "0::/../..\nnonsense\n::\n0::/", {"cpu.max": text, "memory.max": text})
    assert core_limit(*where) in (None, 0.5)
    assert memory_limit(*where) is None
    assert memory_limit(tmp_path / "nowhere", tmp_path / "nothing") is None


def test_the_device_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "memory_limit", lambda: MemoryLimit(GIB, GIB // 2))
    monkeypatch.setattr(device, "core_limit", lambda: 0.4)
    about = device.describe_device("cpu")
    assert (about.memory_total, about.memory_free) == (GIB, GIB // 2)
    assert device.available_cores() == 1
    import torch

    sample = device.MemoryMeter(torch.device("cpu")).sample(1)
    assert sample is not None
    assert sample.total == GIB
    whole = psutil.virtual_memory().total
    monkeypatch.setattr(device, "memory_limit", lambda: MemoryLimit(2 * whole, 2 * whole))
    assert device.available_memory().total == whole
