"""The verbs of the command line. With parser.py and console.py, all that prints in this package.

``--json`` puts exactly the event lines on stdout; everything for people goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from megatron_model.cli.console import follow, say
from megatron_model.config.fields import (
    RunConfig,
    SamplingConfig,
    config_from_toml,
    get_setting,
    with_settings,
)
from megatron_model.config.presets import AUTO, default_preset, fitted, get_preset
from megatron_model.config.schema import fields_of
from megatron_model.data.corpus import MissingCorpusError, find_corpus
from megatron_model.data.encoding import UndecodableError
from megatron_model.device import DeviceInfo
from megatron_model.distributed.launcher import launch, processes_here, started_by_torchrun
from megatron_model.events.describe import loss_text
from megatron_model.events.log import last_event
from megatron_model.events.schema import RunFailed, RunFinished, local_time
from megatron_model.planning.compile_choice import begin_compiling
from megatron_model.planning.device_cost import lines_of, parse_amount
from megatron_model.planning.multi_device import costs_of_each
from megatron_model.planning.sizing import sized
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import (
    RunFolder,
    default_runs_dir,
    find_model,
    find_run,
    free_name,
    has_changed,
    list_runs,
)
from megatron_model.util.errors import RequestError
from megatron_model.util.fallback import take_missing
from megatron_model.util.text import safe, with_line_feeds

if TYPE_CHECKING:
    from megatron_model.data.token_cache import PreparedCorpus


def run(options: argparse.Namespace) -> int:
    """Carry out the parsed command line and return the exit status."""
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "train": train,
        "sample": sample,
        "evaluate": evaluate,
        "preflight": preflight,
        "runs": runs,
        "export": export,
        "tell": tell,
    }
    status = verbs[options.verb](options)
    if options.verb != "train":  # whose log says it
        for text in take_missing(set()):
            say(text)
    return status


def _runs_dir(options: argparse.Namespace) -> Path:
    return options.runs_dir or default_runs_dir()


def _changes(options: argparse.Namespace) -> dict[str, object]:
    """Return what ``--set`` and ``--max-seconds`` ask for."""
    changes: dict[str, object] = {}
    for item in options.set:
        key, separator, value = item.partition("=")
        if not separator:
            raise RequestError(
                f'--set "{item}" has no value; write KEY=VALUE, e.g. model.layers=4.'
            )
        changes[key.strip()] = value
    if getattr(options, "max_seconds", None) is not None:
        changes["training.max_seconds"] = str(options.max_seconds)
    if getattr(options, "devices", None) is not None:
        changes["training.devices"] = str(options.devices)
    elif getattr(options, "verb", "") == "train" and started_by_torchrun():
        # A process that takes the run over on this machine uses as many; see handover.py.
        changes["training.devices"] = processes_here()
    return changes


def _configuration(options: argparse.Namespace) -> tuple[str, RunConfig]:
    """Return the preset's name and the configuration asked for, the corpus in it."""
    return _asked(options)[:2]


def _asked(options: argparse.Namespace) -> tuple[str, RunConfig, PreparedCorpus]:
    """Return the preset's name, the configuration asked for, and its corpus.

    The corpus is read for it: a preset is fitted to its characters, which no number of bytes tells.
    """
    from megatron_model.data.report import corpus_notes
    from megatron_model.data.token_cache import prepare_now
    from megatron_model.device import choose_device

    if options.preset is None and options.config:
        name, config = "", RunConfig()
    else:
        name = default_preset(choose_device().type) if options.preset is None else options.preset
        if name == AUTO and options.config:
            raise RequestError("--preset auto chooses what --config sets; leave one of them out.")
        config = RunConfig() if name == AUTO else get_preset(name).config
    if options.config:
        config = config_from_toml(options.config, base=config)
    # A resume may start in another folder.
    changes = {**_changes(options), "data.corpus": find_corpus(options.corpus).location}
    config = with_settings(config, changes)
    data = config.data
    source = find_corpus(options.corpus, data.reading)
    prepared = prepare_now(source, data.encoding, errors=data.errors)
    for note in corpus_notes(source, prepared, data.encoding):
        say(note)
    if name == AUTO:
        config = _sized(config, changes, prepared)
    if not options.config:
        config = fitted(config, prepared.characters, changes.keys())
    return name or options.config.stem, config, prepared


def _sized(asked: RunConfig, changes: dict[str, object], prepared: PreparedCorpus) -> RunConfig:
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


def train(options: argparse.Namespace) -> int:
    """Train a new run, or resume one: in this process, or in several of its own."""
    if started_by_torchrun():
        from megatron_model.distributed import worker

        flags = {"json_lines": options.json, "take_over": options.take_over}
        flags["begun"] = options.begun
        worker.train(partial(_run_of, options), follow=partial(follow, **flags), say=say)
    folder, changed = _run_of(options)
    with folder.removed_unless_begun():
        return _train(folder, changed, options)


