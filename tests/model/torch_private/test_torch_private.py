"""The private parts of torch do what they are relied on for, and are touched in one folder only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import megatron_model
from megatron_model.torch_private.skipped_step import step_unless

ROOT = Path(megatron_model.__file__).parent.parent
PRIVATE = re.compile(r"\btorch(\.\w+)*\._[A-Za-z]|\._C\b|from torch\S* import (.*\W)?_[A-Za-z]")
VERSION = f"torch {torch.__version__} does this otherwise than the versions tried before"


def test_private_parts_of_torch_are_touched_in_one_folder_only() -> None:
    found, seen_files = [], 0
    for package in ("megatron_model", "megatron_tui"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            lines = [line for line in path.read_text().splitlines() if PRIVATE.search(line)]
            seen_files += 1
            if not name.startswith("megatron_model/torch_private/"):
                found += [f"{name}: {line.strip()}" for line in lines]
    assert found == []
    assert seen_files > 150, "the scan would prove nothing"


@pytest.mark.parametrize(
    "line",
    [
        "from torch._inductor import aot_compile",
        "torch._C._aoti.alloc()",
        "import torch._dynamo",
        "from torch.distributed import c10d, _functional",
        "from torch.optim._functional import adam",
    ],
)
def test_what_is_private_is_seen(line: str) -> None:
    assert PRIVATE.search(line)
    assert not PRIVATE.search("torch.__version__ of torch.distributed.tensor")


def two_alike() -> list[tuple[nn.Parameter, torch.optim.AdamW]]:
    found = []
    for _ in range(2):
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        found.append((parameter, torch.optim.AdamW([parameter], lr=0.1, fused=True)))
    return found


def all_of(parameter: nn.Parameter, optimizer: torch.optim.AdamW) -> list[Tensor]:
    return [parameter.detach().clone(), *(v.clone() for v in optimizer.state[parameter].values())]


def test_a_fused_step_is_skipped_where_it_is_told_so() -> None:
    (told, optimizer), (plain, other) = two_alike()
    for gradient in (torch.tensor([0.5, 0.1, -1.0]), torch.tensor([-0.2, 2.0, 0.3])):
        told.grad, plain.grad = gradient.clone(), gradient.clone()
        step_unless(optimizer, torch.tensor(False))
        other.step()
    wanted = all_of(plain, other)
    for found, expected in zip(all_of(told, optimizer), wanted, strict=True):
        assert torch.equal(found, expected), VERSION
    told.grad = torch.full((3,), torch.nan)
    step_unless(optimizer, torch.tensor(True))
    for found, expected in zip(all_of(told, optimizer), wanted, strict=True):
        assert torch.equal(found, expected), VERSION
    # And nothing of it is left for a step that is told nothing.
    told.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(told, plain), VERSION
