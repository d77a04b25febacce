"""``megatron-tui``: read the arguments, look at the terminal, run the app."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_tui.training_service import TrainingService


def main(arguments: list[str] | None = None) -> int:
    """Run the workbench; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="megatron-tui", description="Train character-level transformers in the terminal."
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="CORPUS_OR_RUN",
        help="a run to open, or a corpus to choose: a text file, a folder, or builtin:NAME",
    )
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", help="where the runs are kept")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    options = parser.parse_args(arguments)
    if options.version:
        print(f"megatron-tui {_version()}")
        return 0
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _refuse(
            "megatron-tui needs a terminal on stdin and stderr; "
            "use megatron-model to train without a screen."
        )
    return _run(options.runs_dir, options.target)


def _run(runs_dir: Path | None, target: str | None) -> int:
    # Read when textual is imported; over SSH an animation costs more than it shows.
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    os.environ.setdefault("TEXTUAL_SMOOTH_SCROLL", "0")

    from megatron_model.errors import RequestError
    from megatron_model.process import wait_without_spinning
    from megatron_tui.lifeline import Lifeline
    from megatron_tui.native_output import isolate_native_output
    from megatron_tui.opening import make_app
    from megatron_tui.terminal import draws_braille

    wait_without_spinning()
    try:
        app = make_app(runs_dir, target, frames_first=True)
    except RequestError as error:
        return _refuse(str(error))
    import platformdirs

    log = platformdirs.user_state_path("megatron") / "workbench.log"
    isolate_native_output(log, app.line.wrote)
    if not draws_braille():
        app.draw_in_ascii()
    training = app.workbench.training
    lifeline = app.lifeline = Lifeline(training)
    # Pure Python stretches of the trainer would hold up keys for longer.
    sys.setswitchinterval(0.0005)
    try:
        app.run()
    finally:
        lifeline.screen_closed.set()
        _wait_for_trainer(training)
        app.workbench.generation.cancel()
    code = 128 + lifeline.ended_by if lifeline.ended_by else app.return_code or 0
    if threading.active_count() > 1 or lifeline.ended_by:
        # A thread still inside torch (an import, a text being written) would crash in the shutdown
        # of the interpreter, and that would complain of a terminal that is gone with a status of
        # its own; what must be saved is saved.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _wait_for_trainer(training: TrainingService) -> None:
    """See the trainer's last save or the hand-over through, however the screen came to its end."""
    if training.idle.is_set():
        return
    run = training.training
    if run is not None and not (run.stopping or run.leaving):
        # The screen ended without having been asked to: that is no reason to end the run.
        training.leave()
    _say("Handing the run over to a process of its own…" if training.leaving else "Saving…")
    training.idle.wait()


def _refuse(sentence: str) -> int:
    _say(f"megatron-tui: {sentence}")
    return 2


def _say(sentence: str) -> None:
    stream = sys.__stderr__
    # The terminal may be gone; the trainer's last save must be waited for all the same.
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            stream.write(sentence + "\n")
            stream.flush()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("megatron-tui")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
