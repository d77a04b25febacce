"""Writing text: from logits to the next character, one at a time.

Every draw turns one uniform random number into a character by inverting the cumulative
distribution, so that a seed gives the same draws on every device.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import torch
from torch import Tensor, nn

from megatron_model.config import SamplingConfig
from megatron_model.tokenizer import CharTokenizer


def keep_top_k(probabilities: Tensor, k: int) -> Tensor:
    """Keep the `k` likeliest of probabilities (V,); 0 keeps all. The result is not renormalised."""
    if k <= 0 or k >= probabilities.numel():
        return probabilities
    kept = torch.zeros_like(probabilities)
    values, index = probabilities.topk(k)
    return kept.scatter(0, index, values)


def keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest that together reach share `p` (Holtzman et al. 2019, nucleus)."""
    if p >= 1.0:
        return probabilities
    ordered, index = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(0) - ordered
    kept = torch.where(before < p * ordered.sum(), ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probabilities).scatter(0, index, kept)


def keep_min_p(probabilities: Tensor, share: float) -> Tensor:
    """Keep what is at least `share` times as likely as the likeliest (Nguyen et al. 2024)."""
    if share <= 0.0:
        return probabilities
    return probabilities.where(
        probabilities >= share * probabilities.max(), torch.zeros_like(probabilities)
    )


def choose(logits: Tensor, sampling: SamplingConfig, draw: float) -> int:
    """Return the token that `draw`, uniform in [0, 1), picks from logits (V,) under `sampling`."""
    logits = logits.double().cpu()
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    probabilities = (logits / sampling.temperature).softmax(0)
    probabilities = keep_top_k(probabilities, sampling.top_k)
    probabilities = keep_min_p(probabilities, sampling.min_p)
    probabilities = keep_top_p(probabilities / probabilities.sum(), sampling.top_p)
    cumulative = probabilities.cumsum(0)
    index = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True))
    return min(index, int(probabilities.nonzero().max()))


def generate_tokens(model: nn.Module, prompt: list[int], sampling: SamplingConfig) -> Iterator[int]:
    """Yield `sampling.max_new_tokens` tokens that go on from the non-empty `prompt`.

    Each is predicted from the last `block_size` tokens. The model's mode is restored at the end.
    """
    device = next(model.parameters()).device
    block_size = int(model.block_size)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(sampling.seed)
    window = list(prompt[-block_size:])
    was_training = model.training
    model.eval()
    try:
        for _ in range(sampling.max_new_tokens):
            with torch.no_grad():
                logits = model(torch.tensor([window], device=device))[0, -1]
            draw = float(torch.rand((), generator=generator, dtype=torch.float64))
            token = choose(logits, sampling, draw)
            window = [*window, token][-block_size:]
            yield token
    finally:
        model.train(was_training)


def generate_stream(
    model: nn.Module, tokenizer: CharTokenizer, prompt: str, sampling: SamplingConfig | None = None
) -> Iterator[str]:
    """Yield the characters that go on from `prompt`, one at a time; to stop is to stop pulling.

    An empty prompt begins as if after a line break (or after the first character of the vocabulary,
    where the corpus has no line break).

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
    """
    start = tokenizer.encode(prompt)
    if not start:
        start = [max(0, tokenizer.vocabulary.find("\n"))]
    for token in generate_tokens(model, start, sampling or SamplingConfig()):
        yield tokenizer.decode([token])


def generate(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    max_new_tokens: int = 500,
    **options: float,
) -> str:
    """Return `prompt` and the characters the model writes after it.

    Args:
        model: any model of this package.
        tokenizer: the vocabulary it was trained with.
        prompt: the text to go on from.
        max_new_tokens: characters to write.
        options: other fields of `SamplingConfig`, such as ``temperature=0.5``.

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
        RequestError: an option is out of range.
    """
    sampling = msgspec.structs.replace(SamplingConfig(), max_new_tokens=max_new_tokens, **options)
    return prompt + "".join(generate_stream(model, tokenizer, prompt, sampling))
