"""Which encoding a corpus is read in: what the list offers, each with how the text would read."""

from __future__ import annotations

from pathlib import Path

from megatron_model.data.encoding import AUTO
from megatron_tui.setup.corpus_facts import CorpusFacts
from megatron_tui.ui import formatting
from megatron_tui.ui.pick import Entry, Pick

COMMON = {
    "auto": "UTF-8, or what a byte-order mark says",
    "utf-8": "Unicode, the usual one",
    "cp1252": "Western European, Windows",
    "latin-1": "Western European; never fails",
    "cp1251": "Cyrillic, Windows",
    "koi8-r": "Cyrillic",
    "utf-16": "Unicode, two bytes",
    "shift_jis": "Japanese",
    "euc_jp": "Japanese, Unix",
    "gb18030": "Chinese",
    "big5": "Chinese, traditional",
    "euc_kr": "Korean",
    "cp437": "DOS",
    "mac_roman": "old Macintosh",
}
SHOWN = 28
_LOOKED_AT = 1 << 20


def encoding_pick(facts: CorpusFacts, present: str) -> Pick:
    """Return the dialog that chooses an encoding for a corpus."""
    choices = encoding_choices(facts, present)
    width = max(len(what) for _, what, _ in choices)
    entries = [Entry(name, name, f"{what:<{width}}  {text}") for name, what, text in choices]
    # Where the text does not decode, the cursor begins on what it is likely to be in.
    chosen = facts.problem.guess if facts.problem is not None and facts.problem.guess else present
    return Pick("Read the corpus in which encoding?", entries, chosen, "Use it")


def encoding_choices(facts: CorpusFacts, present: str) -> list[tuple[str, str, str]]:
    """Return (encoding, what it is, how the text reads in it), the likeliest first."""
    guess = facts.problem.guess if facts.problem is not None else ""
    names = list(dict.fromkeys([name for name in (guess, present, *COMMON) if name]))
    sample = _telling_bytes(facts)
    choices = []
    for name in names:
        what = COMMON.get(name, "")
        if name == guess and facts.problem is not None:
            what = f"likely, {formatting.percent(facts.problem.confidence)} sure"
        choices.append((name, what, _read_as(sample, "utf-8" if name == AUTO else name)))
    return choices


def _telling_bytes(facts: CorpusFacts) -> bytes:
    """Return bytes around the first place where encodings differ."""
    from megatron_model.data.corpus import find_corpus

    problem = facts.problem
    try:
        if problem is not None and Path(problem.label).is_file():
            with open(problem.label, "rb") as file:
                file.seek(max(0, problem.offset - 12))
                return file.read(64)
        for _, stream in find_corpus(facts.spec).open_parts():
            with stream:
                data = stream.read(_LOOKED_AT)
            place = next((at for at, byte in enumerate(data) if byte > 0x7F), 0)
            return data[max(0, place - 12) : place + 52]
    except (OSError, ValueError):
        pass
    return b""


def _read_as(sample: bytes, encoding: str) -> str:
    try:
        text = sample.decode(encoding, errors="replace")
    except (LookupError, UnicodeError):
        return ""
    # The cut may have split a character, at the end only.
    broken = "\ufffd" in text[: max(1, len(text) - 2)]
    return "does not fit" if broken else " ".join(text.split())[:SHOWN]
