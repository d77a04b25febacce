"""Start Python processes of our own so that nothing in the current folder becomes their code.

``python -m`` and ``python -c`` look for every module in the current folder first: a ``torch.py``
that lies next to a corpus would be executed. No torch.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What -P does, which Python 3.10 has not: the current folder stands in the path as "".
_BEGIN = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; "
    "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)

FOLDER = "/"
"""Where they work: what they start themselves takes no code from there either."""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module, as ``python -m`` does; for `child_environment`."""
    return [sys.executable, "-c", _BEGIN, module, *arguments]


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment with `changes`, fit for another folder than the current.

    PYTHONPATH names absolute folders, and the one this package is in where Python would not look
    by itself. Its empty parts, which stand for the current folder, are left out.
    """
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [os.path.abspath(folder) for folder in folders if folder]
    root = str(Path(__file__).resolve().parents[2])
    if root not in [*_site_folders(), *paths]:
        paths.insert(0, root)
    # For what these processes start in turn, as far as Python knows of it (3.11).
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **(changes or {})}
    environment.pop("PYTHONPATH", None)
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)} if paths else environment


def start_python(
    module: str, *arguments: str, changes: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process that runs a module, in a session of its own: a Ctrl+C is not meant for it.

    Args:
        module: its name, as after ``python -m``.
        arguments: for it; a path among them must be absolute.
        changes: what its environment has other than this process's.
        options: of `subprocess.Popen`: where its output goes.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        python_command(module, *arguments),
        env=child_environment(changes),
        cwd=FOLDER,
        start_new_session=True,
        **options,
    )


def start_with_log(
    log: Path, module: str, *arguments: str, anew: bool = False, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process as `start_python` does, whose output goes behind what is in a file.

    Args:
        log: the file; `anew` empties it first.
        module: its name, as after ``python -m``.
        arguments: for it.
        anew: whether the file begins anew.
        options: of `subprocess.Popen`.

    Raises:
        OSError: it cannot be started, or the file cannot be made.
    """
    output = open_log(log, anew=anew)
    try:
        return start_python(
            module, *arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options
        )
    finally:
        os.close(output)


def open_log(path: Path, *, anew: bool = False) -> int:
    """Return a descriptor to append to a log with."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    flags |= os.O_NONBLOCK  # a pipe in its place must not block
    return os.open(path, flags | (os.O_TRUNC if anew else 0), 0o600)


def _site_folders() -> list[str]:
    """Return where Python looks for packages by itself."""
    folders = list(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [os.path.realpath(folder) for folder in folders]
