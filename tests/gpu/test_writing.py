"""Writing on a CUDA card: what the CPU writes, a character being one order."""

from __future__ import annotations

import pytest
import torch

from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.decoder import Decoder, RecordedStep
from megatron_model.inference.sampler import generate_batch, several
from megatron_model.model.factory import build_model
from tests.model.helpers import ARCHITECTURES, tiny_model

ALPHABET = "".join(map(chr, range(48, 48 + 65)))


def written(model: torch.nn.Module, sampling: SamplingConfig, streams: int) -> list[str]:
    columns = generate_batch(
        model, CharTokenizer(ALPHABET), "0", several(sampling, streams), precision="float32"
    )
    return ["".join(texts) for texts in zip(*columns, strict=True)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("streams", [1, 5])
def test_a_card_writes_what_the_cpu_writes(architecture: str, streams: int) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_model(architecture, embed_dim=64, block_size=64), 65).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.requires_grad_(False)
    sampling = SamplingConfig(max_new_tokens=150, temperature=0.8, top_p=0.9, seed=3)
    here = written(model, sampling, streams)
    there = written(model.cuda(), sampling, streams)
    assert there == here


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_character_is_recorded(architecture: str) -> None:
    model = build_model(tiny_model(architecture, embed_dim=64), 65).eval().cuda()
    decoder = Decoder(model, 2)
    decoder.start([1, 2, 3])
    decoder.step([4, 5])
    assert isinstance(decoder._torch, RecordedStep)
    assert decoder._torch._recording is not None
