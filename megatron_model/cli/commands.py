"""The verbs of the command line. With cli.py and headless.py, all that prints here.

``--json`` puts exactly the event lines on stdout; everything for people goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from megatron_model.command_folder import CommandFolder
from megatron_model.config import RunConfig, SamplingConfig, config_from_toml, with_settings
from megatron_model.corpus import find_corpus
from megatron_model.device import DeviceInfo
from megatron_model.distributed_cost import lines_of, parse_amount
from megatron_model.distributed_launch import launch, processes_here, started_by_torchrun
from megatron_model.distributed_preflight import costs_of_each
from megatron_model.errors import RequestError
from megatron_model.headless import follow, say
from megatron_model.presets import fitted, get_preset
from megatron_model.run_folder import (
    RunFolder,
    default_runs_dir,
    find_model,
    find_run,
    free_name,
    list_runs,
)
from megatron_model.settings import fields_of
from megatron_model.text import safe


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
    return verbs[options.verb](options)


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
        # Whoever goes on with it on this machine does so with as many; see handover.py.
        changes["training.devices"] = processes_here()
    return changes


def _configuration(options: argparse.Namespace) -> tuple[str, RunConfig]:
    """Return the preset's name and the configuration asked for, the corpus in it."""
    name = options.preset or ("" if options.config else default_preset())
    config = get_preset(name).config if name else RunConfig()
    if options.config:
        config = config_from_toml(options.config, base=config)
    # A resume may start in another folder.
    source = find_corpus(options.corpus)
    changes = {**_changes(options), "data.corpus": source.location}
    config = with_settings(config, changes)
    if not options.config:
        config = fitted(config, source.size, changes.keys())
    return name or options.config.stem, config


def default_preset() -> str:
    """Return the preset for this machine: `small` with an accelerator, else `cpu`."""
    from megatron_model.device import choose_device

    return "cpu" if choose_device().type == "cpu" else "small"


def train(options: argparse.Namespace) -> int:
    """Train a new run, or go on with one: here, or in several processes of their own."""
    if started_by_torchrun():
        from megatron_model import distributed_worker

        return distributed_worker.train(options, _run_of)
    folder, changed = _run_of(options)
    devices = (changed or folder.config).training.devices
    if devices > 1:
        arguments = [word for item in options.set for word in ("--set", item)] if changed else []
        if changed and options.max_seconds is not None:
            arguments += ["--max-seconds", str(options.max_seconds)]
        flags = {"--json": options.json, "--take-over": options.take_over}
        arguments += [flag for flag, given in flags.items() if given]
        return launch(folder, devices, max_restarts=options.max_restarts, arguments=arguments)
    return follow(folder, changed, json_lines=options.json, take_over=options.take_over)


def _run_of(options: argparse.Namespace) -> tuple[RunFolder, RunConfig | None]:
    """Return the run to be trained, and what to go on with instead of its own settings."""
    runs_dir = _runs_dir(options)
    if options.take_over and not options.resume:
        raise RequestError("--take-over needs the run to take over: --resume RUN.")
    if options.resume and options.corpus:
        raise RequestError("--resume goes on with a run's own corpus; leave CORPUS out.")
    if options.resume:
        if options.preset or options.config or options.name:
            raise RequestError("--resume keeps the run's name and settings; change one with --set.")
        folder = find_run(options.resume, runs_dir)
        changes = _changes(options)
        if "data.corpus" in changes:
            changes["data.corpus"] = find_corpus(str(changes["data.corpus"])).location
        return folder, with_settings(folder.config, changes) if changes else None
    if options.corpus:
        preset, config = _configuration(options)
        name = options.name
        if _attempt() > 0 and (begun := _begun(runs_dir, config, name)) is not None:
            return begun, None
        if name is None:
            name = free_name(runs_dir, f"{find_corpus(options.corpus).name}-{preset}")
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
            if (name is None or folder.name == name) and folder.config == config:
                return folder
    return None


def tell(options: argparse.Namespace) -> int:
    """Ask whichever process trains a run for something."""
    folder = find_run(options.run, _runs_dir(options))
    if not folder.is_active():
        raise RequestError(f'No process trains the run "{safe(folder.name)}" now.')
    CommandFolder(folder.path).send(options.command)
    return 0


