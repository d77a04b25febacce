"""What every test shares: folders of its own, one thread, and tiny but real runs."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: the suite must not fight over cores, and one thread adds up
# in the same order every time.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

from megatron_model.config.fields import RunConfig
from megatron_model.run.folder import RunFolder
from megatron_model.util import fallback
from tests.model.helpers import TEXT, tiny_config, train

LONG_FIRST = ("survival", "distributed", "tui", "snapshots")
"""Folders with tests that take seconds: begun with, lest one worker ends long after the others."""


def pytest_configure() -> None:
    """Look for cycles less often than Python does by itself: apps by the hundred leave many."""
    gc.set_threshold(10_000, 10, 10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long tests in front; within a folder the order stays."""
    order = {name: number for number, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


def pytest_collection_finish() -> None:
    """Leave out what was imported when cycles are looked for, as at the end of every run."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """Two workers more than there are cores: tests of real processes mostly wait for them."""
    return min(8, (os.cpu_count() or 1) + 2)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point every folder of the user at a temporary one."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGATRON_RUNS_DIR", str(home / "runs"))
        patch.setenv("HOME", str(home))
        # Many tests start processes: each would compile all of the program anew.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        # The flags of the processor are enough: trying them out takes three compilations.
        patch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
        # Whatever terminal the tests run in.
        patch.setenv("MEGATRON_ASCII", "0")
        patch.setenv("COLORTERM", "truecolor")
        patch.setenv("TERM", "xterm-256color")
        for kind in ("CACHE", "DATA", "CONFIG", "STATE"):
            patch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
        yield


@pytest.fixture(autouse=True)
def _nothing_missing() -> None:
    """Let no test hear of what an earlier one had to do without."""
    fallback.forget()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of some 2,500 characters; not to be changed."""
    path = tmp_path_factory.mktemp("corpus") / "tale.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def runs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder, which is also the default one."""
    path = tmp_path / "runs"
    monkeypatch.setenv("MEGATRON_RUNS_DIR", str(path))
    return path


@pytest.fixture
def config(corpus: Path) -> RunConfig:
    """A run of the tiniest model on the corpus: some twenty steps."""
    return tiny_config({"data.corpus": str(corpus)})


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> RunFolder:
    """A run that was trained to its end; not to be changed."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    folder = RunFolder.create(runs, "tale-tiny", tiny_config({"data.corpus": str(corpus)}))
    train(folder)
    return folder


@pytest.fixture
def run_copy(finished_run: RunFolder, runs_dir: Path) -> RunFolder:
    """A copy of the finished run in the test's own runs folder, to be used up."""
    shutil.copytree(finished_run.path, runs_dir / finished_run.name)
    return RunFolder.open(runs_dir / finished_run.name)
