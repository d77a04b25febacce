"""Files made to harm, and the claim that each loads right or is refused in one sentence."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from megatron_model.run.folder import MODEL_FILE, TRAINING_FILE, RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

HOSTILE = (
    b"\x1b]0;pwned\x07\x1b[2J",
    "\u202e\u2066\ufeff".encode(),
    b"\x00" * 7,
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xff\xfe",
    b"[" * 5000,
    b'{"a":' * 3000,
    b"9" * 400,
    b"-1e999",
    b"NaN",
    b"null",
    b"1e308",
    b'"',
    b"\n",
    b"[model]\nlayers = 1000000000\n",
    b"../../../etc/passwd",
)
SECONDS = 10.0
"""More than this for one file counts as a hang."""


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Return `data` with some damage."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        # Headers are at the front and matter most.
        reach = len(changed) if draw.random() < 0.5 else min(len(changed), 400)
        at = draw.randrange(reach + 1)
        what = draw.randrange(7)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif what == 1 and at < len(changed):
            changed[at] = draw.randrange(256)
        elif what == 2:
            del changed[at:]
        elif what == 3:
            del changed[at : at + draw.randrange(1, 40)]
        elif what == 4:
            changed[at:at] = draw.choice(HOSTILE)
        elif what == 5:
            changed[at : at + draw.randrange(1, 20)] = draw.choice(HOSTILE)
        else:
            changed[at:at] = changed[max(0, at - draw.randrange(1, 60)) : at]
    return bytes(changed)


def read_model(path: Path) -> None:
    """A model file."""
    from megatron_model.run.checkpoint import load_model

    load_model(path, device="cpu")


def read_training(path: Path) -> None:
    """One of the two files of a trainer's state; checksums would refuse most, so there are none."""
    from megatron_model.run.checkpoint import load_training

    load_training(path.parent)


def read_log(path: Path) -> None:
    """An event log, folded, and everything the screens make of it."""
    folder = RunFolder(path.parent)
    state = folder.state()
    assert folder.status(state)
    assert 0.0 <= state.progress <= 1.0
    assert state.remaining_seconds is None or state.remaining_seconds == state.remaining_seconds
    for line in state.log:
        clean(safe(line.text, one_line=True))


def read_settings(path: Path) -> None:
    """A run.toml, or a configuration file."""
    from megatron_model.config.fields import config_from_toml

    folder = RunFolder(path.parent)
    _ = folder.read_config(), folder.read_corpus_fingerprint(), folder.read_parent()
    config_from_toml(path)


def read_corpus(path: Path) -> None:
    """A text."""
    from megatron_model.data.corpus import find_corpus
    from megatron_model.data.token_cache import prepare_now, split

    prepared = prepare_now(find_corpus(str(path)), "auto")
    split(prepared, 0.1, 16)


Reader = Callable[[Path], None]


def clean(text: str) -> None:
    """Assert that a terminal may be sent this line."""
    assert "\n" not in text
    assert safe(text) == text


def attempt(reader: Reader, path: Path, data: bytes) -> bool:
    """Write `data` to `path` and read it; returns whether it loaded, fails if it did harm."""
    path.write_bytes(data)
    began = time.monotonic()
    try:
        reader(path)
        loaded = True
    except RequestError as error:
        loaded = False
        sentence = safe(str(error), one_line=True)
        assert sentence, "a refusal without a word"
        clean(sentence)
    taken = time.monotonic() - began
    assert taken < SECONDS, f"{taken:.1f} s for {reader.__name__}"
    return loaded


def prepare(folder: RunFolder, corpus: Path, scratch: Path) -> list[tuple[Reader, Path, bytes]]:
    """Return what is to be damaged: a reader, the path it reads, and the whole bytes."""
    checkpoint = folder.checkpoints()[-1].path
    state = scratch / "state"
    state.mkdir()
    for name in (TRAINING_FILE, "training.safetensors"):
        (state / name).write_bytes((checkpoint / name).read_bytes())
    run = scratch / "run"
    run.mkdir()
    (run / "run.toml").write_bytes((folder.path / "run.toml").read_bytes())
    log = scratch / "log"
    log.mkdir()
    return [
        (read_model, scratch / "a.safetensors", (checkpoint / MODEL_FILE).read_bytes()),
        (read_training, state / TRAINING_FILE, (state / TRAINING_FILE).read_bytes()),
        (
            read_training,
            state / "training.safetensors",
            (state / "training.safetensors").read_bytes(),
        ),
        (read_log, log / "events.jsonl", folder.events_path.read_bytes()),
        (read_settings, run / "run.toml", (run / "run.toml").read_bytes()),
        (read_corpus, scratch / "text.txt", corpus.read_bytes()),
    ]


def run_mutations(
    folder: RunFolder, corpus: Path, scratch: Path, count: int, seed: int = 1
) -> dict[str, int]:
    """Try `count` damaged files, all kinds in turn; return how many loaded and were refused."""
    draw = random.Random(seed)
    targets = prepare(folder, corpus, scratch)
    found = {"loaded": 0, "refused": 0}
    for number in range(count):
        reader, path, whole = targets[number % len(targets)]
        data = mutate(whole, draw)
        try:
            loaded = attempt(reader, path, data)
        except Exception as error:
            culprit = scratch / f"culprit-{number}"
            culprit.write_bytes(data)
            raise AssertionError(f"{reader.__name__} of {culprit}: {error!r}") from error
        finally:
            path.write_bytes(whole)
        found["loaded" if loaded else "refused"] += 1
    return found
