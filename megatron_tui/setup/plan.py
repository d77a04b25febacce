"""What is planned on the Setup screen and what follows from it; no widget.

Holds the draft and its history, what is known of the corpus, the devices and the measurements, and
works out the configuration, its cost, what would make it fit, and the command that starts it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.device import DeviceInfo, available_cores
from megatron_model.planning.compile_choice import choose_beforehand
from megatron_model.planning.device_cost import DeviceCost
from megatron_model.planning.fit import suggest_fix
from megatron_model.planning.measurement import Measurement, cost_key
from megatron_model.planning.multi_device import (
    chosen_cost,
    costs_of_each,
    preflight_together,
    suggest_fix_together,
)
from megatron_model.planning.preflight import VOCABULARY_GUESS, Preflight, preflight
from megatron_model.run.folder import check_run_name, free_name
from megatron_model.run.taken_recipe import check_shape
from megatron_model.sweep.grid import Point, check_room, grid
from megatron_model.util.errors import RequestError
from megatron_model.util.files import free_bytes
from megatron_tui.services.past_speed import Pace, shape_of
from megatron_tui.setup.corpus_facts import CorpusFacts
from megatron_tui.setup.draft_history import DraftHistory
from megatron_tui.setup.train_command import absolute_corpus, train_command
from megatron_tui.ui.draft import Beginning, Checked, SetupDraft

UNREADABLE = "The corpus cannot be read; the reason is given above."


class SetupPlan:
    """Change it through its methods; read what follows from its properties."""

    def __init__(self, runs_dir: Path, preset: str, *, preset_chosen: bool = False) -> None:
        self.runs_dir = runs_dir
        self.preset_chosen = preset_chosen
        """Whether a person chose the preset; then the device does not suggest another one."""
        self.history = DraftHistory(SetupDraft(preset))
        self.facts = CorpusFacts("")
        self.devices: dict[str, DeviceInfo] = {}
        """Devices by the name that chooses them; ``auto`` is what is chosen without a name."""
        self.device_errors: dict[str, str] = {}
        self.cards: int | None = None
        """CUDA devices of this machine, once they were counted."""
        self.cores = available_cores()
        self.disk_free: int | None = None
        self.paces: dict[tuple[object, ...], Pace] = {}
        """How fast earlier runs were, by what their steps cost."""
        self._fitted = (self.history.draft, self.history.draft)
        self._measured: dict[tuple[object, ...], Measurement] = {}

    @property
    def draft(self) -> SetupDraft:
        """The present draft, on the present corpus."""
        # An estimate until the text was read; a run starts only then.
        size = self.facts.characters or self.facts.estimate or 0
        plain, fitted = self._fitted
        machine = self.devices.get(self.history.draft.edits.get("training.device", "auto"))
        known = plain is self.history.draft and fitted.machine is machine
        if not known or fitted.size != size:
            # Kept, because a draft keeps what it was checked to be.
            fitted = replace(self.history.draft, size=size, machine=machine)
            self._fitted = (self.history.draft, fitted)
        return fitted

    @property
    def checked(self) -> Checked:
        """What the draft amounts to."""
        return self.draft.check()

    def change(self, draft: SetupDraft, group: str = "") -> None:
        """Take another draft, as one step that can be undone."""
        self.history.put(replace(draft, size=0, machine=None), group)

    def choose_preset(self, preset: str) -> None:
        """Take the preset that a person chose; one step back undoes it."""
        self.preset_chosen = True
        self.change(self.draft.with_preset(preset))

    def suggest_preset(self, preset: str) -> None:
        """Start from another preset, unless a person has chosen one or changed a setting.

        It cannot be undone, since nobody chose the one before.
        """
        if not self.preset_chosen and not self.draft.edits:
            self.history.replace_present(self.history.draft.with_preset(preset))

    def take_config(self, config: RunConfig) -> None:
        """Take the settings of a file or a run, as differences from the present preset."""
        self.preset_chosen = True
        self.change(self.draft.with_config(config))

    def begin_with(self, start: Beginning) -> None:
        """Go on from a model's weights, by its recipe; one step back undoes it."""
        self.preset_chosen = True
        self.change(self.draft.with_start(start))

    def undo(self) -> bool:
        """Go one step back."""
        return self.history.undo()

    def redo(self) -> bool:
        """Go one step forward."""
        return self.history.redo()

    @property
    def config(self) -> RunConfig:
        """The configuration with the corpus in it, findable from any folder."""
        return with_settings(self.checked.config, {"data.corpus": absolute_corpus(self.facts.spec)})

    @property
    def points(self) -> list[Point]:
        """The runs of a sweep: one for each combination of what has several values.

        Raises:
            RequestError: one of them cannot be, or there are too many.
        """
        return grid(self.config, self.checked.varied)

    @property
    def sweep_error(self) -> str:
        """Why there can be no such sweep, or nothing."""
        try:
            if self.checked.varied:
                check_room(self.points, self.vocabulary_size, self.disk_free)
        except RequestError as refusal:
            return str(refusal)
        return ""

    @property
    def vocabulary_size(self) -> int:
        """Different characters of the corpus, or a guess."""
        return len(self.facts.vocabulary or ()) or VOCABULARY_GUESS

    @property
    def device_name(self) -> str:
        """The device that is asked for."""
        return self.checked.config.training.device

    @property
    def device(self) -> DeviceInfo | None:
        """What is known of it."""
        return self.devices.get(self.device_name)

    @property
    def several(self) -> bool:
        """Whether the run is to train on more than one device."""
        return self.checked.config.training.devices > 1

    @property
    def each_device(self) -> list[DeviceCost]:
        """What each of several devices needs, with the whole model and with a part of it."""
        config = self.checked.config
        return costs_of_each(config, self.vocabulary_size, self.device) if self.several else []

    @property
    def measurement(self) -> Measurement | None:
        """The measurement that holds for the present settings: it was made on one device."""
        if self.several:
            return None
        return self._measured.get(cost_key(self.checked.config, self.vocabulary_size))

    def measured(self, key: tuple[object, ...], measurement: Measurement) -> None:
        """Take in what was measured for the settings that had this `cost_key`."""
        self._measured[key] = measurement

    def take_paces(self, paces: dict[tuple[object, ...], Pace]) -> None:
        """Take in how fast earlier runs were."""
        self.paces = paces

    @property
    def pace(self) -> Pace | None:
        """How fast a run of the same shape was, if it ran on this machine."""
        rate = self.device.matrix_rate if self.device is not None else None
        found = None if self.several else self.paces.get(shape_of(self.checked.config))
        return found if found is not None and found.of_machine(rate) else None

    @property
    def compiles(self) -> bool:
        """Whether the run will compile its steps, which the estimate of time does not include."""
        config = self.checked.config
        if self.several and chosen_cost(config, self.each_device).sharding == "full":
            return False
        return choose_beforehand(config, self.vocabulary_size, self.device).compiles

    @property
    def cost(self) -> Preflight:
        """What the run will cost, on each of its devices."""
        if self.several:
            return preflight_together(
                self.checked.config,
                characters=self.facts.characters,
                vocabulary_size=len(self.facts.vocabulary) if self.facts.vocabulary else None,
                device=self.device,
                disk_free=self.disk_free,
                cards=self.cards,
            )
        return preflight(
            self.checked.config,
            characters=self.facts.characters,
            vocabulary_size=len(self.facts.vocabulary) if self.facts.vocabulary else None,
            device=self.device,
            disk_free=self.disk_free,
            measurement=self.measurement,
        )

    @property
    def fix(self) -> dict[str, object]:
        """What to change so that the run fits, or does not repeat itself; empty for nothing."""
        if self.several:
            return suggest_fix_together(
                self.checked.config,
                self.cost,
                characters=self.facts.characters,
                vocabulary_size=len(self.facts.vocabulary) if self.facts.vocabulary else None,
                device=self.device,
                disk_free=self.disk_free,
                cards=self.cards,
            )
        return suggest_fix(
            self.checked.config,
            characters=self.facts.characters,
            vocabulary_size=len(self.facts.vocabulary) if self.facts.vocabulary else None,
            device=self.device,
            disk_free=self.disk_free,
        )

    @property
    def problems(self) -> list[str]:
        """What stands in the way of starting, corpus and device included."""
        error = self.device_errors.get(self.device_name, "")
        found = [UNREADABLE] if self.facts.error else []
        if self.draft.start is not None:
            try:
                check_shape(self.checked.config, self.draft.start.config)
            except RequestError as refusal:
                found.append(str(refusal))
        if self.sweep_error:
            found.append(self.sweep_error)
        return found + ([error] if error else []) + self.cost.problems

    def default_name(self) -> str:
        """Return a free name made of corpus and preset."""
        stem = self.facts.name or self.facts.spec.removeprefix("builtin:")
        start = self.draft.start
        kind = self.draft.preset if start is None else f"from-{start.name}"
        if self.checked.varied:
            kind = "sweep"
        return free_name(self.runs_dir, Path(stem).stem, f"-{kind}")

    def name_error(self, name: str) -> str:
        """Return why no run can have this name, or nothing; existing runs are not overwritten."""
        try:
            check_run_name(name)
        except ValueError as refusal:
            return str(refusal)
        taken = (self.runs_dir / name).exists()
        return "A run of this name exists; choose another." if taken else ""

    def command(self, name: str) -> list[str]:
        """Return the command that starts this run."""
        return train_command(
            self.draft,
            corpus=self.facts.spec,
            name=name,
            runs_dir=self.runs_dir,
        )

    def look_at_disk(self) -> None:
        """Find out how much disk space there is for checkpoints."""
        self.disk_free = free_bytes(self.runs_dir)
