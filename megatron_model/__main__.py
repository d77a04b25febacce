"""``python -m megatron_model``, which is ``megatron-model``: the command line as a process."""

from megatron_model.util.search_path import leave_out_current_folder

if __name__ == "__main__":  # before another import could find something there
    leave_out_current_folder(__file__)

import contextlib
import os
import sys
import threading
from typing import NoReturn

from megatron_model.cli.parser import main


def run() -> NoReturn:
    """Run one verb and end the process.

    Without the interpreter's own end where torch is loaded: taking it apart takes half a second.
    """
    try:
        main()
    except SystemExit as end:
        if "torch" in sys.modules and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(status: int) -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    # Where nobody reads any more there is nothing to be said either.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
