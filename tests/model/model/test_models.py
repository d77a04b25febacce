"""The two architectures: what goes in, what comes out, and that they learn."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import megatron_model
from megatron_model.config.fields import RunConfig
from megatron_model.model.classic import TransformerModel, causal_attention
from megatron_model.model.factory import build_model
from megatron_model.model.size import count_parameters
from tests.model.helpers import ARCHITECTURES, make_trainer, tiny_config, tiny_model

VOCABULARY = 11
both = pytest.mark.parametrize("architecture", ARCHITECTURES)


def model_with_opinions(architecture: str, **changes: object) -> nn.Module:
    """Return a model in evaluation mode none of whose weights is at its quiet beginning."""
    torch.manual_seed(3)
    model = build_model(tiny_model(architecture, **changes), VOCABULARY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_tokens(*shape: int, seed: int = 5) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@both
@torch.no_grad()
def test_a_later_character_never_changes_an_earlier_logit(architecture: str) -> None:
    model = model_with_opinions(architecture)
    tokens = random_tokens(1, 16)
    before = model(tokens)
    for position in range(16):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCABULARY
        after = model(changed)
        assert torch.allclose(after[0, :position], before[0, :position], atol=1e-6)
        assert not torch.allclose(after[0, position], before[0, position], atol=1e-3)


@both
@torch.no_grad()
def test_every_earlier_character_counts(architecture: str) -> None:
    model = model_with_opinions(architecture)
    tokens = random_tokens(1, 16)
    last = model(tokens)[0, -1]
    for position in range(15):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCABULARY
        assert (model(changed)[0, -1] - last).abs().max() > 1e-5


@both
@torch.no_grad()
def test_the_order_of_the_characters_counts(architecture: str) -> None:
    model = model_with_opinions(architecture)
    forth, back = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[4, 3, 2, 1, 5, 6]])
    assert (model(forth)[0, -1] - model(back)[0, -1]).abs().max() > 1e-4


@both
@pytest.mark.parametrize("length", [1, 7, 16])
@torch.no_grad()
def test_each_position_gets_a_logit_for_every_character(architecture: str, length: int) -> None:
    model = model_with_opinions(architecture)
    assert model(random_tokens(3, length)).shape == (3, length, VOCABULARY)


@both
@torch.no_grad()
def test_sequences_of_a_batch_do_not_see_each_other(architecture: str) -> None:
    model = model_with_opinions(architecture)
    batch = random_tokens(3, 16)
    alone = torch.cat([model(row[None]) for row in batch])
    assert torch.allclose(model(batch), alone, atol=1e-5)


@both
def test_more_characters_than_the_block_size_are_refused(architecture: str) -> None:
    with pytest.raises(ValueError, match="17 characters are more than the block size 16"):
        build_model(tiny_model(architecture), VOCABULARY)(random_tokens(1, 17))


@both
@torch.no_grad()
def test_a_new_model_knows_nothing(architecture: str) -> None:
    torch.manual_seed(1)
    model = build_model(tiny_model(architecture), 40)
    tokens = torch.randint(40, (8, 17))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert float(loss) == pytest.approx(math.log(40), rel=0.05)


@pytest.mark.parametrize(
    ("architecture", "optimizer"), [("classic", "adamw"), ("modern", "adamw"), ("modern", "muon")]
)
def test_one_repeated_line_is_learnt_by_heart(architecture: str, optimizer: str) -> None:
    config = tiny_config(
        {
            "model.architecture": architecture,
            "training.optimizer": optimizer,
            "training.learning_rate": 0.02,
            "training.steps": 120,
            "training.batch_size": 8,
            "training.evaluate_every": 120,
            "training.sample_length": 0,
        }
    )
    trainer = make_trainer(config, "the cat sat\n" * 40)
    for _ in trainer.run():
        pass
    assert trainer.val_loss is not None
    assert trainer.val_loss < 0.25  # one character in twelve cannot be known: where a block begins


GRID = [
    {"layers": layers, "embed_dim": width, "heads": heads, "ff_dim": ff_dim, "block_size": block}
    for layers, (width, heads), ff_dim, block in itertools.product(
        (1, 3), ((8, 1), (24, 3)), (5, 32), (4, 9)
    )
]


@both
@pytest.mark.parametrize("shape", GRID, ids=lambda shape: "-".join(map(str, shape.values())))
@pytest.mark.parametrize("vocabulary", [2, 65])
def test_parameters_are_counted_without_building(
    architecture: str, shape: dict[str, object], vocabulary: int
) -> None:
    config = tiny_model(architecture, **shape)
    with torch.device("meta"):
        model = build_model(config, vocabulary)
    assert count_parameters(config, vocabulary) == sum(p.numel() for p in model.parameters())


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the formula of the paper in float64, without any mask tensor."""
    query, key, value = query.double(), key.double(), value.double()
    rows = []
    for position in range(query.size(-2)):
        seen = slice(0, position + 1)
        scores = (key[..., seen, :] @ query[..., position, :, None]).squeeze(-1)
        weights = (scores / query.size(-1) ** 0.5).softmax(-1)
        rows.append((weights[..., None] * value[..., seen, :]).sum(-2))
    return torch.stack(rows, dim=-2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=["f32", "bf16"]
)
@pytest.mark.parametrize("length", [1, 5, 33])
def test_attention_is_the_formula_in_every_arithmetic(
    dtype: torch.dtype, tolerance: float, length: int
) -> None:
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 3, length, 8).to(dtype) for _ in range(3))
    mixed = causal_attention(query, key, value)
    assert mixed.dtype == dtype
    assert torch.allclose(mixed.double(), written_out(query, key, value), atol=tolerance)


