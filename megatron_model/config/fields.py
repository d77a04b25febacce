"""Every setting of a run: its type, range, unit, help and default, declared once.

The form, the command line, the TOML file, the preflight and the documentation all read the
declarations here. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import msgspec

from megatron_model.config.schema import Field, Settings, fields_of, setting
from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.toml import read_toml

REPETITION_SPAN = 64
"""How many characters back a repetition penalty looks: some lines, or all letters would pay it."""

Errors: TypeAlias = Literal["stop", "replace", "drop"]
"""What to do about bytes that are invalid in the encoding, and about NULs."""

FIRST_RULES, PRESENT_RULES = 1, 2
"""Which text a corpus is. A run keeps the rules it began with, so that it finds the same text.

1: links in a folder are skipped, files come in the order 1, 10, 2, end to end, and byte-order marks
within a text, or before one whose encoding was named, are characters of it. 2: links are followed,
files come in the order 1, 2, 10, with a line end between them where one is missing, and byte-order
marks are left out wherever they are.
"""


class ModelConfig(Settings, frozen=True, kw_only=True):
    """The shape of the transformer."""

    group: ClassVar[str] = "model"

    architecture: Annotated[
        Literal["classic", "modern"],
        setting(
            "classic: learned positions, LayerNorm, GELU. modern: ALiBi, QK-norm, squared ReLU."
        ),
    ] = "classic"
    block_size: Annotated[
        int,
        setting(
            "How many characters the model sees at once.", unit="characters", low=1, high=2**20
        ),
    ] = 256
    embed_dim: Annotated[
        int, setting("Width of the model: numbers per character between layers.", low=1, high=2**20)
    ] = 512
    heads: Annotated[int, setting("Attention heads; must divide embed_dim.", low=1, high=2**20)] = (
        16
    )
    layers: Annotated[
        int, setting("Transformer blocks stacked on each other.", low=1, high=10_000)
    ] = 16
    ff_dim: Annotated[
        int, setting("Width of the feed-forward layer in each block.", low=1, high=2**20)
    ] = 4096
    dropout: Annotated[
        float,
        setting(
            "Share of activations dropped in training; raise it on small texts.", low=0, high=0.9
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embed_dim % self.heads:
            raise RequestError(
                f"model.embed_dim ({self.embed_dim}) must be a multiple of model.heads "
                f"({self.heads}); {_nearest_multiple(self.embed_dim, self.heads)} would be."
            )


class TrainingConfig(Settings, frozen=True, kw_only=True):
    """How the model learns, how often it reports, and where it runs."""

    group: ClassVar[str] = "training"

    steps: Annotated[int, setting("Optimizer updates in the whole run.", unit="steps", low=1)] = (
        20_000
    )
    batch_size: Annotated[
        int, setting("Sequences of block_size characters in a step.", unit="sequences", low=1)
    ] = 128
    sequence_length: Annotated[
        int,
        setting(
            "Characters of a training sequence; below block_size a modern model learns faster and "
            "still reads the whole block. 0: block_size.",
            unit="characters",
            low=0,
        ),
    ] = 0
    optimizer: Annotated[
        Literal["adamw", "muon"],
        setting("adamw: AdamW for everything. muon: Muon for the matrices, AdamW for the rest."),
    ] = "adamw"
    learning_rate: Annotated[float, setting("AdamW's peak learning rate.", low=0, high=10)] = 3e-4
    muon_learning_rate: Annotated[
        float, setting("Muon's peak learning rate (muon only).", low=0, high=10)
    ] = 0.02
    muon_precision: Annotated[
        Literal["bfloat16", "float32"],
        setting(
            "Arithmetic in which Muon orthogonalises; in float32 the losses are the same on any "
            "number of devices."
        ),
    ] = "bfloat16"
    weight_decay: Annotated[
        float, setting("Decoupled weight decay of the matrices.", low=0, high=10)
    ] = 0.01
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        setting("Shape of the learning rate after the warm-up; linear and cosine end at zero."),
    ] = "constant"
    warmup_steps: Annotated[
        int, setting("Steps over which the learning rate rises from zero.", unit="steps", low=0)
    ] = 0
    cooldown: Annotated[
        float,
        setting("Last share of the run over which a linear schedule falls.", low=0.01, high=1),
    ] = 1.0
    start: Annotated[
        Literal["random", "pairs"],
        setting(
            "Weights before the first step: random, or with a head that knows which character "
            "follows which (a classic model starts at random)."
        ),
    ] = "random"
    token_dropout: Annotated[
        float,
        setting(
            "Share of the characters read in training that are blanked; raise it on small texts "
            "(modern only).",
            low=0,
            high=0.9,
        ),
    ] = 0.0
    gradient_clip: Annotated[
        float, setting("Largest gradient norm; 0 leaves gradients alone.", low=0)
    ] = 0.0
    max_seconds: Annotated[
        float,
        setting(
            "Time budget: schedule and run end with it; 0 counts steps alone.",
            unit="seconds",
            low=0,
        ),
    ] = 0.0
    patience: Annotated[
        int,
        setting("End after so many validations in a row without a better loss; 0: never.", low=0),
    ] = 0
    min_delta: Annotated[
        float,
        setting("How much better a loss must be to count for the patience.", unit="nats", low=0),
    ] = 0.0
    target_loss: Annotated[
        float,
        setting("End once the validation loss is this low; 0: never.", unit="nats", low=0),
    ] = 0.0
    when_diverged: Annotated[
        Literal["return", "stop"],
        setting(
            "After several steps in a row with a loss of NaN or infinity: return to the last "
            "checkpoint with half the learning rate, or stop."
        ),
    ] = "return"
    log_every: Annotated[int, setting("Steps between loss reports.", unit="steps", low=1)] = 100
    evaluate_every: Annotated[
        int, setting("Steps between validations, each with a sample.", unit="steps", low=1)
    ] = 500
    checkpoint_every: Annotated[int, setting("Steps between checkpoints.", unit="steps", low=1)] = (
        1000
    )
    keep_checkpoints: Annotated[
        int, setting("Newest checkpoints kept, beside the best one.", unit="checkpoints", low=1)
    ] = 3
    sample_prompt: Annotated[
        str, setting("Prompt of the samples during training; empty starts with a line break.")
    ] = ""
    sample_length: Annotated[
        int, setting("Characters in a sample; 0 draws none.", unit="characters", low=0)
    ] = 200
    tensorboard: Annotated[
        Literal["off", "on"],
        setting(
            "on also writes the curves as TensorBoard's event files, into tensorboard in the run's "
            "folder, while it trains."
        ),
    ] = "off"
    seed: Annotated[
        int, setting("Decides initial weights, batches and samples.", low=0, high=2**63 - 1)
    ] = 1337
    device: Annotated[
        str, setting("auto, cpu, cuda, cuda:N or mps; auto uses an accelerator if there is one.")
    ] = "auto"
    devices: Annotated[
        int,
        setting("Processes on this machine that train together, each on its own device.", low=1),
    ] = 1
    sharding: Annotated[
        Literal["auto", "none", "full"],
        setting(
            "Of a run on several devices: none keeps the whole model on each, full divides it "
            "among them; auto divides what does not fit."
        ),
    ] = "auto"
    rank_timeout: Annotated[
        float,
        setting(
            "Silence after which one of several processes counts as hung, and the run ends.",
            unit="seconds",
            low=1,
        ),
    ] = 60.0
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        setting("Arithmetic of the matrix products; auto uses bfloat16 where it is fast."),
    ] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        setting("C kernels on a CPU, torch.compile elsewhere; auto uses them where that pays."),
    ] = "auto"
    deterministic: Annotated[
        Literal["on", "off"],
        setting(
            "On a GPU, on makes equal runs equal to the last bit, and a resumed one equal to one "
            "that never stopped; it is slower. On a CPU they always are."
        ),
    ] = "off"
    threads: Annotated[
        int,
        setting(
            "CPU threads for training; 0 chooses, by what others leave free.",
            unit="threads",
            low=0,
            high=1024,
        ),
    ] = 0


class DataConfig(Settings, frozen=True, kw_only=True):
    """What the model reads."""

    group: ClassVar[str] = "data"

    corpus: Annotated[
        str, setting("A text file, a folder of text files, or a built-in corpus.")
    ] = ""
    encoding: Annotated[
        str, setting("Encoding of the text; auto is UTF-8, or what a byte-order mark says.")
    ] = "auto"
    errors: Annotated[
        Errors,
        setting(
            "At bytes that are invalid in the encoding, and at NULs: stop, replace each by U+FFFD, "
            "or drop them."
        ),
    ] = "stop"
    reading: Annotated[
        int,
        setting(
            "Rules by which the text is read, kept so that a run finds the same text again; 1 is "
            "as before links were followed and files had a line end between them.",
            low=FIRST_RULES,
            high=PRESENT_RULES,
        ),
    ] = PRESENT_RULES
    validation_fraction: Annotated[
        float, setting("Share of the text, at its end, kept for validation.", low=0.001, high=0.5)
    ] = 0.1


class RunConfig(Settings, frozen=True, kw_only=True):
    """Everything that was asked of one run; the defaults are the `seed` preset."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        length, block = self.training.sequence_length, self.model.block_size
        if length > block:
            raise RequestError(
                f"training.sequence_length ({length}) is more than model.block_size ({block}); "
                "lower it, or set 0 for the whole block."
            )
        if 0 < length < block and self.model.architecture == "classic":
            raise RequestError(
                f"training.sequence_length ({length}) leaves the positions up to model.block_size "
                f"({block}) of a classic model untrained; set 0 for the whole block."
            )

        if self.training.optimizer == "muon" and self.model.architecture == "classic":
            raise RequestError(
                "training.optimizer muon needs the modern architecture; use adamw with classic."
            )
        if self.training.token_dropout and self.model.architecture == "classic":
            raise RequestError(
                "training.token_dropout needs the modern architecture; use model.dropout instead."
            )

    @property
    def sequence_length(self) -> int:
        """Characters of a training sequence."""
        return self.training.sequence_length or self.model.block_size


