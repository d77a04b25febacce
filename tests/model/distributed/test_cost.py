"""What the preflight says of several devices, held against what two processes really do."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from megatron_model.cli.parser import main
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import get_preset
from megatron_model.device import DeviceInfo
from megatron_model.planning.device_cost import (
    check_divisible,
    parse_amount,
    per_device,
    traffic_bytes,
)
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from tests.model.distributed.ranks import start_ranks, train

pytestmark = pytest.mark.slow


GIB = 2**30
_BYTES_SENT = 200
"""Where Linux puts ``tcpi_bytes_sent``."""


def bytes_sent() -> int:
    """Return the bytes that went out through every TCP connection of this process."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
    return total


def train_and_count(arguments: list[str], folder: str) -> None:
    """Train, and write down what had been sent when each step began."""
    from megatron_model.distributed.learner import TeamLearner

    step = TeamLearner.step
    path = Path(folder, f"sent-{os.environ['RANK']}.json")
    counts: list[int] = []

    def counting(self: TeamLearner, *rest: object) -> object:
        counts.append(bytes_sent())
        path.write_text(json.dumps(counts))
        return step(self, *rest)  # type: ignore[arg-type]

    TeamLearner.step = counting  # type: ignore[assignment, method-assign]
    train(arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_send_what_was_worked_out(
    runs_dir: Path, config: RunConfig, tmp_path: Path, sharding: Literal["none", "full"]
) -> None:
    changes = {
        "training.optimizer": "muon",
        # What bfloat16 is asked for is sent in float32 where the processor only emulates it.
        "training.muon_precision": "float32",
        "training.sharding": sharding,
        "training.evaluate_every": 1000,
        "training.checkpoint_every": 1000,
        "model.embed_dim": 128,
        "model.ff_dim": 256,
    }
    config = with_settings(config, changes)
    folder = RunFolder.create(runs_dir, "counted", config)
    with start_ranks(2, train_and_count, ["--resume", str(folder.path)], str(tmp_path)) as ranks:
        assert ranks.wait() == [0, 0]
    started = folder.state().started
    assert started is not None
    expected = traffic_bytes(config, started.vocabulary_size, devices=2, sharding=sharding)
    if sharding == "full":
        # gloo adds up all of a tensor everywhere and keeps a part, at the cost of a whole sum.
        expected += 4 * started.parameters // 2
    for rank in (0, 1):
        counts = json.loads((tmp_path / f"sent-{rank}.json").read_text())
        measured = (counts[-1] - counts[1]) / (len(counts) - 2)
        assert measured == pytest.approx(expected, rel=0.02), rank


def card(memory: float, rate: float | None = None) -> DeviceInfo:
    size = int(memory * GIB)
    return DeviceInfo("cuda", "a card", "GPU", size, size, bfloat16=True, matrix_rate=rate)


def test_dividing_makes_room_for_what_does_not_fit() -> None:
    config = with_settings(
        get_preset("large").config, {"model.layers": 48, "model.embed_dim": 2304}
    )
    whole = per_device(config, 100, devices=8, sharding="none", device=card(24))
    divided = per_device(config, 100, devices=8, sharding="full", device=card(24))
    assert not whole.fits
    assert divided.fits
    assert divided.weights_bytes == pytest.approx(whole.weights_bytes / 8, rel=0.01)
    assert divided.total_bytes < whole.total_bytes / 2
    assert divided.traffic_bytes > whole.traffic_bytes


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_processor_that_emulates_bfloat16_sends_float32(
    sharding: Literal["none", "full"],
) -> None:
    config = with_settings(get_preset("small").config, {"training.optimizer": "muon"})
    wide = with_settings(config, {"training.muon_precision": "float32"})
    processor = DeviceInfo("cpu", "a processor", "CPU", 64 * GIB, 64 * GIB, bfloat16=False)
    computes = msgspec.structs.replace(processor, bfloat16=True)

    def sent(config: RunConfig, device: DeviceInfo) -> tuple[int, int]:
        cost = per_device(config, 100, devices=2, sharding=sharding, device=device)
        return cost.traffic_bytes, cost.buffers_bytes

    assert sent(config, processor) == sent(wide, processor) == sent(wide, computes)
    assert sent(config, computes) == sent(config, card(80)) < sent(config, processor)


def test_gradients_cost_what_a_ring_costs() -> None:
    config = get_preset("seed").config
    parameters = per_device(config, 100, devices=2, sharding="none", device=None).weights_bytes
    for devices in (2, 4, 8):
        found = traffic_bytes(config, 100, devices=devices, sharding="none")
        assert found == pytest.approx(2 * (devices - 1) / devices * parameters, rel=1e-3)


def test_scaling_follows_the_bandwidth() -> None:
    config = get_preset("large").config
    gains = [
        per_device(
            config, 100, devices=8, sharding="none", device=card(80, 3e14), bandwidth=bandwidth
        ).speedup
        for bandwidth in (1e9, 25e9, 1e15)
    ]
    assert all(gain is not None for gain in gains)
    assert sorted(gains, key=float) == gains  # type: ignore[arg-type]
    assert gains[-1] == pytest.approx(8.0, rel=0.01)


def test_rows_that_cannot_be_divided_are_refused() -> None:
    config = get_preset("large").config
    check_divisible(config, 8)
    with pytest.raises(RequestError, match=r"model\.embed_dim \(768\) cannot be divided among 7"):
        check_divisible(config, 7)


@pytest.mark.parametrize(
    ("text", "value"),
    [("80GiB", 80 * GIB), ("25GB/s", 25e9), ("300T", 3e14), ("1.5 tflops", 1.5e12), ("7", 7.0)],
)
def test_amounts_are_read_with_their_units(text: str, value: float) -> None:
    assert parse_amount(text, "--what") == value


@pytest.mark.parametrize("text", ["", "much", "80XB", "-1G", "1.2.3G"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--what must be an amount"):
        parse_amount(text, "--what")


def test_the_preflight_tells_of_every_device(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["preflight", str(corpus), "--preset", "large", "--devices", "8"]
    arguments += ["--device-memory", "80GiB", "--device-rate", "300T", "--interconnect", "50GB/s"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["megatron-model", *arguments, *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    text, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    assert "divided (FSDP2)" in text
    assert "times that of one device" in text
    found = json.loads(last)
    assert found["memory_total"] == 80 * GIB
    assert [cost["sharding"] for cost in found["devices"]] == ["none", "full"]
    assert all(cost["fits"] for cost in found["devices"])
