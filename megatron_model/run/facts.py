"""What a list of runs says of each: looked up when it is asked for, by the names people use."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from megatron_model.config.fields import RunConfig, all_fields, get_setting
from megatron_model.run.about import About, read_about
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.files import bytes_in
from megatron_model.util.text import safe

Kind: TypeAlias = Literal["text", "number", "bytes", "moment", "duration", "words"]

KINDS: dict[str, Kind] = {
    "name": "text",
    "status": "text",
    "val": "number",
    "step": "number",
    "steps": "number",
    "corpus": "text",
    "time": "moment",
    "age": "duration",
    "size": "bytes",
    "tag": "words",
    "note": "text",
}
"""What a run can be sorted and chosen by, beside its settings.

``val`` is the best validation loss, ``time`` when the run was last heard of, ``age`` how long ago
that is, ``size`` what its folder takes on the disk.
"""


def kind_of(name: str) -> Kind:
    """Return what kind of thing a run is sorted or chosen by.

    Raises:
        RequestError: there is no such thing; the nearest is named.
    """
    if name in KINDS:
        return KINDS[name]
    settings = all_fields()
    if name in settings:
        return "text" if settings[name].kind is str else "number"
    known = ", ".join(KINDS)
    raise RequestError(
        f'Runs have no "{safe(name, one_line=True)}".{nearest(name, [*KINDS, *settings])} '
        f"There are {known}, and settings such as model.layers."
    )


_NOTHING: tuple[object, ...] = (None, "", ())


class _Summary(Struct, frozen=True):
    """What is kept of a run's log; all of a long one's curves would fill the memory."""

    status: str
    step: int = 0
    steps: int | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    time: float | None = None


class RunFacts:
    """What is known of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.problem = ""
        """Why its log cannot be read; known once that was tried."""

    @cached_property
    def summary(self) -> _Summary:
        """What its log amounts to."""
        try:
            self.folder.check_readable()
        except RequestError as error:
            self.problem = safe(str(error), one_line=True)
            return _Summary("unreadable")
        state = self.folder.state()
        return _Summary(
            status=self.folder.status(state),
            step=state.step,
            steps=state.started.steps if state.started else None,
            best_val_loss=state.best_val_loss,
            best_step=state.best_step,
            time=state.last_time or None,
        )

    @cached_property
    def config(self) -> RunConfig | None:
        """Its settings; None where they cannot be read."""
        try:
            return self.folder.read_config()
        except RequestError:
            return None

    @cached_property
    def about(self) -> About:
        """What people say of it."""
        return read_about(self.folder)

    @cached_property
    def size(self) -> int:
        """Bytes in its folder."""
        return bytes_in(self.folder.path)

    def row(self) -> dict[str, Any]:
        """Return what ``--json`` says of a run."""
        summary, folder = self.summary, self.folder
        if self.problem:
            path = str(folder.path)
            return {
                "name": folder.name,
                "status": summary.status,
                "path": path,
                "error": self.problem,
            }
        return {
            "name": folder.name,
            "status": summary.status,
            "step": summary.step,
            "steps": summary.steps,
            "best_val_loss": summary.best_val_loss,
            "best_step": summary.best_step,
            "time": summary.time,
            "path": str(folder.path),
            "corpus": self.value("corpus"),
            "size": self.size,
            "tags": self.about.tags,
            "note": self.about.note,
        }

    def value(self, name: str) -> Any:
        """Return what a run is sorted or chosen by, of the kind `kind_of` says; None without it."""
        match name:
            case "name":
                return self.folder.name
            case "val":
                return self.summary.best_val_loss
            case "status" | "step" | "steps" | "time":
                return getattr(self.summary, name)
            case "age":
                then = self.summary.time
                return None if then is None else time.time() - then
            case "size":
                return self.size
            case "tag":
                return self.about.tags
            case "note":
                return self.about.note
            case "corpus":
                return self.config.data.corpus if self.config else None
            case _:
                return get_setting(self.config, name) if self.config else None


def sorted_by(runs: list[RunFacts], name: str, *, falling: bool = False) -> list[RunFacts]:
    """Return runs in the order of something they have; those without it come last.

    Raises:
        RequestError: runs have no such thing.
    """
    kind_of(name)
    values = [(run.value(name), run) for run in runs]
    known = [each for each in values if each[0] not in _NOTHING]
    known.sort(key=lambda each: each[0], reverse=falling)
    return [run for _, run in known] + [run for value, run in values if value in _NOTHING]
