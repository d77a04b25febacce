"""The flipbook: one prompt through all checkpoints of a run, and what each one changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

import msgspec

from megatron_model.config.fields import SamplingConfig
from megatron_model.run.checkpoint import load_model
from megatron_model.run.folder import MODEL_FILE, RunFolder
from megatron_model.util.errors import RequestError

_WORDS = re.compile(r"\w+|\s|[^\w\s]")


class Page(msgspec.Struct, frozen=True):
    """What one checkpoint wrote.

    Args:
        step: of the checkpoint.
        val_loss: its validation loss, if it was evaluated.
        text: prompt and all.
        changed: the places of `text` that the page before had not.
    """

    step: int
    val_loss: float | None
    text: str
    changed: tuple[int, ...] = ()


def turn_pages(folder: RunFolder, prompt: str, sampling: SamplingConfig) -> Iterator[Page]:
    """Yield what each checkpoint of a run writes after `prompt` with the same seed, oldest first.

    Checkpoints that are damaged are left out.

    Raises:
        RequestError: there is none; or the prompt has characters the run never saw.
    """
    checkpoints = sorted(folder.readable_checkpoints(), key=lambda one: one.step)
    if not checkpoints:
        raise RequestError(f"The run {folder.name} has no checkpoint to write with.")
    before: str | None = None
    for checkpoint in checkpoints:
        written = "".join(load_model(checkpoint.path / MODEL_FILE).stream(prompt, sampling))
        text = prompt + written
        places = () if before is None else changed_places(before, text)
        yield Page(checkpoint.step, checkpoint.val_loss, text, tuple(places))
        before = text


def changed_places(before: str, after: str) -> Sequence[int]:
    """Return the places in `after` of the words and signs that are not those of `before`."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    starts = [0]
    for word in new:
        starts.append(starts[-1] + len(word))
    places: list[int] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for kind, _, _, first, last in matcher.get_opcodes():
        if kind != "equal":
            places += range(starts[first], starts[last])
    return places
