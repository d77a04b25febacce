"""How fast a large corpus becomes tokens, with how much memory, and how fast it is there again.

Every figure is from a fresh process on one core: python -m benchmarks.data
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
REQUIRED_MB_PER_SECOND = 100
REQUIRED_PEAK_MB = 300

_FOREIGN = (
    "“Съешь же ещё этих мягких французских булок” — naïve café, 吾輩は猫である。名前はまだ無い。 "
    "😀🎲 Zażółć gęślą jaźń…\n"
)
"""Accents, Cyrillic, Japanese and emoji: characters of one to four bytes in every piece."""


def make_corpus(path: Path, kind: str, size: int) -> None:
    """Write `size` bytes or a little more of UTF-8 text."""
    from megatron_model.data.corpus import find_corpus, read_chunks

    text = "".join(chunk for chunk, _ in read_chunks(find_corpus("builtin:python-reference")))
    if kind == "ascii":
        data = text.encode("ascii", "ignore")
    else:
        pieces = [text[start : start + 1000] + _FOREIGN for start in range(0, len(text), 1000)]
        data = "".join(pieces).encode("utf-8")
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(data)
        # Otherwise the disk would still be busy with it while the first preparation is timed.
        file.flush()
        os.fsync(file.fileno())


def measure(corpus: Path, cache: Path) -> dict[str, Any]:
    """Prepare the corpus in this process; memory counts from before the package is imported."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    before = _peak_bytes()
    started = time.perf_counter()
    from megatron_model.data.corpus import find_corpus
    from megatron_model.data.token_cache import prepare_now

    imported = time.perf_counter()
    busy = time.process_time()
    prepared = prepare_now(find_corpus(str(corpus)), cache_dir=cache)
    finished = time.perf_counter()
    return {
        "import_seconds": imported - started,
        "seconds": finished - imported,
        "cpu_seconds": time.process_time() - busy,
        "peak_bytes": _peak_bytes() - before,
        "characters": prepared.characters,
        "vocabulary_size": len(prepared.vocabulary),
        "dtype": str(prepared.tokens.dtype),
    }


def run(kind: str, size: int, folder: Path) -> dict[str, Any]:
    """Measure one kind of text: a first preparation and a second start."""
    corpus = folder / f"{kind}.txt"
    make_corpus(corpus, kind, size)
    first, second = (_in_fresh_process(corpus, folder / "cache") for _ in range(2))
    size = corpus.stat().st_size
    corpus.unlink()
    return {
        "kind": kind,
        "bytes": size,
        "mb_per_second": size / first["seconds"] / 1e6,
        "peak_mb": first["peak_bytes"] / 1e6,
        "first": first,
        "second": second,
    }


def main() -> None:
    """Print a table and write the results of today."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mb", type=int, default=1024)
    parser.add_argument("--measure", nargs=2, metavar=("CORPUS", "CACHE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*map(Path, arguments.measure))))
        return
    print("text    MB    vocabulary  first: s  of it CPU   MB/s   peak MB   second: ms")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("ascii", "mixed"):
            row = run(kind, arguments.size_mb * 1_000_000, Path(folder))
            rows.append(row)
            print(
                f"{kind:6} {row['bytes'] / 1e6:5.0f} {row['first']['vocabulary_size']:10,}"
                f"{row['first']['seconds']:11.2f} {row['first']['cpu_seconds']:10.2f} "
                f"{row['mb_per_second']:6.0f} "
                f"{row['peak_mb']:9.0f} {row['second']['seconds'] * 1000:12.1f}",
                flush=True,
            )
    passed = all(
        row["mb_per_second"] >= REQUIRED_MB_PER_SECOND and row["peak_mb"] <= REQUIRED_PEAK_MB
        for row in rows
    )
    print(
        f"required: {REQUIRED_MB_PER_SECOND} MB/s, {REQUIRED_PEAK_MB} MB:",
        "passed" if passed else "failed",
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"data-{date.today()}.json"
    path.write_text(json.dumps({"machine": _machine(), "rows": rows}, indent=2) + "\n")
    print(f"written to {path}")


def _in_fresh_process(corpus: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data", "--measure", str(corpus), str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _peak_bytes() -> int:
    """The most memory this process had; getrusage would count that of its parent too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say how much memory a process had")


def _machine() -> dict[str, str]:
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": model[0] if model else platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