class SamplingConfig(Settings, frozen=True, kw_only=True):
    """How characters are drawn from the model's probabilities."""

    max_new_tokens: Annotated[int, setting("Characters to write.", unit="characters", low=0)] = 500
    temperature: Annotated[
        float,
        setting("Below 1 careful, above 1 wild; 0 always takes the likeliest.", low=0, high=10),
    ] = 0.8
    top_k: Annotated[int, setting("Draw from the k likeliest only; 0 from all.", low=0)] = 0
    top_p: Annotated[
        float,
        setting("Draw from the likeliest that together reach p; 1 from all.", low=0.01, high=1),
    ] = 1.0
    min_p: Annotated[
        float, setting("Drop what is less likely than this share of the likeliest.", low=0, high=1)
    ] = 0.0
    typical_p: Annotated[
        float,
        setting(
            "Draw from those that surprise as much as is usual here and reach p; 1 from all.",
            low=0.01,
            high=1,
        ),
    ] = 1.0
    repetition_penalty: Annotated[
        float,
        setting("Above 1, the characters written last become less likely.", low=1, high=10),
    ] = 1.0
    repetition_window: Annotated[
        int,
        setting("How far back the penalty reaches.", unit="characters", low=1, high=100_000),
    ] = REPETITION_SPAN
    forbidden: Annotated[str, setting("Characters that are never drawn.")] = ""
    only: Annotated[str, setting("No other characters are drawn; empty allows all.")] = ""
    seed: Annotated[int, setting("Same seed, same text.", low=0, high=2**63 - 1)] = 1337
    stop: Annotated[
        str, setting("Stop once this text was written; empty writes the full length.")
    ] = ""


