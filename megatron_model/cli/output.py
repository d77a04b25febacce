"""Generated texts and surprises, written to a stream: what `sample` and `evaluate` put out."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import IO

import msgspec

from megatron_model.analysis.insight import generate_scored, surprise_of_tokens
from megatron_model.config.fields import SamplingConfig
from megatron_model.data.batches import TokenArray
from megatron_model.inference.sampler import generate_batch, several
from megatron_model.run.checkpoint import LoadedModel
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded
from megatron_model.util.text import safe, with_line_feeds

_LONGEST_PROMPT = 64 << 20


def read_prompt(prompt: str, file: Path | None = None) -> str:
    """Return the prompt; ``-`` stands for all of stdin, and so does a `file` of that name.

    What is read has its last line break left out. Line ends are those of a corpus as it is read: no
    model saw a carriage return.

    Raises:
        RequestError: stdin or the file is not UTF-8, does not end, or cannot be read.
    """
    if file is None and prompt != "-":
        # In a locale without UTF-8 Python keeps the bytes of an argument apart. Where they are not
        # UTF-8, the tokenizer says which it does not know.
        with contextlib.suppress(UnicodeError):
            prompt = os.fsencode(prompt).decode("utf-8")
        return with_line_feeds(prompt)
    where = "on stdin"
    if file is None or str(file) == "-":
        data = sys.stdin.buffer.read(_LONGEST_PROMPT + 1)
    else:
        where = f"in {safe(str(file), one_line=True)}"
        try:
            data = read_bounded(file, _LONGEST_PROMPT)
        except OSError as error:
            raise RequestError(f"The prompt {where} cannot be read: {error.strerror}.") from None
    if len(data) > _LONGEST_PROMPT:
        raise RequestError(
            f"The prompt {where} is longer than {_LONGEST_PROMPT:,} bytes; a model reads the last "
            "of it alone."
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"The prompt {where} is not UTF-8; convert it first.") from None
    return with_line_feeds(text).removesuffix("\n")


def write_texts(
    loaded: LoadedModel,
    prompt: str,
    sampling: SamplingConfig,
    count: int,
    out: IO[str],
    *,
    terminal: bool,
    null: bool = False,
) -> None:
    """Write the prompt and what follows it; several texts have a blank line between them.

    One text comes as it is written, line by line where nobody looks on. Several are written in
    step, and come when they are done. With `null` a NUL ends each, which no text has in it; on a
    terminal a line with its number and seed stands above each.
    """
    # A corpus may hold escape sequences, and a model learns them: a terminal gets none of them, a
    # file or a pipe gets the text as it is.
    shown = safe if terminal else str
    ending = "\0" if null else "\n"
    samplings = several(sampling, count)
    columns = generate_batch(loaded.model, loaded.tokenizer, prompt, samplings)
    if count > 1:
        texts = [[prompt] for _ in range(count)]
        for column in columns:
            for text, character in zip(texts, column, strict=True):
                text.append(character)
        for number, (text, its) in enumerate(zip(texts, samplings, strict=True)):
            if terminal:
                head = f"--- {number + 1} of {count}, seed {its.seed} ---\n"
                out.write(f"\n{head}" if number else head)
            elif number and not null:
                out.write("\n")
            out.write(shown("".join(text)) + ending)
        return
    first = next(columns, [""])  # what is wrong with the prompt shows before anything is written
    out.write(shown(prompt + first[0]))
    for column in columns:
        out.write(shown(column[0]))
        if terminal or "\n" in column[0]:
            out.flush()
    out.write(ending)


def write_json_lines(
    loaded: LoadedModel, prompt: str, sampling: SamplingConfig, count: int, out: IO[str]
) -> None:
    """Write one JSON object a sample: what was asked, its text, and how likely each character was.

    The log probabilities (nats) are the model's own, before temperature and filters.
    """
    samplings = several(sampling, count)
    texts: list[list[str]] = [[] for _ in samplings]
    logs: list[list[float]] = [[] for _ in samplings]
    for column in generate_scored(loaded.model, loaded.tokenizer, prompt, samplings, candidates=0):
        for index, score in enumerate(column):
            if score is not None:
                texts[index].append(score.character)
                logs[index].append(round(score.log_probability, 6))
    for each, text, probabilities in zip(samplings, texts, logs, strict=True):
        sample = {
            "prompt": prompt,
            "text": "".join(text),
            "settings": msgspec.to_builtins(each),
            "step": loaded.step,
            "log_probabilities": probabilities,
        }
        out.write(json.dumps(sample) + "\n")


def write_surprise(loaded: LoadedModel, tokens: TokenArray, path: Path) -> float:
    """Write one JSON object a character into `path`, as they come; return their mean loss in nats.

    Raises:
        RequestError: the file cannot be written.
    """
    total = 0.0
    scores = surprise_of_tokens(
        loaded.model, loaded.tokenizer, tokens, loaded.config.model.block_size
    )
    try:
        with path.open("w", encoding="utf-8") as file:
            for score in scores:
                total -= score.log_probability
                file.write(
                    json.dumps(_row(score.character, score.log_probability, score.candidates))
                )
                file.write("\n")
    except OSError as error:
        raise RequestError(f"Cannot write {path}: {error.strerror}.") from None
    return total / max(1, len(tokens))


def _row(
    character: str, log_probability: float, candidates: tuple[tuple[str, float], ...]
) -> dict[str, object]:
    return {
        "character": character,
        "log_probability": round(log_probability, 6),
        "candidates": [[other, round(value, 6)] for other, value in candidates],
    }
