"""Which card a process gets, and what is refused."""

from __future__ import annotations

import pytest

from megatron_model.distributed.team import card_of, check_own_cards
from megatron_model.util.errors import RequestError


@pytest.mark.parametrize(
    ("local_rank", "cards", "card"), [(0, 4, 0), (3, 4, 3), (3, 1, 0), (0, 1, 0), (1, 0, 0)]
)
def test_a_process_that_sees_one_card_takes_it(local_rank: int, cards: int, card: int) -> None:
    assert card_of(local_rank, cards) == card


def test_two_processes_on_one_card_are_refused() -> None:
    check_own_cards(["here GPU-1", "here GPU-2", "there GPU-1"])
    with pytest.raises(RequestError, match="Ranks 1 and 2 would train on the same card of there"):
        check_own_cards(["here GPU-1", "there GPU-1", "there GPU-1"])