def _train(folder: RunFolder, changed: RunConfig | None, options: argparse.Namespace) -> int:
    devices = (changed or folder.read_config()).training.devices
    if devices > 1:
        arguments = []
        if changed:  # every value as it was understood: they do not work in the current folder
            asked = {key: get_setting(changed, key) for key in _changes(options)}
            arguments = [word for key in asked for word in ("--set", f"{key}={asked[key]}")]
        flags = {"--json": options.json, "--take-over": options.take_over}
        arguments += [flag for flag, given in flags.items() if given]
        return launch(folder, devices, max_restarts=options.max_restarts, arguments=arguments)
    begin_compiling(changed or folder.read_config())
    return follow(
        folder,
        changed,
        json_lines=options.json,
        take_over=options.take_over,
        begun=options.begun,
    )


def _run_of(options: argparse.Namespace) -> tuple[RunFolder, RunConfig | None]:
    """Return the run to train, and the configuration to use instead of its own, if any."""
    runs_dir = _runs_dir(options)
    if options.take_over and not options.resume:
        raise RequestError("--take-over needs the run to take over: --resume RUN.")
    if options.resume and options.corpus:
        raise RequestError("--resume keeps the run's own corpus; leave CORPUS out.")
    if options.resume:
        if options.preset or options.config or options.name:
            raise RequestError("--resume keeps the run's name and settings; change one with --set.")
        folder = find_run(options.resume, runs_dir)
        changes = _changes(options)
        if "data.corpus" in changes:
            changes["data.corpus"] = find_corpus(str(changes["data.corpus"])).location
        return folder, with_settings(folder.read_config(), changes) if changes else None
    if options.corpus:
        preset, config = _configuration(options)
        name = options.name
        if _attempt() > 0 and (begun := _begun(runs_dir, config, name)) is not None:
            return begun, None
        if name is None:
            name = free_name(runs_dir, find_corpus(options.corpus).name, f"-{preset}")
        return RunFolder.create(runs_dir, name, config), None
    raise RequestError(
        "train needs a CORPUS (a text file, a folder, builtin:NAME) or --resume RUN."
    )


def _attempt() -> int:
    """Return how often torchrun has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _begun(runs_dir: Path, config: RunConfig, name: str | None) -> RunFolder | None:
    """Return the run that an attempt before this one began: the newest with just these settings."""
    for folder in list_runs(runs_dir):
        with contextlib.suppress(RequestError):
            if (name is None or folder.name == name) and folder.read_config() == config:
                return folder
    return None


def tell(options: argparse.Namespace) -> int:
    """Send a request to the process that trains a run."""
    folder = find_run(options.run, _runs_dir(options))
    over = isinstance(last_event(folder.events_path), (RunFinished, RunFailed))
    if over or not folder.is_active():
        raise RequestError(f'No process trains the run "{safe(folder.name)}" now.')
    CommandFolder(folder.path).send(options.command)
    return 0


def sample(options: argparse.Namespace) -> int:
    """Write text; stdout gets the text alone."""
    if options.num_samples < 1:
        raise RequestError(f"--num-samples is {options.num_samples}; it must be at least 1.")
    asked = {f.name: f.parse(getattr(options, f.name)) for f in fields_of(SamplingConfig)}
    asked["stop"] = with_line_feeds(options.stop)
    sampling = msgspec.structs.replace(SamplingConfig(), **asked)
    path = find_model(
        options.model,
        _runs_dir(options),
        which="latest" if options.latest else "best",
        say=say,
    )
    from megatron_model.cli.output import read_prompt, write_json_lines, write_texts
    from megatron_model.run.checkpoint import load_model

    loaded = load_model(path)
    prompt = read_prompt(options.prompt)
    if options.drop_unknown:
        prompt = loaded.tokenizer.drop_unknown(prompt)
    if options.jsonl:
        write_json_lines(loaded, prompt, sampling, options.num_samples, sys.stdout)
        return 0
    # A corpus may hold escape sequences, and a model learns them: a terminal gets none of them, a
    # file or a pipe gets the text as it is.
    terminal = sys.stdout.isatty()
    write_texts(
        loaded,
        prompt,
        sampling,
        options.num_samples,
        sys.stdout,
        shown=safe if terminal else str,
        flush=terminal,
    )
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print the loss over the whole validation split of the model's corpus, or of another one."""
    runs_dir = _runs_dir(options)
    path = find_model(options.model, runs_dir, say=say)
    from megatron_model.data.token_cache import prepare_now, retokenize, split
    from megatron_model.device import choose_precision
    from megatron_model.inference.sampler import check_finite
    from megatron_model.run.checkpoint import load_model
    from megatron_model.training.loss import bits_per_character, evaluate_loss

    loaded = load_model(path)
    data = loaded.config.data
    # By the rules of the run: a number of the same text is then the same wherever it lies.
    try:
        source = find_corpus(options.corpus or data.corpus, data.reading)
    except MissingCorpusError as missing:
        if options.corpus is not None:
            raise
        raise RequestError(
            f"{missing} Where the text was moved, name it: evaluate MODEL CORPUS."
        ) from None
    # Another text is UTF-8 first of all; the run's own, moved, is not if it never was.
    encodings = [data.encoding] if options.corpus is None else ["auto", data.encoding]
    found = ""
    for encoding in encodings:
        try:
            prepared = prepare_now(source, encoding, errors=data.errors)
            break
        except UndecodableError as error:
            found = found or error.found
    else:  # what is advised otherwise is a setting of a new run
        raise RequestError(f"{found}; make it UTF-8 first.")
    changed = options.corpus is None and has_changed(path, prepared.fingerprint)
    if changed:
        say(
            f"{safe(source.location, one_line=True)} has changed since the run began: this loss is "
            "that of another text than the run's own, with characters in it that were learnt from."
        )
    _, validation = split(prepared, data.validation_fraction, loaded.config.model.block_size)
    validation = retokenize(prepared, loaded.tokenizer.vocabulary)[-len(validation) :]
    if options.surprise:
        from megatron_model.cli.output import write_surprise

        write_surprise(loaded, validation, options.surprise)
    loss = evaluate_loss(
        loaded.model,
        validation,
        block_size=loaded.config.model.block_size,
        device=loaded.device,
        dtype=choose_precision(loaded.config.training.precision, loaded.device),
    )
    check_finite(loss)
    result = {"val_loss": loss, "bits_per_character": bits_per_character(loss)}
    if options.json:
        about = {"step": loaded.step, "characters": len(validation), "corpus_changed": changed}
        print(json.dumps({**result, **about}))
    else:
        print(f"validation loss {loss:.4f}, {result['bits_per_character']:.4f} bits per character")
    return 0


