"""The parts of a run's page: its figures, samples, text, settings, command, notices, versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from megatron_model.config.fields import RunConfig, all_fields, differences, get_setting
from megatron_model.data.corpus import find_corpus
from megatron_model.data.report import (
    RARE,
    CorpusReport,
    TextReport,
    encoding_words,
    inspect_corpus,
)
from megatron_model.data.token_cache import prepare_asked
from megatron_model.events.schema import SampleGenerated, local_time
from megatron_model.events.state import RunState, Status
from megatron_model.interop.charts import Level
from megatron_model.interop.page import (
    MISSING,
    character,
    duration,
    facts,
    line,
    loss,
    plain,
    short,
    size,
    visible,
    whole,
)
from megatron_model.interop.repeat import command_of, shown
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError, RunFailedError
from megatron_model.util.text import plural, safe

CARDS = 12
"""Samples on the page, spread over the steps."""
CARD_CHARACTERS = 900
BARS = 16
ALPHABET = 500
"""Characters of a vocabulary that are shown one by one."""
NOTICES = 200
SETTINGS_NOTE = "Bold where it is not the program's default."

_STATUS = {
    "new": "not begun",
    "running": "still training when this was written",
    "paused": "paused when this was written",
    "stopped": "stopped before its end",
    "finished": "finished",
    "failed": "failed",
    "interrupted": "interrupted",
}


def lead(state: RunState, config: RunConfig | None, status: Status) -> str:
    """Return in a sentence or two what was trained, on what, and how it ended."""
    started = state.started
    if config is None or started is None:
        corpus = line(started.corpus) if started else ""
        return f"Curves {corpus}; settings and weights are not known."
    model = config.model
    corpus = line(config.data.corpus)
    where = f"{started.devices} × {started.device}" if started.devices > 1 else started.device
    parent = ""
    if started.parent:
        name = line(started.parent)
        parent = f" Forked from {name} at step {started.parent_step:,}."
    error = f" {line(state.error)}" if state.error else ""
    return (
        f"A {model.architecture} transformer of {short(started.parameters)} parameters reading "
        f"{corpus}, {plural(started.characters, 'character')}, on {visible(where)}: "
        f"{_STATUS[status]} at step {state.step:,}.{parent}{error}"
    )


def token_of(state: RunState) -> str:
    """Return what a loss is per: an imported run may have counted other tokens than characters."""
    return "character" if state.started and state.started.characters else "token"


def figures(state: RunState) -> str:
    """Return the numbers to begin with."""
    best = state.best_val_loss
    steps = f"of {state.started.steps:,}" if state.started and not state.started.max_seconds else ""
    seen = state.step * state.characters_per_step
    read = ""
    if seen and state.started and state.started.characters:
        read = f"the text {seen / state.started.characters:.3g} times"
    cells = (
        (
            "best validation loss",
            loss(best),
            f"nats per {token_of(state)}, step {whole(state.best_step)}",
        ),
        (
            f"bits per {token_of(state)}",
            loss(None if best is None else best / math.log(2)),
            "of the same validation",
        ),
        ("steps", whole(state.step), steps or read),
        ("time", trained_for(state), "trained, pauses left out"),
        ("speed", speed(state), f"{token_of(state)}s a second"),
    )
    rows = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>"
        for name, value, note in cells
    )
    return f'<dl class="figures">{rows}</dl>'


def trained_for(state: RunState) -> str:
    """Return how long the run was trained; a dash where that was not measured."""
    return duration(state.elapsed_seconds) if state.elapsed_seconds else MISSING


def speed(state: RunState) -> str:
    """Return the median of the reported speeds."""
    values = sorted(value for value in state.speed.values if math.isfinite(value) and value > 0)
    return short(float(f"{values[len(values) // 2]:.3g}")) if values else MISSING


def levels(state: RunState) -> list[Level]:
    """Return what a model has to beat: guesses without context, and from two characters."""
    started = state.started
    known = (
        ("guess by frequency", started.unigram_entropy if started else None),
        ("guess from two characters", started.trigram_entropy if started else None),
    )
    return [Level(label, value) for label, value in known if value is not None]


def loss_note(state: RunState) -> str:
    """Return what there is to know of the loss chart."""
    words = "The train loss is a mean over the steps of a report, the validation loss one over "
    words += "the whole split kept for it."
    if levels(state):
        words += " Dotted lines: what counting alone reaches."
    return words


def samples_note(state: RunState) -> str:
    """Return how many samples there are, and how many are shown."""
    drawn = len(state.samples)
    some = f"{CARDS} of {drawn:,}" if drawn > CARDS else f"{drawn:,}"
    return f"{some}, with the same seed each time, along the steps."


def strip(state: RunState) -> str:
    """Return samples spread over the steps, each with the validation loss it was written at."""
    samples = list(state.samples)
    if len(samples) > CARDS:
        places = [round(i * (len(samples) - 1) / (CARDS - 1)) for i in range(CARDS)]
        samples = [samples[place] for place in places]
    cards = "".join(card(sample, f"step {sample.step:,}", state) for sample in samples)
    return f'<ol class="strip">{cards}</ol>'


def card(sample: SampleGenerated, title: str, state: RunState) -> str:
    """Return one sample; `title` is HTML."""
    at = dict(zip(state.val_loss.steps, state.val_loss.values, strict=True)).get(sample.step)
    share = min(1.0, sample.step / state.step) if state.step > 0 else 1.0
    text = sample.text[:CARD_CHARACTERS]
    more = " …" if len(sample.text) > CARD_CHARACTERS else ""
    prompt = f'<span class="prompt">{_lines(sample.prompt[-200:])}</span>' if sample.prompt else ""
    value = f"loss {loss(at)}" if at is not None else ""
    return (
        f'<li><div class="at"><b>{title}</b><span>{value}</span></div>'
        f'<div class="rail"><i style="width:{100 * max(0.0, share):.1f}%"></i></div>'
        f'<pre class="text">{prompt}{_lines(text)}{more}</pre></li>'
    )


def _lines(text: str) -> str:
    return "\n".join("\t".join(map(visible, row.split("\t"))) for row in text.split("\n"))


# --- the text -----------------------------------------------------------------------------------


def corpus(folder: RunFolder, config: RunConfig, state: RunState) -> tuple[str, str]:
    """Return the X-ray of the corpus, and a note; what the log alone knows, where it is gone."""
    data = config.data
    try:
        prepared = prepare_asked(data)
        if folder.read_corpus_fingerprint() not in ("", prepared.fingerprint):
            raise RequestError("it has changed since the run began")
        source = find_corpus(data.corpus, data.reading)
        fraction = data.validation_fraction
        found = inspect_corpus(
            source, data.encoding, prepared, validation_fraction=fraction, errors=data.errors
        )
    except (RequestError, RunFailedError, OSError) as error:
        why = line(str(error).rstrip("."))
        return _known_of(state), f"The text itself could not be looked at: {why}."
    if found.text is None:
        return _known_of(state), "The text itself could not be looked at."
    where = line(data.corpus)
    return _xray(found, found.text), where


def _known_of(state: RunState) -> str:
    started = state.started
    if started is None:
        return facts([])
    return facts(
        [
            ("characters", whole(started.characters)),
            ("different ones", whole(started.vocabulary_size)),
            ("guess by frequency", _nats(started.unigram_entropy)),
            ("guess from two characters", _nats(started.trigram_entropy)),
        ]
    )


def _nats(value: float | None) -> str:
    return MISSING if value is None else f"{loss(value)} nats"


def _xray(found: CorpusReport, text: TextReport) -> str:
    ends = found.line_ends
    kinds = []
    if ends is not None:
        named = (("LF", ends.line_feeds), ("CRLF", ends.pairs), ("CR", ends.carriage_returns))
        kinds = [f"{name} {count:,}" for name, count in named if count]
    codecs = [use.encoding for use in found.encodings for _ in range(min(use.files, 1000))]
    repeated = MISSING if text.repeated_lines is None else f"{text.repeated_lines:.1%}"
    pairs = [
        ("characters", whole(text.characters)),
        ("different ones", f"{len(text.table):,} ({len(text.rare):,} rarer than {RARE} times)"),
        ("lines", whole(text.lines)),
        ("longest line", f"{text.longest_line:,} characters, line {text.longest_line_number:,}"),
        ("lines that came before", repeated),
        ("encoding", plain(encoding_words(codecs))),
        ("line ends", ", ".join(kinds) or "none"),
        ("guess by frequency", _nats(text.unigram_entropy)),
        ("guess from two characters", _nats(text.trigram_entropy)),
    ]
    most = text.table[0].share if text.table else 1.0
    bars = "".join(
        f'<li><span class="char" title="{plain(entry.name)}">{character(entry.character)}</span>'
        f'<span class="bar"><i style="width:{100 * entry.share / most:.1f}%"></i></span>'
        f'<span class="share">{entry.share:.1%}</span></li>'
        for entry in text.table[:BARS]
    )
    glyphs = "".join(
        f'<span class="glyph{" rare" if entry.count < RARE else ""}" '
        f'title="{plain(entry.name)}, {entry.count:,} times">{character(entry.character)}</span>'
        for entry in text.table[:ALPHABET]
    )
    more = len(text.table) - ALPHABET
    rest = f'<p class="sub">and {more:,} more</p>' if more > 0 else ""
    return (
        f'{facts(pairs)}<ul class="bars">{bars}</ul>'
        f'<p class="sub">The alphabet, most frequent first; dashed: rarer than {RARE} times.</p>'
        f'<div class="alphabet">{glyphs}</div>{rest}'
    )


# --- settings, command, notices, versions --------------------------------------------------------


def settings(config: RunConfig) -> str:
    """Return every setting, those that are not the default set off."""
    own = differences(config, RunConfig())
    groups: dict[str, list[str]] = {}
    for key, field in all_fields().items():
        group, _, name = key.partition(".")
        mark = ' class="own"' if key in own else ""
        groups.setdefault(group, []).append(
            f'<div{mark}><dt title="{plain(field.description)}">{name.replace("_", " ")}</dt>'
            f"<dd>{_value(get_setting(config, key))}</dd></div>"
        )
    columns = "".join(
        f"<div><h3>{group}</h3><dl>{''.join(rows)}</dl></div>" for group, rows in groups.items()
    )
    return f'<div class="settings">{columns}</div>'


def _value(value: object) -> str:
    if isinstance(value, str):
        return line(value) or "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def differing(configs: Sequence[RunConfig]) -> list[list[str]]:
    """Return a row for each setting that is not the same in all: its key, and their values."""
    rows = []
    for key in all_fields():
        values = [get_setting(config, key) for config in configs]
        if any(value != values[0] for value in values):
            rows.append([f"<code>{key}</code>", *map(_value, values)])
    return rows


def repeat(config: RunConfig, state: RunState) -> tuple[str, str]:
    """Return the command that trains the run again, and what it does not repeat."""
    characters = state.started.characters if state.started else 0
    words = shown(command_of(config, characters))
    note = "The command that trains this run again, from its first step."
    if state.started and state.started.parent:
        note += " It does not repeat that this one was forked from another."
    changes = "".join(
        f"<li><time>step {change.step:,}</time><span><code>{plain(change.key)}</code> "
        f"from {_value(change.old)} to {_value(change.new)}</span></li>"
        for change in state.changes
    )
    if changes:
        note += " Settings that were changed while it trained have their last value in it."
        changes = f'<ul class="log">{changes}</ul>'
    return f'<pre class="command">{_lines(words)}</pre>{changes}', note


def notices(state: RunState) -> str:
    """Return the notices and alerts of a run; empty if there are none."""
    found = [said for said in state.log if said.level in ("warning", "error")][-NOTICES:]
    if not found:
        return ""
    items = "".join(
        f"<li><time>{local_time(said.time, '%Y-%m-%d %H:%M:%S')}</time>"
        f'<span class="{said.level}">{line(said.text)}</span></li>'
        for said in found
    )
    return f'<ul class="log">{items}</ul>'


def versions(folder: RunFolder, about: dict[str, Any], state: RunState) -> str:
    """Return what the run was made with, and where it is kept."""
    pairs = []
    made = about.get("versions")
    if isinstance(made, dict):
        pairs += [(plain(str(name)), visible(str(made[name]))) for name in made]
    started = state.started
    if started is not None:
        pairs += [("device", visible(started.device)), ("arithmetic", visible(started.precision))]
    if state.device is not None and state.device.peak:
        pairs.append(("most memory", size(state.device.peak)))
        pairs.append(("device's name", line(state.device.name)))
    pairs.append(("begun", plain(str(about.get("created", MISSING)))))
    pairs.append(("run folder", visible(safe(str(folder.path.absolute()), one_line=True))))
    if source := folder.read_imported():
        pairs.append(("imported from", line(source)))
    return facts(pairs)
