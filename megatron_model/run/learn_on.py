"""Learning on: a new run begins with the weights of a trained model and reads another text.

The vocabulary is that of the text, and behind it what else the model knows: old characters keep
their weights, and no token of the text changes. The optimizer is fresh, its rates are gentler; see
taken_recipe.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.run.checkpoint import LoadedModel, ModelState, copies_on_host, write_start
from megatron_model.run.folder import Origin, RunFolder
from megatron_model.run.taken_recipe import joint_vocabulary

NOISE = 0.1
"""Spread of the weights of a new character around the mean, in shares of the old ones' spread."""


def widened(weights: dict[str, Tensor], old: str, new: str, seed: int) -> dict[str, Tensor]:
    """Return a model's weights for another vocabulary.

    A character of both keeps its row in the embedding and in the head. One that is new gets the
    mean of the rows that there were, and a little noise that tells it from others.

    Args:
        weights: of either architecture, by name.
        old: the characters of their rows, in order.
        new: the characters of the rows that are wanted.
        seed: of the noise.
    """
    place = {character: row for row, character in enumerate(old)}
    kept = torch.tensor([place.get(character, -1) for character in new])
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, value in weights.items():
        if name.partition(".")[0] in ("token_embedding", "head"):
            noise = torch.randn(len(new), *value.shape[1:], generator=generator)
            spread = value.std(0, correction=0)
            rows = value.mean(0) + NOISE * spread * noise
            rows[kept >= 0] = value[kept[kept >= 0]]
            value = rows
        result[name] = value
    return result


def begin_from(folder: RunFolder, model: LoadedModel, name: str, vocabulary: str) -> None:
    """Have the new run in `folder` begin with the weights of a model.

    Args:
        folder: just made; it is removed again where the weights cannot be written.
        model: the weights.
        name: what the model is called.
        vocabulary: of the text that the run learns from.

    Raises:
        RequestError: the folder cannot be written.
    """
    theirs = model.tokenizer.vocabulary
    both = joint_vocabulary(vocabulary, theirs)
    unused = both[len(vocabulary) :]
    config = folder.read_config()
    on_host = copies_on_host(model.model.state_dict())
    weights = widened(on_host, theirs, both, config.training.seed)
    new = "".join(model.tokenizer.unknown(vocabulary))
    origin = Origin(
        model=name,
        step=model.step,
        val_loss=model.val_loss,
        known=len(both) - len(new),
        new=new,
        unused=unused,
    )
    start = ModelState(weights, CharTokenizer.from_vocabulary(both), config, 0, None)
    with folder.removed_unless_written():
        write_start(folder.checkpoint_path(0), start)
        folder.write_origin(origin)