def preflight(options: argparse.Namespace) -> int:
    """Print what a run will cost on this machine."""
    from megatron_model.device import measured_device
    from megatron_model.planning.preflight import preflight as work_out

    _, config, prepared = _asked(options)
    stated = _stated_device(options)
    bandwidth = parse_amount(options.interconnect, "--interconnect")
    about = stated or measured_device(config.training.device, config.training.precision)
    result = work_out(
        config,
        characters=prepared.characters,
        vocabulary_size=len(prepared.vocabulary),
        device=about,
    )
    count, vocabulary = config.training.devices, len(prepared.vocabulary)
    costs = costs_of_each(config, vocabulary, about, bandwidth) if count > 1 else []
    if options.json:
        print(json.dumps({**msgspec.to_builtins(result), "devices": msgspec.to_builtins(costs)}))
        return 0
    gib = 2**30
    rows = [
        ("parameters", f"{result.parameters:,}"),
        ("memory", f"{result.total_bytes / gib:.2f} GiB of {about.memory_free / gib:.1f} GiB free"),
        ("characters", f"{prepared.characters:,}"),
        ("characters a step", f"{result.characters_per_step:,}"),
        ("epochs", "-" if result.epochs is None else f"{result.epochs:.1f}"),
        ("time", "-" if result.seconds is None else f"about {result.seconds:,.0f} s"),
        ("checkpoints", f"{result.checkpoint_bytes / 2**20:,.0f} MiB on disk"),
    ]
    for name, value in rows + lines_of(costs):
        print(f"{name:<20} {value}")
    for text in result.problems + result.warnings:
        say(text)
    return 0


def _stated_device(options: argparse.Namespace) -> DeviceInfo | None:
    """Return the device that was described, which need not be here."""
    if options.device_memory is None:
        return None
    memory = int(parse_amount(options.device_memory, "--device-memory"))
    rate = options.device_rate
    if rate is not None:
        rate = parse_amount(rate, "--device-rate")
    return DeviceInfo("cuda", "as stated", "GPU", memory, memory, bfloat16=True, matrix_rate=rate)


def runs(options: argparse.Namespace) -> int:
    """List the runs, newest first; one that cannot be shown is a line that says why."""
    for folder in list_runs(_runs_dir(options)):
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


def export(options: argparse.Namespace) -> int:
    """Write a model's weights as a plain state dict, or its model file."""
    output: Path = options.output
    if output.suffix not in (".pt", ".safetensors"):
        raise RequestError(f"{output} must end in .pt or .safetensors.")
    path = find_model(options.model, _runs_dir(options), say=say)
    from megatron_model.run.checkpoint import load_model, save_plain_weights
    from megatron_model.util.files import write_atomically

    loaded = load_model(path, device="cpu")
    try:
        if output.suffix == ".pt":
            save_plain_weights(output, loaded.model.state_dict(), mode=0o666)
        else:
            write_atomically(output, path.read_bytes(), mode=0o666)
    except OSError as error:
        raise RequestError(f"Cannot write {output}: {error.strerror}.") from None
    loss = loaded.val_loss if loaded.val_loss is not None else math.nan
    say(f"wrote {output} (step {loaded.step:,}, validation loss {loss:.4f})")
    return 0
