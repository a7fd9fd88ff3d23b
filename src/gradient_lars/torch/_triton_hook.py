"""The kernel of the hook's fused path: norms and rescaled gradients of all layers of the same types in one launch.

The gradient is needed twice, for its norm and to be rescaled, and the weights too if there is a decay. Two launches
would read all of it twice from memory. Here each program takes one item after the other (`_fused_order`) by a ticket,
so that a layer is rescaled while it is still in the L2 cache.

Why no program waits forever, whatever their number and whether or not all of them run at once: only an item that
rescales waits, for the sums of its own layer; their tickets are lower, so that programs that are running have taken
them; and sums wait for nothing. Why it sees what it waited for: a program stores its sums before it counts them
(release), and they are read after the count (acquire). The sums of a layer's chunks are added up in the same order by
all who need them: the same bits in every run.
"""

# ruff: noqa: N803 - capitals are constants
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
import triton
import triton.language as tl

from gradient_lars.torch import _triton_constants as const
from gradient_lars.torch._triton_math import (
    TYPES,
    chunk_squares,
    column,
    extent,
    layer_figures,
    loss_scale,
    narrow,
    setting,
    settings_of,
    wide,
)

LAYOUT = const.LAYOUT

__all__ = ["LAYOUT", "TYPES", "rescale"]


