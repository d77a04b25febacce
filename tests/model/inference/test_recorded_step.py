"""A character as one order to a card: held to the plain way, with a recorder for the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from megatron_model.inference.decoder import RecordedStep, _TorchStep
from megatron_model.model.factory import build_model
from megatron_model.util.recording import WARM_UPS, Recording
from tests.model.helpers import ARCHITECTURES, tiny_model

VOCABULARY = 20


class Repeated:
    """What was recorded, done anew each time."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def replay(self) -> None:
        """Do it again."""
        self._work()


def record(work: Callable[[], None]) -> Recording:
    """Do the work a few times, as a card's recorder does."""
    for _ in range(WARM_UPS):
        work()
    return Repeated(work)


def refuse(_: Callable[[], None]) -> Recording:
    """Be a card that cannot record."""
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("recorder", [record, refuse])
def test_recorded_characters_are_the_plain_ones(
    architecture: str, streams: int, recorder: Callable[[Callable[[], None]], Recording]
) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_model(architecture), VOCABULARY).eval()
    plain, recorded = _TorchStep(model, streams), RecordedStep(model, streams, recorder)
    wanted, found = torch.zeros(2, streams, VOCABULARY)
    for _ in range(2):  # a window that is read again after it was cleared
        tokens = torch.randint(0, VOCABULARY, (1, 5))
        for _ in range(model.block_size - 5):
            plain(tokens, wanted)
            recorded(tokens, found)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            tokens = torch.randint(0, VOCABULARY, (streams, 1))
        plain.clear()
        recorded.clear()
