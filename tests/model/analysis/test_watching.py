"""A text that is watched is the one that is written; what stands in a gap is judged by its end."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from megatron_model.analysis.filling import fill
from megatron_model.analysis.insight import watch
from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.sampler import continue_lines, generate_stream
from megatron_model.util.errors import RequestError
from tests.model.helpers import ARCHITECTURES
from tests.model.model.test_models import model_with_opinions

TOKENIZER = CharTokenizer("\nabcdefghij")
both = pytest.mark.parametrize("architecture", ARCHITECTURES)


@both
@pytest.mark.parametrize("known", [0, 1, 40])
def test_what_is_watched_is_what_is_written(architecture: str, known: int) -> None:
    model = model_with_opinions(architecture, block_size=16)
    sampling = SamplingConfig(max_new_tokens=60, top_k=4, repetition_penalty=1.3, seed=4)
    text = "".join(generate_stream(model, TOKENIZER, "ab", sampling))
    moments = list(watch(model, TOKENIZER, "ab", sampling, text[:known], candidates=11))
    assert "".join(moment.came.character for moment in moments) == text
    assert moments[-1].came.character == ""
    for moment in moments:
        drawn = [one.drawn for one in moment.rivals]
        assert sum(drawn) == pytest.approx(1)
        assert sum(share > 0 for share in drawn) <= 4
        assert sum(one.probability for one in moment.rivals) == pytest.approx(1, abs=1e-5)
        assert moment.came.drawn > 0 or not moment.came.character
    rest = list(watch(model, TOKENIZER, "ab", sampling, text, skip=50, candidates=11))
    assert [one.came.character for one in rest] == [one.came.character for one in moments[50:]]
    for one, other in zip(rest, moments[50:], strict=True):
        assert one.came.probability == pytest.approx(other.came.probability, abs=1e-5)
        assert one.came.drawn == pytest.approx(other.came.drawn, abs=1e-5)


@both
def test_a_filling_is_judged_by_the_text_after_it(architecture: str) -> None:
    model = model_with_opinions(architecture, block_size=64)
    sampling = SamplingConfig(max_new_tokens=6, seed=2)
    found = list(fill(model, TOKENIZER, "abc", "hi", sampling, tries=3))
    assert {"", *(one.middle for one in found)} == {one.middle for one in found}
    for one in found:
        text = one.middle + "hi"
        *_, first, second, _ = watch(
            model, TOKENIZER, "abc", msgspec.structs.replace(sampling, max_new_tokens=0), text
        )
        logs = np.log([first.came.probability, second.came.probability])
        assert one.log_probability == pytest.approx(logs.mean(), abs=1e-4)
    written = "".join(generate_stream(model, TOKENIZER, "abc", sampling))
    assert written in {one.middle for one in found}
    with pytest.raises(RequestError, match="Nothing comes after"):
        list(fill(model, TOKENIZER, "abc", "", sampling))


def test_a_line_is_written_as_if_it_stood_alone() -> None:
    model = model_with_opinions("modern", block_size=16)
    sampling = SamplingConfig(max_new_tokens=12)
    found = ["ab", "", "c"]
    for number, character in continue_lines(model, TOKENIZER, "ab\n\nc", sampling):
        found[number] += character
    to_its_end = msgspec.structs.replace(sampling, stop="\n")
    expected = [
        line + "".join(generate_stream(model, TOKENIZER, line, to_its_end)).removesuffix("\n")
        for line in ("ab", "c")
    ]
    assert [found[0], found[2]] == expected
    assert found[1] == ""
