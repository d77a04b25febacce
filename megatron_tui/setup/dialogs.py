"""The dialogs of the Setup screen: what each offers, and what its answer changes in the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from textual.screen import Screen

from megatron_model.config.fields import RunConfig, config_from_toml, config_to_toml
from megatron_model.config.presets import AUTO, PRESETS
from megatron_model.planning.preflight import preflight
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.util.errors import RequestError
from megatron_model.util.files import write_asked_for
from megatron_model.util.text import safe
from megatron_model.util.user_folders import expanded
from megatron_tui.setup.device_lookup import DeviceLookup
from megatron_tui.setup.device_pick import device_changes, device_entries, device_pick
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui import formatting
from megatron_tui.ui.dialogs import Confirm
from megatron_tui.ui.draft import Beginning, SetupDraft
from megatron_tui.ui.notice import Say
from megatron_tui.ui.pick import AskPath, Entry, Pick, RunPick, write_where

MOST_RUNS = 50

Answer = TypeVar("Answer")


class Ask(Protocol):
    """Shows a dialog; `take` is called with its answer, unless it was cancelled."""

    def __call__(
        self, dialog: Screen[Answer] | Screen[Answer | None], take: Callable[[Answer], object]
    ) -> None: ...


class SetupDialogs:
    """Asks with a dialog, and puts the answer into the plan.

    Args:
        plan: what is asked about.
        ask: shows a dialog.
        changed: called after the plan was changed.
        choose_corpus: makes another corpus the choice on the screen.
        say: tells the person what was done.
    """

    def __init__(
        self,
        plan: SetupPlan,
        ask: Ask,
        *,
        changed: Callable[[], object],
        choose_corpus: Callable[[str], object],
        say: Say,
    ) -> None:
        self._plan = plan
        self._ask = ask
        self._changed, self._choose_corpus, self._say = changed, choose_corpus, say

    def ask_device(self, lookup: DeviceLookup) -> None:
        """List the devices, alone and together; those not looked at yet are added later."""
        pick = device_pick(self._plan)

        def take(entry: str) -> None:
            self._plan.change(self._plan.draft.with_values(device_changes(entry)))
            self._changed()

        def listed() -> None:
            if pick.is_attached:
                pick.set_entries(device_entries(self._plan))

        self._ask(pick, take)
        lookup.list_all(listed)

    def ask_encoding(self) -> None:
        """Choose the encoding that the corpus is read in."""
        from megatron_tui.setup.encoding_pick import encoding_pick

        self._ask(encoding_pick(self._plan.facts, self._encoding), self._take_encoding)

    def show_xray(self) -> None:
        """Look through the corpus; the answer is another encoding."""
        from megatron_tui.setup.xray import XrayScreen

        facts = self._plan.facts
        if facts.spec:
            fraction = self._plan.checked.config.data.validation_fraction
            xray = XrayScreen(facts.spec, self._encoding, fraction, facts.errors, facts.rules)
            self._ask(xray, self._take_encoding)

    def browse(self, take: Callable[[str], object]) -> None:
        """Choose a file or folder from a tree."""
        from megatron_tui.setup.file_browser import FileBrowser

        def chosen(path: Path) -> None:
            take(str(path))

        self._ask(FileBrowser(Path.cwd()), chosen)

    def save(self, name: str) -> None:
        """Write the settings to a file, named after the run unless another name is typed."""

        def saved(path: str) -> None:
            self._say(f"Settings saved in {path}")

        self._ask(save_dialog(self._plan, name), saved)

    def load(self) -> None:
        """Read settings from a file."""
        found: list[RunConfig] = []

        def read(typed: str, _again: bool) -> str:
            base = self._plan.draft.without_edits().check().config
            try:
                found.append(config_from_toml(expanded(typed.strip()), base=base))
            except RequestError as error:
                return str(error)
            return ""

        def take(path: str) -> None:
            self._take_config(found[-1])
            self._say(f"Settings loaded from {path}; u undoes it")

        self._ask(AskPath("Load settings from", "", read), take)

    def ask_run(self, runs_dir: Path, resume: Callable[[RunFolder], object]) -> None:
        """Take the settings of a recorded run, or go on with it."""
        pick = run_pick(runs_dir)

        def take(answer: str) -> None:
            folder = RunFolder(runs_dir / answer.removeprefix(pick.RESUME))
            if answer.startswith(pick.RESUME):
                resume(folder)
                return
            try:
                config = folder.read_config()
            except RequestError as error:
                self._say(str(error), error=True)
                return
            self._take_config(config)

        self._ask(pick, take)

    def ask_weights(self, runs: list[RunFolder]) -> None:
        """Choose the run whose weights the new one begins with."""
        if not runs:
            self._say("No run has weights yet; the first one begins without.")
            return

        def take(answer: str) -> None:
            folder = next(folder for folder in runs if folder.name == answer)
            try:
                place = folder.path.absolute()
                self._plan.begin_with(Beginning(folder.name, place, folder.read_config()))
            except RequestError as error:
                self._say(str(error), error=True)
                return
            self._changed()
            name = safe(folder.name, one_line=True)
            self._say(f"Begins with the weights of {name}, with a third of its rates; u undoes it")

        present = self._plan.draft.start
        chosen = present.name if present is not None else ""
        title = "Begin with the weights of which run?"
        self._ask(Pick(title, run_entries(runs), chosen, verb="Begin with them"), take)

    def confirm_start(self, problems: list[str], start: Callable[[], object]) -> None:
        """Start although something stands in the way, if the person says so."""
        question = Confirm(
            "Start although preflight objects?", "\n".join(problems), yes="Start", no="Not yet"
        )
        self._ask(question, lambda confirmed: start() if confirmed else None)

    @property
    def _encoding(self) -> str:
        return self._plan.draft.text("data.encoding")

    def _take_encoding(self, encoding: str) -> None:
        self._plan.change(self._plan.draft.with_text("data.encoding", encoding))
        self._changed()

    def _take_config(self, config: RunConfig) -> None:
        self._plan.take_config(config)
        if config.data.corpus:
            self._choose_corpus(config.data.corpus)
        self._changed()


def preset_pick(plan: SetupPlan) -> Pick:
    """Return the list of presets, with what each costs on this corpus and this machine."""
    entries = []
    about = {name: preset.description for name, preset in PRESETS.items()} | {AUTO: ""}
    for name, description in about.items():
        draft = SetupDraft(name, size=plan.draft.size, machine=plan.draft.machine)
        if draft.sizing is not None:
            description = " ".join(draft.sizing.reasons)
        cost = preflight(
            draft.check().config,
            characters=plan.facts.characters,
            vocabulary_size=plan.vocabulary_size,
            device=plan.device,
        )
        fits = {True: "fits", False: "does not fit", None: ""}[cost.fits]
        seconds = formatting.duration(cost.seconds)
        detail = (
            f"{formatting.count(cost.parameters):>6} parameters "
            f"{formatting.size(cost.total_bytes):>9}  {seconds:>8}  {fits}"
        )
        entries.append(Entry(name, name, detail, description))
    return Pick("Start from which preset?", entries, plan.draft.preset)


def run_pick(runs_dir: Path) -> RunPick:
    """Return the list of recorded runs, newest first."""
    return RunPick("Start from the settings of which run?", run_entries(list_runs(runs_dir)))


def run_entries(runs: list[RunFolder]) -> list[Entry]:
    """Return what there is to tell of the first of some runs."""
    entries = []
    for folder in runs[:MOST_RUNS]:
        with contextlib.suppress(RequestError, OSError):
            state = folder.state()
            known = state.best_val_loss is not None
            best = f"best {formatting.loss(state.best_val_loss)}" if known else ""
            corpus = Path(folder.read_config().data.corpus.removeprefix("builtin:")).name
            step = formatting.exact(state.step)
            detail = f"{folder.status(state):<11} step {step:>7}  {best:<11} {corpus}"
            entries.append(Entry(folder.name, formatting.shortened(folder.name, 28), detail))
    return entries


def save_dialog(plan: SetupPlan, name: str) -> AskPath:
    """Return the dialog that writes the settings as TOML."""

    def save(typed: str, again: bool) -> str:
        data = config_to_toml(plan.config).encode()
        return write_where(typed, again, lambda path: write_asked_for(path, data))

    return AskPath("Save the settings as", f"{name or 'settings'}.toml", save)