@triton.jit
def _sums(
    table_ptr,
    p_sums_ptr,
    g_sums_ptr,
    counts_ptr,
    grad,
    t,
    c,
    layers,
    W: tl.constexpr,
    G: tl.constexpr,
    WIDE: tl.constexpr,
    DECAY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the sums of the squares of a chunk's weights and gradient, and count the chunk as done."""
    start, end, numel = extent(table_ptr, t, c, layers, CHUNK)
    i = column(table_ptr, const.FIRST, t, layers) + c
    tl.store(g_sums_ptr + i, chunk_squares(grad, start, end, numel, G, WIDE, CHUNK, BLOCK))
    weights = column(table_ptr, const.WEIGHTS, t, layers)
    # Without a decay the weights are not read again, and must not drive gradients out of the cache.
    evict: tl.constexpr = "evict_last" if DECAY else "evict_first"
    tl.store(p_sums_ptr + i, chunk_squares(weights, start, end, numel, W, WIDE, CHUNK, BLOCK, evict))
    tl.debug_barrier()
    tl.atomic_add(counts_ptr + t, 1, sem="release")


@triton.jit
def _wait(count_ptr, chunks):
    """Return when all `chunks` of a layer have been counted."""
    done = tl.atomic_add(count_ptr, 0, sem="acquire")
    while done < chunks:
        done = tl.atomic_add(count_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def _rate_and_decay(
    table_ptr,
    p_sums_ptr,
    g_sums_ptr,
    figures_ptr,
    scale_ptr,
    t,
    c,
    layers,
    WIDE: tl.constexpr,
    REDUCE: tl.constexpr,
):
    """Return the rate of layer `t`, and the decay as it enters the gradient that is stored."""
    row_ptr = settings_of(table_ptr, t, layers)
    switches = tl.load(row_ptr + const.SWITCHES)
    scale = loss_scale(scale_ptr, WIDE)
    first = column(table_ptr, const.FIRST, t, layers)
    rate = layer_figures(
        table_ptr, p_sums_ptr, g_sums_ptr, figures_ptr, scale, 1.0, row_ptr, switches, t, first, c == 0, layers,
        WIDE, False, REDUCE,
    )  # fmt: skip
    # The gradient holds the loss scale, and an optimizer that maximizes will negate it: the decay must survive both.
    decay = setting(row_ptr, const.DECAY, WIDE) * scale
    return rate, tl.where((switches & const.MAXIMIZE) != 0, -decay, decay)


@triton.jit
def _rescale_block(
    weights_ptr, grad_ptr, offsets, mask, rate, decay, G: tl.constexpr, WIDE: tl.constexpr, DECAY: tl.constexpr
):
    value = wide(tl.load(grad_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_first"), WIDE)
    if DECAY:
        weights = wide(tl.load(weights_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_first"), WIDE)
        # Weights that are not finite must not reach the gradient of a group without decay.
        value = tl.where(decay != 0.0, value + decay * weights, value)
    # The cache has no more use for it, and room to make for the next layers.
    tl.store(grad_ptr + offsets, narrow(rate * value, G), mask=mask, eviction_policy="evict_first")


@triton.jit
def _rescale_chunk(
    table_ptr,
    grad,
    t,
    c,
    layers,
    rate,
    decay,
    W: tl.constexpr,
    G: tl.constexpr,
    WIDE: tl.constexpr,
    DECAY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rescale a chunk of the gradient."""
    start, end, numel = extent(table_ptr, t, c, layers, CHUNK)
    weights = column(table_ptr, const.WEIGHTS, t, layers)
    weights_ptr, grad_ptr = weights.to(tl.pointer_type(W)), grad.to(tl.pointer_type(G))
    lanes = tl.arange(0, BLOCK)
    if ((weights | grad) % 16 == 0) & (end <= numel):
        mask = tl.full((BLOCK,), True, tl.int1)
        aligned_w, aligned_g = tl.multiple_of(weights_ptr, 16), tl.multiple_of(grad_ptr, 16)
        for base in range(start, end, CHUNK):
            for k in tl.static_range(0, CHUNK, BLOCK):
                _rescale_block(aligned_w, aligned_g, (base + k) + lanes, mask, rate, decay, G, WIDE, DECAY)
    else:
        for base in range(start, tl.minimum(end, numel), BLOCK):
            offsets = base + lanes
            _rescale_block(weights_ptr, grad_ptr, offsets, offsets < numel, rate, decay, G, WIDE, DECAY)


@triton.jit(do_not_specialize=["items", "layers"])
def rescale(
    table_ptr,
    items_ptr,
    counts_ptr,
    p_sums_ptr,
    g_sums_ptr,
    figures_ptr,
    scale_ptr,
    found_inf_ptr,
    items,
    layers,
    W: tl.constexpr,
    G: tl.constexpr,
    WIDE: tl.constexpr,
    DECAY: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    REDUCE: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Take items until there are none left. `counts_ptr` holds the next ticket behind a count for each layer.

    `scale_ptr` and `found_inf_ptr` may be None: no loss scale, nothing that skips the step. With `DECAY` 0 no group has
    a decay. All counts are zero before the launch and after it.
    """
    ticket = tl.atomic_add(counts_ptr + layers, 1)
    while ticket < items:
        item = tl.load(items_ptr + ticket)
        t = item >> const.CHUNK_BITS + 1
        c = (item >> 1) & const.CHUNK_MASK
        grad = column(table_ptr, const.GRAD, t, layers)
        if grad != const.ABSENT:
            if (item & 1) == 0:
                _sums(
                    table_ptr, p_sums_ptr, g_sums_ptr, counts_ptr, grad, t, c, layers,
                    W, G, WIDE, DECAY, CHUNK, BLOCK,
                )  # fmt: skip
            else:
                _wait(counts_ptr + t, column(table_ptr, const.CHUNKS, t, layers))
                rate, decay = _rate_and_decay(
                    table_ptr, p_sums_ptr, g_sums_ptr, figures_ptr, scale_ptr, t, c, layers, WIDE, REDUCE
                )
                skip = False
                if found_inf_ptr is not None:
                    skip = tl.load(found_inf_ptr) != 0.0
                if skip == 0:
                    _rescale_chunk(table_ptr, grad, t, c, layers, rate, decay, W, G, WIDE, DECAY, CHUNK, BLOCK)
        ticket = tl.atomic_add(counts_ptr + layers, 1)
    # Each program takes one ticket too many, and has nothing more to do then. The last of these is the last of all.
    if ticket == items + tl.num_programs(0) - 1:
        lanes = tl.arange(0, REDUCE)
        for k in range(0, layers + 1, REDUCE):
            tl.store(counts_ptr + k + lanes, 0, mask=k + lanes <= layers)
