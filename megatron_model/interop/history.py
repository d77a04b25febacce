"""All that was measured in a run, at full length: every step once, as the run went on from it."""

from __future__ import annotations

from megatron_model.events import schema as events
from megatron_model.events.log import read_pieces
from megatron_model.events.schema import Event
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

_MEASURED = (
    events.MetricsReported,
    events.Evaluated,
    events.DeviceSampled,
    events.SampleGenerated,
)


def read_history(folder: RunFolder) -> list[Event]:
    """Return reports, evaluations, memory and samples in the order of their steps.

    What lies beyond a checkpoint that the run went back to is left out: those steps came again.

    Raises:
        RequestError: the log cannot be read, or nothing was measured yet.
    """
    folder.check_readable()
    kept: list[Event] = []
    for piece, _ in read_pieces(folder.events_path):
        for event in piece:
            if isinstance(event, events.RunStarted):
                while kept and kept[-1].step > event.step:
                    kept.pop()
            elif isinstance(event, _MEASURED):
                kept.append(event)
    if not any(isinstance(event, events.MetricsReported | events.Evaluated) for event in kept):
        name = safe(folder.name, one_line=True)
        raise RequestError(f'The run "{name}" has no curves yet: it has not reported a loss.')
    return kept
