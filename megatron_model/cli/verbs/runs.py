"""`runs`: list the runs, newest first."""

from __future__ import annotations

import argparse
import json
from typing import Any

from megatron_model.cli.asked import runs_dir
from megatron_model.events.describe import loss_text
from megatron_model.events.schema import local_time
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")


def run(options: argparse.Namespace) -> int:
    """List the runs, newest first; one that cannot be shown is a line that says why."""
    for folder in list_runs(runs_dir(options)):
        try:
            row = _row(folder)
        except RequestError as error:
            row = {"name": folder.name, "status": "unreadable", "path": str(folder.path)}
            row["error"] = safe(str(error), one_line=True)
        if options.json:
            print(json.dumps(row))
        elif "error" in row:
            print(f"{safe(folder.name, one_line=True):<40} {row['status']:<12} {row['error']}")
        else:
            best = row["best_val_loss"]
            best = "-" if best is None else loss_text(best)
            when = local_time(row["time"], "%Y-%m-%d %H:%M") if row["time"] else "-"
            print(
                f"{safe(folder.name, one_line=True):<40} {row['status']:<12} {row['step']:>8,}  "
                f"{best:>8}  {when}"
            )
    return 0


def _row(folder: RunFolder) -> dict[str, Any]:
    """Return what the list says of a run.

    Raises:
        RequestError: its log cannot be read.
    """
    folder.check_readable()
    state = folder.state()
    return {
        "name": folder.name,
        "status": folder.status(state),
        "step": state.step,
        "steps": state.started.steps if state.started else None,
        "best_val_loss": state.best_val_loss,
        "best_step": state.best_step,
        "time": state.last_time or None,
        "path": str(folder.path),
    }
