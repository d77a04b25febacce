"""Find out about the devices of this machine in the background, as far as the plan needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from megatron_model.device import DeviceInfo
from megatron_model.util.errors import RequestError
from megatron_tui.services.torch_loader import TorchLoader
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui.background import InBackground

CARD_PRESET = "small"
"""The preset for a machine with an accelerator."""


class DeviceLookup:
    """Puts what it finds out about devices into the plan.

    Args:
        plan: names the device, and is told what was found.
        engine: knows the devices once torch is loaded.
        in_background: where the devices are looked at.
        changed: called after something was found.
    """

    def __init__(
        self,
        plan: SetupPlan,
        engine: TorchLoader,
        in_background: InBackground,
        changed: Callable[[], object],
    ) -> None:
        self._plan, self._engine = plan, engine
        self._in_background = in_background
        self._changed = changed
        self._asked: set[str] = set()
        """Names of devices that were asked about already."""

    def take_default(self) -> None:
        """Take over the device that torch would choose, if it is known by now."""
        device = self._engine.device
        if device is None:
            return
        self._plan.devices.update({"auto": device, device.kind: device})
        self._plan.cards = self._engine.cards
        if device.kind != "cpu":
            self._plan.suggest_preset(CARD_PRESET)

    def look_at_named(self) -> None:
        """Look at the device that the settings name, the first time that they do."""
        name = self._plan.device_name
        if self._engine.state != "ready" or self._plan.device is not None or name in self._asked:
            return
        self._asked.add(name)
        self._in_background(
            lambda: self._describe(name), lambda found: self._take(name, found), group="device"
        )

    def list_all(self, listed: Callable[[], object]) -> None:
        """Look at every device; `listed` is called when the plan knows them."""

        def take(devices: dict[str, DeviceInfo]) -> None:
            self._plan.devices.update(devices)
            listed()
            self._changed()

        self._in_background(lambda: [self._engine.list_devices()], take, group="devices")

    def _describe(self, name: str) -> Iterator[DeviceInfo | str]:
        try:
            yield self._engine.describe(name)
        except (RequestError, RuntimeError) as error:
            yield str(error)

    def _take(self, name: str, found: DeviceInfo | str) -> None:
        if isinstance(found, str):
            self._plan.device_errors[name] = found
        else:
            self._plan.devices[name] = found
        self._changed()
