"""The classic model's weights under GPT-2's names, and back: the two compute the same.

GPT-2 (Radford et al. 2019) as Hugging Face and nanoGPT write it. What differs: its head has no
bias, and Hugging Face keeps each matrix transposed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ENDS = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "head.weight": "lm_head.weight",
}
LAYER = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.0": "mlp.c_fc",
    "feed_forward.2": "mlp.c_proj",
}
"""The parts of a layer, each with a weight and a bias."""
HEAD_BIAS = "head.bias"
EXACT = 1e-4
"""A logit may differ by so much where the head's bias was folded away."""


def is_matrix(part: str) -> bool:
    """Whether a part of a layer, by our name, is a matrix: Hugging Face keeps it transposed."""
    return not part.endswith("norm")


def names(layers: int) -> dict[str, str]:
    """Return GPT-2's name for each of our weights but the head's bias."""
    found = dict(ENDS)
    for layer in range(layers):
        for ours, theirs in LAYER.items():
            for kind in ("weight", "bias"):
                found[f"blocks.{layer}.{ours}.{kind}"] = f"transformer.h.{layer}.{theirs}.{kind}"
    return found


def transposed(name: str) -> bool:
    """Whether Hugging Face keeps the weight that we call `name` transposed."""
    part = name.split(".", 2)[-1].removesuffix(".weight")
    return name.startswith("blocks.") and name.endswith(".weight") and is_matrix(part)


def without_head_bias(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights with the head's bias folded into that of the norm before it.

    ``W (n + d) = W n + b`` has a solution d where the rows of W are independent: with no more
    characters than channels, as a rule. None where the logits would differ by more than `EXACT`.
    """
    head, bias = weights["head.weight"].double(), weights[HEAD_BIAS].double()
    folded = dict(weights)
    del folded[HEAD_BIAS]
    if bool(bias.any()):
        found = torch.linalg.lstsq(head, bias[:, None], driver="gelsd").solution[:, 0]
        shifted = (weights["norm.bias"].double() + found).float()
        error = head @ (shifted.double() - weights["norm.bias"].double()) - bias
        # Large numbers that cancel each other are no solution in float32.
        rounding = shifted.abs().max() * head.abs().sum(1).max() * 1e-7
        if not float(error.abs().max() + rounding) < EXACT:
            return None
        folded["norm.bias"] = shifted
    return folded