_GROUPS: dict[str, type[Settings]] = {
    "model": ModelConfig,
    "training": TrainingConfig,
    "data": DataConfig,
}


def all_fields() -> dict[str, Field]:
    """Return every setting of a run by its dotted key, in the order of declaration."""
    return {field.key: field for group in _GROUPS.values() for field in fields_of(group)}


def get_setting(config: RunConfig, key: str) -> Any:
    """Return the value of a dotted key such as ``model.layers``."""
    group, name = _find(key).key.split(".")
    return getattr(getattr(config, group), name)


def with_settings(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """Return `config` with dotted keys changed; a string value is parsed as typed by a person.

    All changes of a group are applied before the group is checked, so that two fields that depend
    on each other can change together.

    Raises:
        RequestError: a key is unknown (the nearest one is named) or a value is refused.
    """
    grouped: dict[str, dict[str, object]] = {}
    for key, value in changes.items():
        field = _find(key)
        group, name = field.key.split(".")
        grouped.setdefault(group, {})[name] = (
            field.parse(value) if isinstance(value, str) else value
        )
    groups = {
        group: msgspec.structs.replace(getattr(config, group), **values)
        for group, values in grouped.items()
    }
    return msgspec.structs.replace(config, **groups)


def settings_by_key(settings: Mapping[str, object]) -> dict[str, object]:
    """Return settings given by name, such as ``layers=4``, by their dotted keys, types checked.

    No two groups have a setting of one name; a dotted key is taken too.

    Raises:
        RequestError: there is no such setting (the nearest is named), or a value is none for it.
    """
    known = all_fields()
    by_name = {field.name: field for field in known.values()}
    found: dict[str, object] = {}
    for name, value in settings.items():
        field = known.get(name) or by_name.get(name)
        if field is None:
            raise RequestError(f'Unknown setting "{name}".' + nearest(name, [*by_name, *known]))
        found[field.key] = field.parse(value) if isinstance(value, str) else _typed(field, value)
    return found


def differences(config: RunConfig, base: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return ``{key: (value in base, value in config)}`` for the settings that differ."""
    pairs = {key: (get_setting(base, key), get_setting(config, key)) for key in all_fields()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def config_from_builtins(data: object, *, base: RunConfig | None = None) -> RunConfig:
    """Build a configuration from nested dictionaries; what is absent keeps the value of `base`.

    Raises:
        RequestError: an unknown group or field, a wrong type, or a value out of range.
    """
    if not isinstance(data, Mapping):
        raise RequestError("A configuration must be a table of model, training and data.")
    changes: dict[str, object] = {}
    for group, values in data.items():
        if group not in _GROUPS:
            raise RequestError(
                f'Unknown group of settings "{group}".' + nearest(str(group), _GROUPS)
            )
        if not isinstance(values, Mapping):
            raise RequestError(f'"{group}" must be a table of settings.')
        for name, value in values.items():
            field = _find(f"{group}.{name}")
            changes[field.key] = _typed(field, value)
    return with_settings(base or RunConfig(), changes)


def recorded_config(data: object) -> RunConfig:
    """Return the configuration that a run or a checkpoint recorded.

    One from before the rules of reading had numbers names none: those were the first.

    Raises:
        RequestError: as `config_from_builtins`.
    """
    first = RunConfig(data=DataConfig(reading=FIRST_RULES))
    return config_from_builtins(data, base=first)


def config_from_toml(path: Path, *, base: RunConfig | None = None) -> RunConfig:
    """Read a configuration file; settings it does not name keep the value of `base`.

    A run's own run.toml is one: its table about the run itself is ignored.
    """
    data = read_toml(path)
    data.pop("run", None)
    try:
        return config_from_builtins(data, base=base)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None


def config_to_toml(config: RunConfig, keys: Collection[str] | None = None) -> str:
    """Write every setting, or those of these keys, as TOML with its help beside it."""
    import tomlkit

    document = tomlkit.document()
    for group, declared in _GROUPS.items():
        table = tomlkit.table()
        for field in fields_of(declared):
            if keys is None or field.key in keys:
                item = tomlkit.item(getattr(getattr(config, group), field.name))
                item.comment(field.description)
                table.add(field.name, item)
        if table:
            document.add(group, table)
    return tomlkit.dumps(document)


def settings_named(word: str) -> dict[str, Field]:
    """Return the setting of this key, or all of a group, by their keys.

    Raises:
        RequestError: there is neither; the nearest is named.
    """
    found = {key: field for key, field in all_fields().items() if key.startswith(f"{word}.")}
    return found or {word: _find(word)}


def _find(key: str) -> Field:
    known = all_fields()
    if key not in known:
        raise RequestError(f'Unknown setting "{key}".' + nearest(key, known))
    return known[key]


def _typed(field: Field, value: object) -> object:
    """Check a value read from a file: whole numbers serve as floats, nothing else bends."""
    if field.kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not field.kind:
        wanted = {int: "a whole number", float: "a number", str: "text"}[field.kind]
        raise RequestError(f"{field.key} must be {wanted}.")
    field.check(value)
    # `with_settings` would parse a string a second time; for text fields that is the identity.
    return value


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)
