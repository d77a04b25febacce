"""Commands to a trainer, from screens, other threads and signal handlers."""

from __future__ import annotations

import subprocess
import sys
import threading

from megatron_model.run.control import Control


def test_commands_are_taken_in_order_and_once() -> None:
    control = Control()
    assert control.take() is None
    control.put("pause")
    control.put("save")
    assert [control.take(), control.take(), control.take()] == ["pause", "save", None]


def test_waiting_ends_with_a_command_which_is_still_there() -> None:
    control = Control()
    thread = threading.Thread(target=control.put, args=("resume",))
    thread.start()
    control.wait()
    thread.join()
    control.wait()  # it was not taken yet
    assert control.take() == "resume"
    assert control.take() is None
    control.wait(0.001)


_TRAINER = """
import os, signal, subprocess, sys
from megatron_model.run.control import Control

control = Control()
signal.signal(signal.SIGUSR1, lambda *_: control.put("stop"))
sender = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())])
taken = 0
while taken < 20_000:
    control.wait(0.00001)
    taken += control.take() is not None
sender.kill()
"""
_SENDER = """
import os, signal, sys

while True:
    os.kill(int(sys.argv[1]), signal.SIGUSR1)
    for _ in range(3000):  # time for the handler to end, so that handlers do not pile up
        pass
"""


def test_a_signal_handler_may_put_a_command_at_any_moment() -> None:
    # A process of its own: what goes wrong here is a thread that waits for itself for ever.
    command = [sys.executable, "-c", _TRAINER, _SENDER]
    assert subprocess.run(command, timeout=60, capture_output=True).returncode == 0
