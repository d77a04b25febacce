"""``python -m benchmarks.torture``: the long versions of what a run must survive, as a table.

Real processes, real signals, real ptys. The short versions are in tests/survival.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is loaded anywhere: losses are compared to the last bit.
os.environ["OMP_NUM_THREADS"] = "1"

from benchmarks.report import print_table, write_json

LONGEST_GAP = 10.0
GROWTH_MB = 20.0


def main() -> int:
    """Run the ordeals that were asked for; returns 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture", description=__doc__)
    parser.add_argument("only", nargs="*", help="kills, terminals, disk, mutations, week")
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megatron-torture-") as home:
        os.environ["HOME"] = home
        for kind in ("CACHE", "DATA", "CONFIG", "STATE"):
            os.environ[f"XDG_{kind}_HOME"] = f"{home}/{kind.lower()}"
        results = _run(Path(home), set(options.only), options.share)
    print_table(
        "What a run survives",
        ("test", "cases", "result", "target", "passed", "seconds"),
        [
            (r["test"], r["cases"], r["result"], r["target"], r["passed"], f"{r['seconds']:.0f}")
            for r in results
        ],
    )
    write_json("torture", {"share": options.share, "tests": results})
    return 0 if all(result["passed"] for result in results) else 1


def _run(home: Path, only: set[str], share: float) -> list[dict[str, Any]]:
    from megatron_model.run.folder import RunFolder
    from tests.model.helpers import TEXT, tiny_config, train
    from tests.survival import mutations, ordeals

    corpus = home / "tale.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    runs = home / "runs"
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}", flush=True)

    def count(full: int) -> int:
        return max(1, round(full * share))

    def disk() -> tuple[str, bool, Any]:
        with ordeals.small_disk(home / "disk") as small:
            if small is None:
                return "needs root", False, None
            found = [ordeals.full_disk(small / f"runs-{n}", corpus) for n in range(count(3))]
            return "0 lost", True, found

    def damaged() -> tuple[str, bool, Any]:
        folder = RunFolder.create(runs, "whole", tiny_config({"data.corpus": str(corpus)}))
        train(folder)
        scratch = home / "scratch"
        scratch.mkdir()
        found = mutations.run_mutations(folder, corpus, scratch, count(10_000), seed)
        return f"{found['loaded']} loaded, {found['refused']} refused", True, found

    def killed() -> tuple[str, bool, Any]:
        found = ordeals.kills(runs, corpus, count(200), seed)
        return f"all resumed, at most {found['most steps lost']} steps lost", True, found

    def closed() -> tuple[str, bool, Any]:
        found = ordeals.closed_terminals(runs, corpus, count(50), seed)
        gap = found["longest gap"]
        return f"{found['went on']} went on, gap <= {gap:.1f} s", gap <= LONGEST_GAP, found

    def long() -> tuple[str, bool, Any]:
        found = ordeals.week(runs, corpus, count(1_000_000))
        growth = found["growth in MB"]
        return f"{growth:.1f} MB more", growth <= GROWTH_MB, found

    tests: list[tuple[str, str, int, str, Callable[[], tuple[str, bool, Any]]]] = [
        ("mutations", "damaged files", count(10_000), "load or one sentence", damaged),
        ("week", "events through log, fold, screen", count(1_000_000), "20 MB", long),
        ("disk", "full disk, then room", count(3), "0 lost", disk),
        ("terminals", "closed terminals", count(50), "all go on, 10 s", closed),
        ("kills", "SIGKILL", count(200), "all resume, same losses", killed),
    ]
    results = []
    for key, title, cases, target, test in tests:
        if only and key not in only:
            continue
        print(f"{title} ...", file=sys.stderr, flush=True)
        began = time.monotonic()
        details: Any = None
        try:
            result, passed, details = test()
        except Exception as error:
            result, passed = f"{type(error).__name__}: {error}"[:200], False
        row = {"test": title, "cases": cases, "result": result, "target": target}
        results.append(
            {**row, "passed": passed, "seconds": time.monotonic() - began, "details": details}
        )
        print(f"  {result}", file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
