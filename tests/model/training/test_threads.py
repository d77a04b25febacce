"""As many threads as others leave cores free."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from megatron_model.training.threads import LOOK_SECONDS, ThreadKeeper, threads_beside
from megatron_model.util.others import OthersMeter


@pytest.mark.parametrize(
    ("cores", "there", "others", "threads"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.25, 2),
        (2, 2, 0.67, 1),
        (2, 2, 2.0, 1),
        (16, 16, 0.2, 16),
        (16, 16, 3.0, 13),
        (16, 16, 40.0, 1),
        (1, 1, 0.0, 1),
        (4, 64, 40.0, 4),
        (4, 64, 62.0, 2),
    ],
)
def test_threads_are_as_many_as_cores_are_left(
    cores: int, there: int, others: float, threads: int
) -> None:
    assert threads_beside(cores, there - others) == threads


class Machine:
    """A machine of two cores whose clock and counters are set by hand."""

    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0
        self.threads = 2
        self.meter = OthersMeter(self.read, there=2)
        self.keeper = ThreadKeeper(
            2, clock=lambda: self.now, meter=self.meter, use=lambda n: setattr(self, "threads", n)
        )

    def read(self) -> tuple[float, float]:
        """Be the kernel."""
        return self.busy, self.own

    def goes_on(self, others: float) -> str:
        """Let two seconds pass in which others use so many cores."""
        self.now += LOOK_SECONDS
        self.busy += 2.0 * LOOK_SECONDS
        self.own += (2.0 - others) * LOOK_SECONDS
        return self.keeper.look(self.threads)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()
    monkeypatch.setattr("megatron_model.util.others.time.monotonic", lambda: made.now)
    made.meter = OthersMeter(made.read, there=2)
    made.keeper._meter = made.meter
    yield made


def test_a_busy_machine_gets_fewer_threads_and_a_free_one_more(machine: Machine) -> None:
    assert machine.goes_on(0.0) == ""
    assert machine.goes_on(0.9) == "", "it may be for a moment"
    assert machine.threads == 2
    assert machine.goes_on(0.7) == (
        "the machine is busy (others use 0.7 of 2 cores): "
        "steps are computed by 1 thread from now on"
    )
    assert machine.threads == 1
    assert machine.goes_on(1.0) == ""
    assert machine.goes_on(0.0) == ""
    assert machine.goes_on(0.1).startswith("there is room again (others use 0.1 of 2 cores)")
    assert machine.threads == 2


def test_a_moment_changes_nothing(machine: Machine) -> None:
    for others in (1.5, 0.0, 1.5, 0.0):
        assert machine.goes_on(others) == ""
    assert machine.threads == 2


def test_it_is_not_looked_at_all_the_time(machine: Machine) -> None:
    machine.goes_on(1.0)
    machine.now += LOOK_SECONDS / 2
    assert machine.keeper.look(2) == ""


def test_a_kernel_that_tells_nothing_changes_nothing() -> None:
    def silent() -> tuple[float, float]:
        raise PermissionError

    assert OthersMeter(silent).cores() is None


@pytest.mark.slow
def test_a_busy_loop_is_seen() -> None:
    meter = OthersMeter()
    loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        meter.cores()
        time.sleep(1.0)
        others = meter.cores()
    finally:
        loop.kill()
        loop.wait()
    assert others is not None
    assert others > 0.3
