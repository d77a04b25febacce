"""A user without a home, and a cache that cannot be written: what is the user's is a fallback."""

from __future__ import annotations

import pwd
from pathlib import Path

import numpy as np
import pytest

from megatron_model.cli.parser import parse, run
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.data.corpus import find_corpus
from megatron_model.data.token_cache import prepare_now
from megatron_model.events.schema import Notice, RunFinished
from megatron_model.run import notify
from megatron_model.run.folder import RunFolder, default_runs_dir
from megatron_model.util import fallback
from megatron_model.util.errors import RequestError
from megatron_model.util.user_folders import expanded, home, user_folder
from tests.model.helpers import train

VARIABLES = (
    "HOME",
    "MEGATRON_RUNS_DIR",
    *(f"XDG_{k}_HOME" for k in ["DATA", "CACHE", "STATE", "CONFIG"]),
)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that the system does not know, as in a container with a number of its own."""

    def unknown(number: object) -> None:
        raise KeyError(f"uid not found: {number}")

    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_a_user_without_a_home_has_no_folders_and_none_is_made_up(
    homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [user_folder(kind) for kind in ("data", "cache", "state", "config")] == [None] * 4
    assert home() is None
    assert expanded("~/text") == Path("~/text")
    assert expanded("~nobody-like-this/text") == Path("~nobody-like-this/text")
    assert notify.hook() == []
    with pytest.raises(RequestError, match=r"--runs-dir DIR or MEGATRON_RUNS_DIR\.$"):
        default_runs_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_variable_is_a_folder_without_a_home(
    homeless: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder("cache") == tmp_path / "megatron"
    assert user_folder("state") is None


def test_a_user_without_a_home_trains(homeless: None, runs_dir: Path, config: RunConfig) -> None:
    config = with_settings(config, {"training.sample_length": 0})
    seen = train(RunFolder.create(default_runs_dir(), "homeless", config))
    assert isinstance(seen[-1], RunFinished)
    said = [event.text for event in seen if isinstance(event, Notice)]
    assert len([text for text in said if "token cache" in text]) == 1


def test_the_command_line_says_that_there_is_no_token_cache(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run(parse(["preflight", str(corpus), "--preset", "smoke"])) == 0
    said = capsys.readouterr().err
    assert said.count("Cannot write the token cache") == 1
    assert "Not a directory" in said


def test_without_a_cache_the_tokens_are_the_same(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    source = find_corpus(str(corpus))
    cached = prepare_now(source, cache_dir=tmp_path / "cache")
    kept = prepare_now(source, cache_dir=tmp_path / "file" / "cache")
    assert np.array_equal(cached.tokens, kept.tokens)
    assert (cached.fingerprint, cached.counts) == (kept.fingerprint, kept.counts)
    assert len(fallback.take_missing(set())) == 1
