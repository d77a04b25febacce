# mypy: ignore-errors
"""The kernels of `fused_reader`, in Triton: Python's syntax, but compiled for a card.

Shapes: C = width, H heads, D = C / H, N slots.
"""

import triton
import triton.language as tl

from megatron_model.model.modern import LOGIT_CAP

PLAIN = tl.constexpr(0)
SQUARED = tl.constexpr(1)
CAPPED = tl.constexpr(2)
"""What `read_rows` does to a product: nothing, the square of what is positive, the soft cap."""
_CAP = tl.constexpr(LOGIT_CAP)


@triton.jit
def normalised(v, inside, width):
    """Return v (C,), where `inside`, with a mean of 0 and a variance of 1."""
    mean = tl.sum(v, 0) / width
    centred = tl.where(inside, v - mean, 0.0)
    return centred * tl.rsqrt(tl.sum(centred * centred, 0) / width + 1e-5)


@triton.jit
def embed(token, before, table, gate, x, kept, width: tl.constexpr, block: tl.constexpr):
    """Look a character up, mix the one before in, and normalise: x (C,), and `kept`, its row."""
    columns = tl.arange(0, block)
    inside = columns < width
    row = tl.load(table + tl.load(token) * width + columns, mask=inside, other=0.0)
    tl.store(kept + columns, row, mask=inside)
    earlier = tl.load(before + columns, mask=inside, other=0.0)
    mixed = row + earlier * tl.load(gate + columns, mask=inside, other=0.0)
    tl.store(x + columns, normalised(mixed, inside, width), mask=inside)


@triton.jit
def read_rows(
    x,
    nearer,
    further,
    mix_nearer,
    mix_further,
    weights,
    out,
    normed,
    rows,
    width: tl.constexpr,
    mixes: tl.constexpr,
    then: tl.constexpr,
    block: tl.constexpr,
    at_once: tl.constexpr,
):
    """Normalise x (C,), mix two positions before in, and multiply by weights (rows, C)."""
    columns = tl.arange(0, block)
    inside = columns < width
    h = normalised(tl.load(x + columns, mask=inside, other=0.0), inside, width)
    if mixes:
        if tl.program_id(0) == 0:
            tl.store(normed + columns, h, mask=inside)
        one = tl.load(nearer + columns, mask=inside, other=0.0)
        two = tl.load(further + columns, mask=inside, other=0.0)
        h += one * tl.load(mix_nearer + columns, mask=inside, other=0.0)
        h += two * tl.load(mix_further + columns, mask=inside, other=0.0)
    h = h.to(weights.dtype.element_ty).to(tl.float32)
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    places = row[:, None] * width + columns[None, :]
    found = tl.load(weights + places, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(
        tl.float32
    )
    total = tl.sum(found * h[None, :], 1)
    if then == SQUARED:
        total = tl.maximum(total, 0.0)
        total = total * total
    if then == CAPPED:
        total = _CAP * (1.0 - 2.0 / (tl.exp(2.0 * total / _CAP) + 1.0))
    tl.store(out + row, total.to(out.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=["position"])
def attend(
    qkv,
    keys,
    values,
    slopes,
    position,
    out,
    width: tl.constexpr,
    depth: tl.constexpr,
    slots: tl.constexpr,
    block: tl.constexpr,
    at_once: tl.constexpr,
):
    """Keep key and value of one position, and mix what a head attends to; see `Slots.attend`."""
    head = tl.program_id(0)
    columns = tl.arange(0, block)
    inside = columns < depth
    kind = keys.dtype.element_ty
    place = qkv + head * depth + columns
    query = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    key = tl.load(place + width, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(place + 2 * width, mask=inside, other=0.0).to(tl.float32)
    query *= tl.rsqrt(tl.sum(query * query, 0) / depth + 1e-6)
    key *= tl.rsqrt(tl.sum(key * key, 0) / depth + 1e-6)
    query, key = query.to(kind).to(tl.float32), key.to(kind).to(tl.float32)
    here = tl.load(position)
    kept = head * slots * depth
    tl.store(keys + kept + here * depth + columns, key.to(kind), mask=inside)
    tl.store(values + kept + here * depth + columns, value.to(kind), mask=inside)
    query *= depth**-0.5
    slope = tl.load(slopes + head)
    highest = tl.sum(query * key, 0)
    total = 1.0
    mixed = value
    for start in range(0, here, at_once):
        slot = start + tl.arange(0, at_once)
        written = slot < here
        places = kept + slot[:, None] * depth + columns[None, :]
        seen = written[:, None] & inside[None, :]
        score = tl.sum(tl.load(keys + places, mask=seen, other=0.0).to(tl.float32) * query, 1)
        score -= slope * (here - slot).to(tl.float32)
        score = tl.where(written, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 0))
        share = tl.exp(score - higher)
        less = tl.exp(highest - higher)
        offered = tl.load(values + places, mask=seen, other=0.0).to(tl.float32)
        mixed = mixed * less + tl.sum(offered * share[:, None], 0)
        total = total * less + tl.sum(share, 0)
        highest = higher
    tl.store(out + head * depth + columns, (mixed / total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def add_rows(h, weights, x, rows, width: tl.constexpr, block: tl.constexpr, at_once: tl.constexpr):
    """Add to x (rows,) the product of weights (rows, width) and h (width,)."""
    row = tl.program_id(0) * at_once + tl.arange(0, at_once)
    total = tl.zeros((at_once,), dtype=tl.float32)
    for start in range(0, width, block):
        column = start + tl.arange(0, block)
        inside = column < width
        places = row[:, None] * width + column[None, :]
        found = tl.load(weights + places, mask=(row < rows)[:, None] & inside[None, :], other=0.0)
        read = tl.load(h + column, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(found.to(tl.float32) * read[None, :], 1)
    tl.store(x + row, tl.load(x + row, mask=row < rows, other=0.0) + total, mask=row < rows)


@triton.jit(do_not_specialize=["draw"])
def draw_character(logits, temperature, draw, token, count: tl.constexpr, block: tl.constexpr):
    """Draw a character by a number in [0, 1): what `DeviceSampler` does where nothing is asked."""
    place = tl.arange(0, block)
    inside = place < count
    number = tl.load(logits + place, mask=inside, other=float("-inf")).to(tl.float64)
    number = number / tl.load(temperature)
    share = tl.exp(number - tl.max(number, 0))
    cumulative = tl.cumsum(share / tl.sum(share, 0), 0)
    whole = tl.max(cumulative, 0)
    passed = (cumulative <= tl.load(draw) * whole) & (place < count - 1)
    tl.store(token, tl.sum(passed.to(tl.int64), 0))
