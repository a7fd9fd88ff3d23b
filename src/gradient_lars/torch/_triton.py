"""The two kernels of the fused LARS step: sums of squares chunk by chunk, then the update.

A program takes one chunk of one tensor. Everything it has to know about the tensor it reads from a table on the device
(`_fused_tables`), so that one launch serves all tensors of the same types, whatever their number. The sums of a
tensor's chunks are added up by every program of its update in the same order: no atomics, the same bits in every run.
"""

# ruff: noqa: N803, SIM102 - capitals are constants, and branches are chosen when a kernel is compiled
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
import triton
import triton.language as tl

from gradient_lars.torch import _triton_constants as const
from gradient_lars.torch._triton_math import (
    TYPES,
    chunk_squares,
    layer_rate,
    learning_rate,
    norm,
    setting,
    total,
    update_block,
)

__all__ = ["LAYOUT", "TYPES", "norms", "totals", "update"]

LAYOUT = const.LAYOUT


@triton.jit(do_not_specialize=["layers"])
def norms(
    table_ptr,
    items_ptr,
    p_sums_ptr,
    g_sums_ptr,
    marks_ptr,
    bad_ptr,
    layers,
    W: tl.constexpr,
    G: tl.constexpr,
    WIDE: tl.constexpr,
    CARRY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Sum the squares of a chunk's gradient and, unless they are carried, of its weights.

    With `bad_ptr`, one is stored there if a gradient's norm may not be finite.
    """
    i = tl.program_id(0)
    t = tl.load(items_ptr + i)
    grad = tl.load(table_ptr + layers * const.GRAD + t)
    if grad != const.ABSENT:
        c = i - tl.load(table_ptr + layers * const.FIRST + t)
        # Only now: while an update runs, all programs of a layer must see the same.
        if (c == 0) & (tl.load(marks_ptr + layers * const.TAKEN + t) != 0):
            tl.store(marks_ptr + layers * const.STARTED + t, 1)
        numel = tl.load(table_ptr + layers * const.NUMEL + t)
        span = tl.load(table_ptr + layers * const.SPAN + t) * CHUNK
        start = c * span
        squares = chunk_squares(grad, start, start + span, numel, G, WIDE, CHUNK, BLOCK)
        tl.store(g_sums_ptr + i, squares)
        if bad_ptr is not None:
            chunks = tl.load(table_ptr + layers * const.CHUNKS + t)
            # The whole tensor's sum is finite if it would be with every chunk as large as this one.
            if (squares * chunks.to(WIDE) < const.INFINITY) == 0:
                tl.store(bad_ptr, 1)
        recompute = (tl.load(table_ptr + layers * const.FLAGS + t) & const.RECOMPUTE) != 0
        if CARRY == 0 or recompute:
            weights = tl.load(table_ptr + layers * const.WEIGHTS + t)
            tl.store(p_sums_ptr + i, chunk_squares(weights, start, start + span, numel, W, WIDE, CHUNK, BLOCK))


@triton.jit(do_not_specialize=["layers"])
def totals(
    table_ptr,
    p_sums_ptr,
    g_sums_ptr,
    scale_ptr,
    layers,
    WIDE: tl.constexpr,
    REDUCE: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Enter the sums of a sharded layer's piece where those of all ranks will be added up, without the loss scale."""
    t = tl.program_id(0)
    whole = tl.load(table_ptr + layers * const.WHOLE + t)
    if (whole != 0) & (tl.load(table_ptr + layers * const.GRAD + t) != const.ABSENT):
        whole_ptr = whole.to(tl.pointer_type(tl.float64))
        p_total, g_total = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
        if (tl.load(table_ptr + layers * const.FLAGS + t) & const.COPY) == 0:
            first = tl.load(table_ptr + layers * const.FIRST + t)
            chunks = tl.load(table_ptr + layers * const.CHUNKS + t).to(tl.int32)
            p_total = total(p_sums_ptr + first, chunks, WIDE, REDUCE).to(tl.float64)
            g_total = total(g_sums_ptr + first, chunks, WIDE, REDUCE).to(tl.float64)
            if scale_ptr is not None:
                scale = tl.load(scale_ptr).to(tl.float64)
                g_total = g_total / (scale * scale)
        tl.store(whole_ptr, p_total)
        tl.store(whole_ptr + 1, g_total)


@triton.jit
def _layer_norms(
    table_ptr, p_sums_ptr, g_sums_ptr, t, first, scale, layers,
    WIDE: tl.constexpr, SHARDED: tl.constexpr, REDUCE: tl.constexpr,
):  # fmt: skip
    """Return the norms of a layer's weights and unscaled gradient, from its chunks' sums or from those of all ranks."""
    chunks = tl.load(table_ptr + layers * const.CHUNKS + t).to(tl.int32)
    p_norm = norm(p_sums_ptr + first, chunks, WIDE, REDUCE)
    g_norm = norm(g_sums_ptr + first, chunks, WIDE, REDUCE) / scale
    if SHARDED:
        whole = tl.load(table_ptr + layers * const.WHOLE + t)
        if whole != 0:
            whole_ptr = whole.to(tl.pointer_type(tl.float64))
            p_norm = tl.sqrt(tl.load(whole_ptr)).to(WIDE)
            g_norm = tl.sqrt(tl.load(whole_ptr + 1)).to(WIDE)
    return p_norm, g_norm


@triton.jit
def _update_chunk(
    table_ptr,
    row_ptr,
    t,
    c,
    layers,
    grad,
    rate,
    lr,
    switches,
    fresh,
    scale,
    W: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    LOW: tl.constexpr,
    WIDE: tl.constexpr,
    CARRY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update a chunk; return the sums of the squares of its weights before and after."""
    inside = (switches & const.INSIDE) != 0
    factor = tl.where(inside, lr * rate, rate)
    lr_outside = tl.where(inside, 1.0, lr)
    gain = tl.where((switches & const.MAXIMIZE) != 0, -1.0, 1.0).to(WIDE) / scale
    decay = setting(row_ptr, const.DECAY, WIDE)
    momentum = setting(row_ptr, const.MOMENTUM_FACTOR, WIDE)
    keep = tl.where(fresh, 1.0, setting(row_ptr, const.KEEP, WIDE))
    nesterov = (switches & const.NESTEROV) != 0

    weights = tl.load(table_ptr + layers * const.WEIGHTS + t)
    addresses = weights | grad
    weights_ptr, grad_ptr = weights.to(tl.pointer_type(W)), grad.to(tl.pointer_type(G))
    momentum_ptr, low_ptr = weights_ptr, weights_ptr
    if M is not None:
        address = tl.load(table_ptr + layers * const.MOMENTUM + t)
        addresses |= address
        momentum_ptr = address.to(tl.pointer_type(M))
    if LOW is not None:
        address = tl.load(table_ptr + layers * const.LOW + t)
        addresses |= address
        low_ptr = address.to(tl.pointer_type(LOW))

    numel = tl.load(table_ptr + layers * const.NUMEL + t)
    span = tl.load(table_ptr + layers * const.SPAN + t) * CHUNK
    start = c * span
    end = start + span
    lanes = tl.arange(0, BLOCK)
    before, after = tl.zeros((BLOCK,), WIDE), tl.zeros((BLOCK,), WIDE)
    if (addresses % 16 == 0) & (end <= numel):
        mask = tl.full((BLOCK,), True, tl.int1)
        aligned_w, aligned_g = tl.multiple_of(weights_ptr, 16), tl.multiple_of(grad_ptr, 16)
        aligned_m, aligned_low = tl.multiple_of(momentum_ptr, 16), tl.multiple_of(low_ptr, 16)
        for base in range(start, end, CHUNK):
            for k in tl.static_range(0, CHUNK, BLOCK):
                old, new = update_block(
                    aligned_w, aligned_g, aligned_m, aligned_low, (base + k) + lanes, mask,
                    factor, gain, decay, momentum, keep, nesterov, lr_outside, W, M, LOW, WIDE,
                )  # fmt: skip
                if CARRY:
                    before += old * old
                    after += new * new
    else:
        for base in range(start, tl.minimum(end, numel), BLOCK):
            offsets = base + lanes
            mask = offsets < numel
            old, new = update_block(
                weights_ptr, grad_ptr, momentum_ptr, low_ptr, offsets, mask,
                factor, gain, decay, momentum, keep, nesterov, lr_outside, W, M, LOW, WIDE,
            )  # fmt: skip
            if CARRY:
                before += old * old
                after += tl.where(mask, new * new, 0.0)
    return tl.sum(before), tl.sum(after)


@triton.jit(do_not_specialize=["items", "layers"])
def update(
    table_ptr,
    items_ptr,
    p_sums_ptr,
    g_sums_ptr,
    new_sums_ptr,
    figures_ptr,
    marks_ptr,
    scale_ptr,
    found_inf_ptr,
    bad_ptr,
    skipped_ptr,
    items,
    layers,
    W: tl.constexpr,
    G: tl.constexpr,
    M: tl.constexpr,
    LOW: tl.constexpr,
    WIDE: tl.constexpr,
    CARRY: tl.constexpr,
    SHARDED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REDUCE: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Update a chunk of weights and momentum; the tensor's first chunk also writes its norms and rate.

    `scale_ptr`, `found_inf_ptr`, `bad_ptr` and `skipped_ptr` may be None: no loss scale, nothing that skips the step,
    no count of it. With `CARRY` the sums of the squares of the new weights are left for the next step, and a layer
    whose old weights are not those of the carried sums is marked as edited.
    """
    # Backwards: what the norms have read last is still in the L2 cache.
    i = items - 1 - tl.program_id(0)
    t = tl.load(items_ptr + i)
    skip = False
    if found_inf_ptr is not None:
        skip = skip | (tl.load(found_inf_ptr) != 0.0)
    if bad_ptr is not None:
        skip = skip | (tl.load(bad_ptr) != 0)
    if skipped_ptr is not None:
        if i == 0:
            tl.store(skipped_ptr, tl.load(skipped_ptr) + tl.where(skip, 1, 0))
    grad = tl.load(table_ptr + layers * const.GRAD + t)
    first = tl.load(table_ptr + layers * const.FIRST + t)
    flags = tl.load(table_ptr + layers * const.FLAGS + t)
    if grad != const.ABSENT:
        row_ptr = table_ptr + layers * const.COLUMNS + (flags >> const.GROUP_SHIFT) * const.SETTINGS
        switches = tl.load(row_ptr + const.SWITCHES)
        scale = tl.full((), 1.0, WIDE)
        if scale_ptr is not None:
            scale = tl.load(scale_ptr).to(WIDE)
        p_norm, g_norm = _layer_norms(
            table_ptr, p_sums_ptr, g_sums_ptr, t, first, scale, layers, WIDE, SHARDED, REDUCE
        )  # fmt: skip
        lr = learning_rate(row_ptr, switches, WIDE)
        rate = layer_rate(p_norm, g_norm, lr, (flags & const.ADAPTED) != 0, row_ptr, switches, WIDE)
        if i == first:
            tl.store(figures_ptr + t, p_norm)
            tl.store(figures_ptr + layers + t, g_norm)
            tl.store(figures_ptr + 2 * layers + t, rate)
        fresh = tl.load(marks_ptr + layers * const.STARTED + t) == 0
        if skip == 0:
            if i == first:
                tl.store(marks_ptr + layers * const.TAKEN + t, 1)
            before, after = _update_chunk(
                table_ptr, row_ptr, t, i - first, layers, grad, rate, lr, switches, fresh, scale,
                W, G, M, LOW, WIDE, CARRY, CHUNK, BLOCK,
            )  # fmt: skip
            if CARRY:
                tl.store(new_sums_ptr + i, after)
                carried = tl.load(p_sums_ptr + i)
                # A sum that is not finite any more equals nothing, not even itself.
                if (carried < const.INFINITY) & ((tl.abs(before - carried) <= const.SAME_SUM * carried) == 0):
                    tl.store(marks_ptr + layers * const.EDITED + t, 1)
    if CARRY:
        if (grad == const.ABSENT) | skip:
            tl.store(new_sums_ptr + i, tl.load(p_sums_ptr + i))