def test_both_formulations_of_attention_have_the_same_gradient() -> None:
    torch.manual_seed(2)
    inputs = [torch.randn(2, 2, 9, 8).bfloat16() for _ in range(3)]
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        causal_attention(*leaves).float().square().sum().backward()
        gradients.append([leaf.grad.float() for leaf in leaves if leaf.grad is not None])
    for exact, rough in zip(*gradients, strict=True):
        assert torch.allclose(exact, rough, atol=0.15, rtol=0.1)


@both
def test_dropped_attention_weights_are_a_matter_of_training_only(architecture: str) -> None:
    model = model_with_opinions(architecture, dropout=0.5)
    tokens = random_tokens(2, 16)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@both
@torch.no_grad()
def test_weights_move_strictly_into_a_new_model(architecture: str) -> None:
    model = model_with_opinions(architecture)
    other = build_model(tiny_model(architecture), VOCABULARY).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other(random_tokens(2, 16)), model(random_tokens(2, 16)))
    wider = build_model(tiny_model(architecture, embed_dim=32), VOCABULARY)
    with pytest.raises(RuntimeError, match="size mismatch"):
        wider.load_state_dict(model.state_dict())


@both
def test_gradients_reach_every_weight(architecture: str) -> None:
    model = model_with_opinions(architecture)
    F.cross_entropy(model(random_tokens(4, 16)).flatten(0, 1), random_tokens(64, seed=6)).backward()
    untouched = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()
    ]
    assert untouched == []


def test_the_public_constructor_is_the_seeds() -> None:
    assert megatron_model.TransformerModel is TransformerModel
    parameters = inspect.signature(TransformerModel).parameters
    seed = {"block_size": 256, "embed_dim": 512, "heads": 16, "layers": 16, "ff_dim": 4096}
    assert list(parameters)[:6] == ["vocab_size", *seed]
    assert {name: parameters[name].default for name in seed} == seed
    assert parameters["vocab_size"].default is inspect.Parameter.empty
    with torch.device("meta"):
        by_default = TransformerModel(70)
        by_config = build_model(RunConfig().model, 70)
    assert isinstance(by_config, TransformerModel)
    shapes = {name: value.shape for name, value in by_default.state_dict().items()}
    assert shapes == {name: value.shape for name, value in by_config.state_dict().items()}


def test_the_public_constructor_takes_its_arguments_in_order() -> None:
    model = TransformerModel(VOCABULARY, 16, 24, 3, 2, 40)
    assert (model.vocab_size, model.block_size, len(model.blocks)) == (VOCABULARY, 16, 2)
    assert model(random_tokens(1, 16)).shape == (1, 16, VOCABULARY)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(
        tiny_model("classic", embed_dim=24, heads=3, ff_dim=40), VOCABULARY
    )


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="embed_dim .10. must be a multiple of heads .4."):
        TransformerModel(VOCABULARY, embed_dim=10, heads=4)
