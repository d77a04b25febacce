"""What is asked of a new run: from a preset, a file and single settings to a run that can begin.

The command line and the library ask in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from megatron_model.config.fields import RunConfig, config_from_toml, with_settings
from megatron_model.config.presets import AUTO, default_preset, fitted, get_preset
from megatron_model.data.corpus import find_corpus
from megatron_model.planning.sizing import sized
from megatron_model.run.folder import RunFolder, find_model, free_name
from megatron_model.run.taken_recipe import (
    check_shape,
    gentler,
    joint_vocabulary,
    name_of,
    recipe_of,
)
from megatron_model.util.errors import RequestError

if TYPE_CHECKING:
    from megatron_model.data.token_cache import PreparedCorpus
    from megatron_model.run.checkpoint import LoadedModel


class Start(NamedTuple):
    """The model whose weights a run begins with, and what it is called."""

    model: LoadedModel
    name: str


def start_from(
    model: str,
    runs_dir: Path,
    *,
    corpus: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Start:
    """Return the model that a run is to begin with, by any of its names; see `find_model`.

    Raises:
        RequestError: there is no such model, or it cannot be read.
    """
    path = find_model(model, runs_dir, say=say)
    from megatron_model.run.checkpoint import load_model

    return Start(load_model(path, "cpu", corpus=corpus), name_of(path))


class Request(NamedTuple):
    """A run that was asked for."""

    label: str
    """What its name ends with: the preset, the file, or the model that it goes on from."""
    config: RunConfig
    prepared: PreparedCorpus
    start: Start | None

    @property
    def vocabulary(self) -> str:
        """The characters that the model will know."""
        known = self.start.model.tokenizer.vocabulary if self.start is not None else ""
        return joint_vocabulary(self.prepared.vocabulary, known)

    def name_in(self, runs_dir: Path) -> str:
        """Return a name that no run there has."""
        corpus = find_corpus(self.config.data.corpus).name
        return free_name(runs_dir, corpus, f"-{self.label}")

    def create(self, runs_dir: Path, name: str) -> RunFolder:
        """Make the folder of the run, with the weights that it begins with.

        Raises:
            RequestError: the name is unusable or taken, or the folder cannot be written.
        """
        folder = RunFolder.create(runs_dir, name, self.config)
        if self.start is not None:
            from megatron_model.run.learn_on import begin_from

            begin_from(folder, *self.start, vocabulary=self.prepared.vocabulary)
        return folder


def ask(
    corpus: str,
    *,
    preset: str | None = None,
    file: Path | None = None,
    changes: Mapping[str, object] | None = None,
    start: Start | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Request:
    """Return what a run amounts to that is asked for in these words.

    The corpus is read for it: a preset is fitted to its characters, which no number of bytes tells.

    Args:
        corpus: a text file, a folder of text files, or ``builtin:NAME``.
        preset: the name of one, or ``auto``; None: the model's recipe, or one for the device.
        file: settings in TOML, which take the place of those of a preset.
        changes: single settings by their dotted keys, which come last.
        start: the model that the run goes on from.
        say: gets a sentence about each thing a person should know.

    Raises:
        RequestError: one of them cannot be; nothing was written.
    """
    from megatron_model.data.report import corpus_notes
    from megatron_model.data.token_cache import prepare_now

    label, config = _base(preset, file, start)
    if file is not None:
        config = config_from_toml(file, base=config)
    # A resume may start in another folder.
    changes = {**(changes or {}), "data.corpus": find_corpus(corpus).location}
    config = with_settings(config, changes)
    if start is not None:
        check_shape(config, start.model.config)
    data = config.data
    source = find_corpus(corpus, data.reading)
    prepared = prepare_now(source, data.encoding, errors=data.errors)
    for note in corpus_notes(source, prepared, data.encoding):
        say(note)
    if preset == AUTO:
        config = _sized(config, changes, prepared, say)
    if file is None:
        config = fitted(config, prepared.characters, changes.keys())
    if start is not None:
        config = gentler(config, changes.keys())
    return Request(label, config, prepared, start)


def _base(preset: str | None, file: Path | None, start: Start | None) -> tuple[str, RunConfig]:
    """Return what the run's name ends with, and the settings that others are laid over."""
    if preset == AUTO and file is not None:
        raise RequestError("--preset auto chooses what --config sets; leave one of them out.")
    if start is not None:
        if preset == AUTO:
            raise RequestError(
                "The preset auto chooses a shape, and a run that begins with a model has the "
                "model's; leave one of them out."
            )
        config = recipe_of(start.model.config)
        if preset is not None:
            config = RunConfig(model=config.model, training=get_preset(preset).config.training)
        return f"from-{start.name}", config
    if preset == AUTO:
        return AUTO, RunConfig()
    if preset is None and file is not None:
        return file.stem, RunConfig()
    if preset is None:
        from megatron_model.device import choose_device

        preset = default_preset(choose_device().type)
    return preset, get_preset(preset).config


def _sized(
    asked: RunConfig,
    changes: Mapping[str, object],
    prepared: PreparedCorpus,
    say: Callable[[str], None],
) -> RunConfig:
    """Return what is chosen for the text, the machine and the time, with what was asked."""
    from megatron_model.device import measured_device

    found = sized(
        prepared.characters,
        measured_device(asked.training.device, asked.training.precision),
        seconds=asked.training.max_seconds,
        vocabulary=len(prepared.vocabulary),
    )
    for reason in found.reasons:
        say(reason)
    return with_settings(found.config, changes)
