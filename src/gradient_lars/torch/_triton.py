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
    column,
    decayed_squares,
    extent,
    layer_decay,
    layer_figures,
    learning_rate,
    loss_scale,
    setting,
    settings_of,
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
    scale_ptr,
    layers,
    W: tl.constexpr,
    G: tl.constexpr,
    WIDE: tl.constexpr,
    CARRY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Sum the squares of a chunk's gradient, with its decay where the rate asks for that, and of its weights.

    Those of the weights only unless they are carried. `scale_ptr` may be None: no loss scale in the gradients. With
    `bad_ptr`, one is stored there if a gradient's norm may not be finite.
    """
    i = tl.program_id(0)
    t = tl.load(items_ptr + i)
    grad = column(table_ptr, const.GRAD, t, layers)
    if grad != const.ABSENT:
        c = i - column(table_ptr, const.FIRST, t, layers)
        # Only now: while an update runs, all programs of a layer must see the same.
        if (c == 0) & (tl.load(marks_ptr + layers * const.TAKEN + t) != 0):
            tl.store(marks_ptr + layers * const.STARTED + t, 1)
        start, end, numel = extent(table_ptr, t, c, layers, CHUNK)
        flags = column(table_ptr, const.FLAGS, t, layers)
        weights = column(table_ptr, const.WEIGHTS, t, layers)
        if (flags & const.DECAYED) != 0:
            row_ptr = settings_of(table_ptr, t, layers)
            sign = tl.where((tl.load(row_ptr + const.SWITCHES) & const.MAXIMIZE) != 0, -1.0, 1.0).to(WIDE)
            decay = sign * layer_decay(flags, row_ptr, WIDE) * loss_scale(scale_ptr, WIDE)
            squares = decayed_squares(grad, weights, decay, start, end, numel, G, W, WIDE, CHUNK, BLOCK)
        else:
            squares = chunk_squares(grad, start, end, numel, G, WIDE, CHUNK, BLOCK)
        tl.store(g_sums_ptr + i, squares)
        if bad_ptr is not None:
            chunks = column(table_ptr, const.CHUNKS, t, layers)
            # The whole tensor's sum is finite if it would be with every chunk as large as this one.
            if (squares * chunks.to(WIDE) < const.INFINITY) == 0:
                tl.store(bad_ptr, 1)
        recompute = (flags & const.RECOMPUTE) != 0
        if CARRY == 0 or recompute:
            tl.store(p_sums_ptr + i, chunk_squares(weights, start, end, numel, W, WIDE, CHUNK, BLOCK))


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
    whole = column(table_ptr, const.WHOLE, t, layers)
    if (whole != 0) & (column(table_ptr, const.GRAD, t, layers) != const.ABSENT):
        whole_ptr = whole.to(tl.pointer_type(tl.float64))
        p_total, g_total = tl.full((), 0.0, tl.float64), tl.full((), 0.0, tl.float64)
        if (column(table_ptr, const.FLAGS, t, layers) & const.COPY) == 0:
            first = column(table_ptr, const.FIRST, t, layers)
            chunks = column(table_ptr, const.CHUNKS, t, layers).to(tl.int32)
            p_total = total(p_sums_ptr + first, chunks, WIDE, REDUCE).to(tl.float64)
            g_total = total(g_sums_ptr + first, chunks, WIDE, REDUCE).to(tl.float64)
            if scale_ptr is not None:
                scale = tl.load(scale_ptr).to(tl.float64)
                g_total = g_total / (scale * scale)
        tl.store(whole_ptr, p_total)
        tl.store(whole_ptr + 1, g_total)


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
    decay = layer_decay(column(table_ptr, const.FLAGS, t, layers), row_ptr, WIDE)
    momentum = setting(row_ptr, const.MOMENTUM_FACTOR, WIDE)
    keep = tl.where(fresh, 1.0, setting(row_ptr, const.KEEP, WIDE))
    nesterov = (switches & const.NESTEROV) != 0

    weights = column(table_ptr, const.WEIGHTS, t, layers)
    addresses = weights | grad
    weights_ptr, grad_ptr = weights.to(tl.pointer_type(W)), grad.to(tl.pointer_type(G))
    momentum_ptr, low_ptr = weights_ptr, weights_ptr
    if M is not None:
        address = column(table_ptr, const.MOMENTUM, t, layers)
        addresses |= address
        momentum_ptr = address.to(tl.pointer_type(M))
    if LOW is not None:
        address = column(table_ptr, const.LOW, t, layers)
        addresses |= address
        low_ptr = address.to(tl.pointer_type(LOW))

    start, end, numel = extent(table_ptr, t, c, layers, CHUNK)
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
    grad = column(table_ptr, const.GRAD, t, layers)
    first = column(table_ptr, const.FIRST, t, layers)
    if grad != const.ABSENT:
        row_ptr = settings_of(table_ptr, t, layers)
        switches = tl.load(row_ptr + const.SWITCHES)
        scale = loss_scale(scale_ptr, WIDE)
        lr = learning_rate(row_ptr, switches, WIDE)
        rate = layer_figures(
            table_ptr, p_sums_ptr, g_sums_ptr, figures_ptr, scale, lr, row_ptr, switches, t, first, i == first, layers,
            WIDE, SHARDED, REDUCE,
        )  # fmt: skip
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
