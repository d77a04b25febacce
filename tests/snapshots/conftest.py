"""What every picture shares: a disk that always has the same room, and a compiler."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _same_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "megatron_tui.setup.plan.SetupPlan.look_at_disk",
        lambda plan: setattr(plan, "disk_free", 50 << 30),
    )


@pytest.fixture(autouse=True)
def _same_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    # The preflight card says whether the steps will be compiled; nothing is, in these tests.
    monkeypatch.setattr("megatron_model.util.c_library.c_compiler", lambda: "cc")
