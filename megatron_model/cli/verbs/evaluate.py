"""`evaluate`: the loss of a model over a validation split."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from megatron_model.cli.asked import MODEL_HELP, runs_dir
from megatron_model.cli.console import say
from megatron_model.data.corpus import MissingCorpusError, find_corpus
from megatron_model.data.encoding import UndecodableError
from megatron_model.run.folder import find_model, has_changed
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model evaluate first
megatron-model evaluate first other.txt --json
megatron-model evaluate first --surprise surprise.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("corpus", metavar="CORPUS", nargs="?", help="default: the run's own corpus")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--surprise",
        type=Path,
        metavar="FILE",
        help="write the log probability of each validation character, one JSON object a line",
    )


def run(options: argparse.Namespace) -> int:
    """Print the loss over the whole validation split of the model's corpus, or of another one."""
    path = find_model(options.model, runs_dir(options), say=say)
    from megatron_model.data.token_cache import prepare_now, retokenize, split
    from megatron_model.device import choose_precision
    from megatron_model.inference.sampler import check_finite
    from megatron_model.run.checkpoint import load_model
    from megatron_model.training.loss import bits_per_character, evaluate_loss

    loaded = load_model(path, corpus=options.corpus if path.suffix == ".pt" else None)
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
