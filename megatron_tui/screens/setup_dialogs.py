"""What the dialogs of the Setup screen offer: presets, recorded runs and files, in words."""

from __future__ import annotations

import contextlib
from pathlib import Path

from megatron_model.config import config_from_toml, config_to_toml
from megatron_model.errors import RequestError
from megatron_model.files import write_atomically
from megatron_model.preflight import preflight
from megatron_model.presets import PRESETS
from megatron_model.run_folder import list_runs
from megatron_tui import formatting
from megatron_tui.screens.pick import AskPath, Entry, Pick, RunPick
from megatron_tui.setup_draft import SetupDraft
from megatron_tui.setup_plan import SetupPlan

MOST_RUNS = 50


def preset_pick(plan: SetupPlan) -> Pick:
    """Return the list of presets, with what each costs on this corpus and this machine."""
    entries = []
    for name, preset in PRESETS.items():
        cost = preflight(
            SetupDraft(name, size=plan.facts.size or 0).check().config,
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
        entries.append(Entry(name, name, detail, preset.description))
    return Pick("Begin with which preset?", entries, plan.draft.preset)


def run_pick(runs_dir: Path) -> RunPick:
    """Return the list of recorded runs, newest first."""
    entries = []
    for folder in list_runs(runs_dir)[:MOST_RUNS]:
        with contextlib.suppress(RequestError, OSError):
            state = folder.state()
            best = "" if state.best_val_loss is None else f"best {state.best_val_loss:.3f}"
            corpus = Path(folder.config.data.corpus.removeprefix("builtin:")).name
            detail = f"{folder.status(state):<11} step {state.step:>7,}  {best:<11} {corpus}"
            entries.append(Entry(folder.name, formatting.shortened(folder.name, 28), detail))
    return RunPick("Begin with the settings of which run?", entries)


def save_dialog(plan: SetupPlan, name: str) -> AskPath:
    """Return the dialog that writes the settings as TOML."""

    def save(typed: str, again: bool) -> str:
        path = Path(typed.strip()).expanduser()
        if not typed.strip() or path.is_dir():
            return "Give the name of a file."
        if path.exists() and not again:
            return f"{path} exists; enter once more replaces it."
        try:
            write_atomically(path, config_to_toml(plan.config).encode())
        except OSError as error:
            return f"Cannot write {path}: {error.strerror}."
        return ""

    return AskPath("Save the settings as", f"{name or 'settings'}.toml", save)


def load_dialog(plan: SetupPlan, start: str) -> AskPath:
    """Return the dialog that reads settings from TOML; it changes `plan`."""

    def load(typed: str, _again: bool) -> str:
        try:
            take_config_file(plan, Path(typed.strip()).expanduser())
        except RequestError as error:
            return str(error)
        return ""

    return AskPath("Load settings from", start, load)


def take_config_file(plan: SetupPlan, path: Path) -> None:
    """Take the settings of a file, as differences from the present preset.

    Raises:
        RequestError: the file cannot be read, or names what is unknown or out of range.
    """
    config = config_from_toml(path, base=plan.draft.without_edits().check().config)
    plan.change(plan.draft.with_config(config))
    if config.data.corpus:
        plan.wanted_corpus = config.data.corpus
