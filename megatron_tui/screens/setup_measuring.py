"""What the Setup screen looks into in the background: devices, and the cost of real steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from textual import on, work
from textual.message import Message

from megatron_model.device import DeviceInfo
from megatron_model.errors import RequestError
from megatron_model.measurement import Measurement, cost_key
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.messages import DeviceDescribed
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.workbench import Workbench

if TYPE_CHECKING:
    from megatron_model.probe import Probe, Progress, Request
    from megatron_tui.setup_plan import SetupPlan


class SetupMeasuring(WorkbenchScreen):
    """The half of the Setup screen that waits for other processes and for torch."""

    plan: SetupPlan

    @dataclass
    class Measured(Message):
        """The measuring process said something; nothing, when it ended."""

        request: Request
        progress: Progress | None

    @dataclass
    class DevicesListed(Message):
        """Every device was looked at."""

        devices: dict[str, DeviceInfo]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.measuring = ""
        """What the measuring process is doing; empty when there is none."""
        self._probe: Probe | None = None
        self._batches: list[Measurement] = []
        self._described: set[str] = set()

    def _update(self) -> None:
        raise NotImplementedError

    def _show_cost(self) -> None:
        raise NotImplementedError

    def say(
        self,
        text: str,
        *,
        title: str = "",
        severity: Literal["information", "warning", "error"] = "information",
    ) -> None:
        """Tell something that needs no answer."""
        self.notify(safe(text), title=title, severity=severity, timeout=8, markup=False)

    def on_unmount(self) -> None:
        """The measuring process must not outlive the screen."""
        self.stop_measuring()

    def action_measure(self) -> None:
        """Measure the present settings, or stop measuring."""
        self._measure(batches=False)

    def action_measure_batches(self) -> None:
        """Measure batch sizes and take the fastest that fits, or stop measuring."""
        self._measure(batches=True)

    def stop_measuring(self) -> None:
        """End the measuring process, if there is one."""
        if self._probe is not None:
            self._probe.cancel()

    def _measure(self, *, batches: bool) -> None:
        if self._probe is not None:
            self.stop_measuring()
            return
        if self.workbench.training.training is not None:
            self.say(
                "A run is in training; measuring beside it would be wrong.", severity="warning"
            )
            return
        if not self.plan.checked.valid:
            self.say("A setting is wrong; mend it first.", severity="warning")
            return
        if self.plan.several:
            self.say("Steps are measured on one device; set training.devices to 1.")
            return
        from megatron_model.preflight import MEMORY_SHARE
        from megatron_model.probe import Probe, Request

        device = self.plan.device
        limit = int(device.memory_free * MEMORY_SHARE) if device is not None else None
        request = Request(self.plan.config, self.plan.vocabulary_size, batches, limit)
        self._probe = Probe(request)
        self.measuring = "starting"
        self._run_probe(self._probe, request)
        self._show_cost()

    @work(thread=True, group="probe", exit_on_error=False)
    def _run_probe(self, probe: Probe, request: Request) -> None:
        for progress in probe.run():
            self.post_message(self.Measured(request, progress))
        self.post_message(self.Measured(request, None))

    @on(Measured)
    def _measured(self, message: Measured) -> None:
        request, progress = message.request, message.progress
        if progress is None:
            self._end_measuring(request)
        elif progress.error:
            self.say(progress.error, severity="error")
        elif progress.measured is not None:
            self._take_measurement(request, progress.measured)
        else:
            self.measuring = progress.doing
        self._update()

    def _take_measurement(self, request: Request, found: Measurement) -> None:
        from megatron_model.config import with_settings

        config = with_settings(request.config, {"training.batch_size": found.batch_size})
        self.plan.measured(cost_key(config, request.vocabulary_size), found)
        if request.batches:
            self._batches.append(found)
            speed = formatting.count(found.characters_per_second)
            self.measuring = f"batch size {found.batch_size}: {speed} characters/s"

    def _end_measuring(self, request: Request) -> None:
        """Take the fastest batch size, if sizes were compared to the end."""
        stopped = self._probe is not None and self._probe.cancelled
        self._probe, self.measuring = None, ""
        found, self._batches = self._batches, []
        if stopped or not request.batches or not found:
            return
        best = max(found, key=lambda one: one.characters_per_second)
        self.plan.change(self.plan.draft.with_values({"training.batch_size": best.batch_size}))
        self.say(
            f"Batch size {best.batch_size} is the fastest here: "
            f"{formatting.count(best.characters_per_second)} characters a second; u undoes it."
        )

    @work(thread=True, group="devices", exit_on_error=False)
    def _list_devices(self) -> None:
        self.post_message(self.DevicesListed(self.workbench.engine.list_devices()))

    @on(DevicesListed)
    def _devices_listed(self, message: DevicesListed) -> None:
        from megatron_tui.screens.device_pick import device_entries
        from megatron_tui.screens.pick import Pick

        self.plan.devices.update(message.devices)
        if isinstance(self.app.screen, Pick):
            self.app.screen.set_entries(device_entries(self.plan))
        self._update()

    def _look_at_device(self) -> None:
        """Find out about a device that was named for the first time."""
        name = self.plan.device_name
        if self.workbench.engine.state != "ready" or self.plan.device is not None:
            return
        if name not in self._described:
            self._described.add(name)
            self._describe_device(name)

    @work(thread=True, group="device", exit_on_error=False)
    def _describe_device(self, name: str) -> None:
        try:
            self.post_message(DeviceDescribed(name, self.workbench.engine.describe(name)))
        except (RequestError, RuntimeError) as error:
            self.post_message(DeviceDescribed(name, None, str(error)))
