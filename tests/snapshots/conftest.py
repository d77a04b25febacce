"""What every picture shares: a disk that always has the same room."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _same_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "megatron_tui.setup_plan.SetupPlan.look_at_disk",
        lambda plan: setattr(plan, "disk_free", 50 << 30),
    )
