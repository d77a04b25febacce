"""Marks every test of this folder, and skips them with one line where there is no card."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder; torch is asked only if there is such a test."""
    own = [item for item in items if HERE in item.path.parents]
    if not own:
        return
    import torch

    for item in own:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA card"))
