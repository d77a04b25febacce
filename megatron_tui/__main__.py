"""``megatron-tui``: read the arguments, look at the terminal, run the app."""

from megatron_model.util.search_path import leave_out_current_folder

if __name__ == "__main__":  # before another import could find something there
    leave_out_current_folder(__file__)

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_model.util.arguments import EXIT_WRONG_REQUEST, ArgumentParser
from megatron_model.util.streams import OutputLostError, give_up, open_streams
from megatron_model.util.text import safe

if TYPE_CHECKING:
    from megatron_tui.services.training import TrainingService


def main(arguments: list[str] | None = None) -> int:
    """Run the workbench; return the exit status."""
    open_streams()
    parser = ArgumentParser(
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
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # what argparse has printed is written now, where it can be refused
        return _printed(end.code if isinstance(end.code, int) else 0)
    if options.version:
        print(f"megatron-tui {_version()}")
        return _printed(0)
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

    from megatron_model.util.errors import RequestError
    from megatron_model.util.process import wait_without_spinning
    from megatron_model.util.user_folders import user_folder
    from megatron_tui.app import make_app
    from megatron_tui.terminal.capabilities import draws_braille
    from megatron_tui.terminal.output import isolate_native_output
    from megatron_tui.terminal.signals import TerminalSignals
    from megatron_tui.textual_patches.chunks import read_in_chunks

    wait_without_spinning()
    try:
        app = make_app(runs_dir, target, frames_first=True)
    except RequestError as error:
        return _refuse(str(error))
    state = user_folder("state")
    isolate_native_output(state and state / "workbench.log", app.connection.wrote)
    if not draws_braille():
        app.draw_in_ascii()
    read_in_chunks()
    training = app.workbench.training
    signals = app.signals = TerminalSignals(training)
    # Pure Python stretches of the trainer would hold up keys for longer.
    sys.setswitchinterval(0.0005)
    try:
        app.run()
    finally:
        signals.screen_closed.set()
        _wait_for_trainer(training)
        app.workbench.generation.cancel()
    code = 128 + signals.ended_by if signals.ended_by else app.return_code or 0
    if threading.active_count() > 1 or signals.ended_by:
        # A thread still inside torch (an import, a text being written) would crash in the shutdown
        # of the interpreter, and that would complain of a terminal that is gone with a status of
        # its own; what must be saved is saved.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _wait_for_trainer(training: "TrainingService") -> None:
    """See the trainer's last save or the hand-over through, however the screen came to its end."""
    if training.idle.is_set():
        return
    run = training.training
    if run is not None and run.can_command:
        # The screen ended without having been asked to: that is no reason to end the run.
        training.hand_over_or_stop()
    handing_over = run is not None and run.handing_over
    _say("Handing the run over to a process of its own…" if handing_over else "Saving…")
    training.idle.wait()


def _printed(status: int) -> int:
    try:
        sys.stdout.flush()
    except OutputLostError as error:
        give_up(1)
        return _refuse(str(error), 1)
    except BrokenPipeError:
        give_up(1)
        return 1
    return status


def _refuse(sentence: str, status: int = EXIT_WRONG_REQUEST) -> int:
    _say(f"megatron-tui: {safe(sentence, one_line=True)}")
    return status


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
