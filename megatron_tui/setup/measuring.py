"""Measure real steps of the planned run, in a process beside the workbench."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from megatron_model.config.fields import with_settings
from megatron_model.planning.measurement import Measurement, cost_key
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui import formatting
from megatron_tui.ui.background import InBackground
from megatron_tui.ui.notice import Say

if TYPE_CHECKING:
    from megatron_model.training.probe import Probe, Progress, Request


class StepMeasuring:
    """Starts and stops the measuring process, and puts its results into the plan.

    Args:
        plan: the run whose steps are measured.
        in_background: where the output of the process is read.
        changed: called after each thing that the process said.
        say: tells the person what came of it.
    """

    def __init__(
        self,
        plan: SetupPlan,
        in_background: InBackground,
        changed: Callable[[], object],
        say: Say,
    ) -> None:
        self._plan = plan
        self._in_background = in_background
        self._changed, self._say = changed, say
        self.doing = ""
        """What the process is doing; empty when there is none."""
        self._probe: Probe | None = None
        self._batches: list[Measurement] = []

    def toggle(self, *, batches: bool, training: bool) -> None:
        """Measure the present settings, or stop measuring.

        Args:
            batches: whether to compare batch sizes, and to take the fastest that fits.
            training: whether a run trains here, beside which nothing can be measured.
        """
        if self._probe is not None:
            self.stop()
        elif training:
            self._say("A run is in training; measuring beside it would be wrong.", error=True)
        elif not self._plan.checked.valid:
            self._say("A setting is invalid; correct it first.", error=True)
        elif self._plan.several:
            self._say("Steps are measured on one device; set training.devices to 1.")
        else:
            self._start(batches=batches)

    def stop(self) -> None:
        """End the measuring process, if there is one."""
        if self._probe is not None:
            self._probe.cancel()

    def _start(self, *, batches: bool) -> None:
        from megatron_model.planning.preflight import MEMORY_SHARE
        from megatron_model.training.probe import Probe, Request

        device = self._plan.device
        limit = int(device.memory_free * MEMORY_SHARE) if device is not None else None
        request = Request(self._plan.config, self._plan.vocabulary_size, batches, limit)
        self._probe = probe = Probe(request)
        self.doing = "starting"
        self._in_background(
            probe.run,
            lambda progress: self._take(request, progress),
            lambda: self._end(request, probe),
            group="probe",
        )
        self._changed()

    def _take(self, request: Request, progress: Progress) -> None:
        if progress.error:
            self._say(progress.error, error=True)
        elif progress.measured is not None:
            self._take_measurement(request, progress.measured)
        else:
            self.doing = progress.doing
        self._changed()

    def _take_measurement(self, request: Request, found: Measurement) -> None:
        config = with_settings(request.config, {"training.batch_size": found.batch_size})
        self._plan.measured(cost_key(config, request.vocabulary_size), found)
        if request.batches:
            self._batches.append(found)
            speed = formatting.count(found.characters_per_second)
            self.doing = f"batch size {found.batch_size}: {speed} characters/s"

    def _end(self, request: Request, probe: Probe) -> None:
        """Take the fastest batch size, if sizes were compared to the end."""
        self._probe, self.doing = None, ""
        found, self._batches = self._batches, []
        if request.batches and found and not probe.cancelled:
            best = max(found, key=lambda one: one.characters_per_second)
            self._plan.change(
                self._plan.draft.with_values({"training.batch_size": best.batch_size})
            )
            self._say(
                f"Batch size {best.batch_size} is the fastest here: "
                f"{formatting.count(best.characters_per_second)} characters a second; u undoes it."
            )
        self._changed()