def sample(options: argparse.Namespace) -> int:
    """Write text; stdout gets the text alone."""
    if options.num_samples < 1:
        raise RequestError(f"--num-samples is {options.num_samples}; it must be at least 1.")
    asked = {f.name: f.parse(getattr(options, f.name)) for f in fields_of(SamplingConfig)}
    sampling = msgspec.structs.replace(SamplingConfig(), **asked)
    path = find_model(
        options.model, _runs_dir(options), which="latest" if options.latest else "best"
    )
    from megatron_model.checkpoint import load_model
    from megatron_model.writing import read_prompt, write_json_lines, write_texts

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
    path = find_model(options.model, runs_dir)
    from megatron_model.checkpoint import load_model
    from megatron_model.device import choose_precision
    from megatron_model.evaluation import bits_per_character, evaluate_loss
    from megatron_model.token_cache import prepare_now, retokenize, split

    loaded = load_model(path)
    data = loaded.config.data
    source = find_corpus(options.corpus or data.corpus)
    prepared = prepare_now(source, data.encoding if options.corpus is None else "auto")
    _, validation = split(prepared, data.validation_fraction, loaded.config.model.block_size)
    validation = retokenize(prepared, loaded.tokenizer.vocabulary)[-len(validation) :]
    if options.surprise:
        from megatron_model.writing import write_surprise

        write_surprise(loaded, validation, options.surprise)
    loss = evaluate_loss(
        loaded.model,
        validation,
        block_size=loaded.config.model.block_size,
        device=loaded.device,
        dtype=choose_precision(loaded.config.training.precision, loaded.device),
    )
    result = {"val_loss": loss, "bits_per_character": bits_per_character(loss)}
    if options.json:
        print(json.dumps({**result, "step": loaded.step, "characters": len(validation)}))
    else:
        print(f"validation loss {loss:.4f}, {result['bits_per_character']:.4f} bits per character")
    return 0


def preflight(options: argparse.Namespace) -> int:
    """Print what a run will cost on this machine."""
    from megatron_model.device import (
        choose_device,
        choose_precision,
        describe_device,
        measure_matrix_rate,
    )
    from megatron_model.preflight import preflight as work_out
    from megatron_model.token_cache import prepare_now

    _, config = _configuration(options)
    stated = _stated_device(options)
    bandwidth = parse_amount(options.interconnect, "--interconnect")
    prepared = prepare_now(find_corpus(config.data.corpus), config.data.encoding)
    device = choose_device(config.training.device)
    precision = choose_precision(config.training.precision, device)
    about = stated or msgspec.structs.replace(
        describe_device(config.training.device), matrix_rate=measure_matrix_rate(device, precision)
    )
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
    rate = options.device_rate and parse_amount(options.device_rate, "--device-rate")
    return DeviceInfo("cuda", "as stated", "GPU", memory, memory, bfloat16=True, matrix_rate=rate)


def runs(options: argparse.Namespace) -> int:
    """List the runs, newest first."""
    for folder in list_runs(_runs_dir(options)):
        state = folder.state()
        status = folder.status(state)
        row = {
            "name": folder.name,
            "status": status,
            "step": state.step,
            "steps": state.started.steps if state.started else None,
            "best_val_loss": state.best_val_loss,
            "best_step": state.best_step,
            "time": state.last_time or None,
            "path": str(folder.path),
        }
        if options.json:
            print(json.dumps(row))
            continue
        best = "-" if state.best_val_loss is None else f"{state.best_val_loss:.4f}"
        when = (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(state.last_time))
            if state.last_time
            else "-"
        )
        print(f"{safe(folder.name):<40} {status:<12} {state.step:>8,}  {best:>8}  {when}")
    return 0


def export(options: argparse.Namespace) -> int:
    """Write a model's weights as a plain state dict, or its model file."""
    output: Path = options.output
    if output.suffix not in (".pt", ".safetensors"):
        raise RequestError(f"{output} must end in .pt or .safetensors.")
    path = find_model(options.model, _runs_dir(options))
    from megatron_model.checkpoint import load_model, save_plain_weights
    from megatron_model.files import write_atomically

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
