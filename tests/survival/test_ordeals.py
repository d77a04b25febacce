"""The short forms of what `make torture` does for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_model.run.folder import RunFolder
from tests.survival import mutations, ordeals

pytestmark = pytest.mark.slow


def test_killed_trainers_lose_nothing_that_was_saved(runs_dir: Path, corpus: Path) -> None:
    assert ordeals.kills(runs_dir, corpus, 3)["most steps lost"] < 10_000


def test_a_full_disk_loses_nothing(tmp_path: Path, corpus: Path) -> None:
    with ordeals.small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("this user may not make a file system; test_runner has the other form")
        assert ordeals.full_disk(disk / "runs", corpus)["lost"] == 0


def test_damaged_files_load_or_are_refused_in_one_sentence(
    finished_run: RunFolder, corpus: Path, tmp_path: Path
) -> None:
    found = mutations.run_mutations(finished_run, corpus, tmp_path, 600)
    assert sum(found.values()) == 600
    assert found["refused"] > 100


def test_memory_stays_flat_over_many_events(runs_dir: Path, corpus: Path) -> None:
    assert ordeals.week(runs_dir, corpus, 40_000)["growth in MB"] < 20
