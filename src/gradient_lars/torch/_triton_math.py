"""The pieces of the kernels: what the table says, sums of squares, norms, the rate, and the update of one block."""

# ruff: noqa: N803, RET505, SIM300 - capitals are constants, and branches are chosen when a kernel is compiled
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
import torch
import triton
import triton.language as tl

from gradient_lars.torch import _triton_constants as const

TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def wide(value, WIDE: tl.constexpr):
    # By way of float32: the interpreter knows no other way to bfloat16 and from it, and no digit is lost.
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value.to(WIDE)


@triton.jit
def narrow(value, TYPE: tl.constexpr):
    if TYPE == tl.bfloat16:
        value = value.to(tl.float32)
    return value.to(TYPE)


@triton.jit
def column(table_ptr, NAME: tl.constexpr, t, layers):
    """Return what the table says of layer `t`."""
    return tl.load(table_ptr + layers * NAME + t)


@triton.jit
def extent(table_ptr, t, c, layers, CHUNK: tl.constexpr):
    """Return where chunk `c` of layer `t` starts and ends, and the layer's number of entries."""
    span = column(table_ptr, const.SPAN, t, layers) * CHUNK
    start = c * span
    return start, start + span, column(table_ptr, const.NUMEL, t, layers)


@triton.jit
def settings_of(table_ptr, t, layers):
    """Return where the settings of the group of layer `t` lie."""
    group = column(table_ptr, const.FLAGS, t, layers) >> const.GROUP_SHIFT
    return table_ptr + layers * const.COLUMNS + group * const.SETTINGS


@triton.jit
def loss_scale(scale_ptr, WIDE: tl.constexpr):
    """Return what the gradients are multiplied by: 1 without a `scale_ptr`."""
    scale = tl.full((), 1.0, WIDE)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr).to(WIDE)
    return scale


@triton.jit
def chunk_squares(
    address,
    start,
    end,
    numel,
    TYPE: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    EVICT: tl.constexpr = "evict_last",
):
    """Return the sum of the squares of the entries from `start` up to `end` of the tensor at `address`."""
    pointer = address.to(tl.pointer_type(TYPE))
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), WIDE)
    if (address % 16 == 0) & (end <= numel):
        # 16-byte loads need an aligned address and a mask that is known to be full.
        aligned = tl.multiple_of(pointer, 16)
        for base in range(start, end, CHUNK):
            for k in tl.static_range(0, CHUNK, BLOCK):
                value = wide(tl.load(aligned + (base + k) + lanes, eviction_policy=EVICT), WIDE)
                total += value * value
    else:
        for base in range(start, tl.minimum(end, numel), BLOCK):
            offsets = base + lanes
            value = wide(tl.load(pointer + offsets, mask=offsets < numel, other=0.0), WIDE)
            total += value * value
    return tl.sum(total)


@triton.jit
def decayed_squares(
    grad,
    weights,
    decay,
    start,
    end,
    numel,
    G: tl.constexpr,
    W: tl.constexpr,
    WIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the sum of the squares of gradient plus `decay` times weights, entries from `start` up to `end`."""
    grad_ptr, weights_ptr = grad.to(tl.pointer_type(G)), weights.to(tl.pointer_type(W))
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), WIDE)
    if ((grad | weights) % 16 == 0) & (end <= numel):
        aligned_g, aligned_w = tl.multiple_of(grad_ptr, 16), tl.multiple_of(weights_ptr, 16)
        for base in range(start, end, CHUNK):
            for k in tl.static_range(0, CHUNK, BLOCK):
                offsets = (base + k) + lanes
                value = wide(tl.load(aligned_g + offsets, eviction_policy="evict_last"), WIDE)
                value += decay * wide(tl.load(aligned_w + offsets, eviction_policy="evict_last"), WIDE)
                total += value * value
    else:
        for base in range(start, tl.minimum(end, numel), BLOCK):
            offsets = base + lanes
            value = wide(tl.load(grad_ptr + offsets, mask=offsets < numel, other=0.0), WIDE)
            value += decay * wide(tl.load(weights_ptr + offsets, mask=offsets < numel, other=0.0), WIDE)
            total += value * value
    return tl.sum(total)


@triton.jit
def total(sums_ptr, chunks, WIDE: tl.constexpr, REDUCE: tl.constexpr):
    """Return the sum of a tensor's `chunks` sums."""
    lanes = tl.arange(0, REDUCE)
    parts = tl.zeros((REDUCE,), WIDE)
    for k in range(0, chunks, REDUCE):
        parts += tl.load(sums_ptr + k + lanes, mask=k + lanes < chunks, other=0.0)
    return tl.sum(parts)


@triton.jit
def norm(sums_ptr, chunks, WIDE: tl.constexpr, REDUCE: tl.constexpr):
    """Return the square root of the sum of a tensor's `chunks` sums."""
    # The precise root: a norm that equals the threshold must not come out above it.
    if WIDE == tl.float32:
        return tl.sqrt_rn(total(sums_ptr, chunks, WIDE, REDUCE))
    else:
        return tl.sqrt(total(sums_ptr, chunks, WIDE, REDUCE))


@triton.jit
def setting(row_ptr, NAME: tl.constexpr, WIDE: tl.constexpr):
    return tl.load(row_ptr + NAME).to(tl.float64, bitcast=True).to(WIDE)


@triton.jit
def learning_rate(row_ptr, switches, WIDE: tl.constexpr):
    """Return the group's lr: the number in the table, or what the tensor holds whose address is there."""
    lr = setting(row_ptr, const.LR, WIDE)
    address = tl.load(row_ptr + const.LR_ADDRESS)
    if address != 0:
        if (switches & const.DOUBLE_LR) != 0:
            lr = tl.load(address.to(tl.pointer_type(tl.float64))).to(WIDE)
        else:
            lr = tl.load(address.to(tl.pointer_type(tl.float32))).to(WIDE)
    return lr


@triton.jit
def layer_decay(flags, row_ptr, WIDE: tl.constexpr):
    """Return the layer's own decay: 0 if it is excluded and its group says that these have none."""
    return tl.where((flags & const.UNDECAYED) != 0, 0.0, setting(row_ptr, const.DECAY, WIDE)).to(WIDE)


@triton.jit
def layer_rate(p_norm, g_norm, lr, flags, row_ptr, switches, WIDE: tl.constexpr):
    """Return ``_formula.rate`` of the two norms, with the settings of the layer's group."""
    decay = tl.where((flags & const.DECAYED) != 0, 0.0, layer_decay(flags, row_ptr, WIDE)).to(WIDE)
    denominator = setting(row_ptr, const.EPS, WIDE) + g_norm + decay * p_norm
    above = ((flags & const.ADAPTED) != 0) & (p_norm > setting(row_ptr, const.THRESHOLD, WIDE))
    scaled = above & (denominator != 0.0)
    ratio = p_norm / tl.where(scaled, denominator, 1.0)
    ratio = setting(row_ptr, const.TRUST, WIDE) * ratio
    ratio = tl.where((switches & const.CLIP) != 0, tl.where(ratio >= lr, 1.0, ratio / lr), ratio)
    least, most = setting(row_ptr, const.MIN, WIDE), setting(row_ptr, const.MAX, WIDE)
    ratio = tl.where(ratio < least, least, ratio)
    ratio = tl.where(ratio > most, most, ratio)
    rate = tl.where(scaled, ratio, 1.0)
    without_gradient = setting(row_ptr, const.ZERO_RATE, WIDE)
    return tl.where(above & (g_norm == 0.0) & (without_gradient == without_gradient), without_gradient, rate)


@triton.jit
def layer_norms(
    table_ptr, p_sums_ptr, g_sums_ptr, t, first, scale, layers,
    WIDE: tl.constexpr, SHARDED: tl.constexpr, REDUCE: tl.constexpr,
):  # fmt: skip
    """Return the norms of a layer's weights and unscaled gradient, from its chunks' sums or from those of all ranks."""
    chunks = column(table_ptr, const.CHUNKS, t, layers).to(tl.int32)
    p_norm = norm(p_sums_ptr + first, chunks, WIDE, REDUCE)
    g_norm = norm(g_sums_ptr + first, chunks, WIDE, REDUCE) / scale
    if SHARDED:
        whole = column(table_ptr, const.WHOLE, t, layers)
        if whole != 0:
            whole_ptr = whole.to(tl.pointer_type(tl.float64))
            p_norm = tl.sqrt(tl.load(whole_ptr)).to(WIDE)
            g_norm = tl.sqrt(tl.load(whole_ptr + 1)).to(WIDE)
    return p_norm, g_norm


@triton.jit
def layer_figures(
    table_ptr,
    p_sums_ptr,
    g_sums_ptr,
    figures_ptr,
    scale,
    lr,
    row_ptr,
    switches,
    t,
    first,
    is_first,
    layers,
    WIDE: tl.constexpr,
    SHARDED: tl.constexpr,
    REDUCE: tl.constexpr,
):
    """Return the rate of layer `t`, whose sums begin at `first`; its first chunk also writes norms and rate."""
    p_norm, g_norm = layer_norms(table_ptr, p_sums_ptr, g_sums_ptr, t, first, scale, layers, WIDE, SHARDED, REDUCE)
    rate = layer_rate(p_norm, g_norm, lr, column(table_ptr, const.FLAGS, t, layers), row_ptr, switches, WIDE)
    if is_first:
        tl.store(figures_ptr + t, p_norm)
        tl.store(figures_ptr + layers + t, g_norm)
        tl.store(figures_ptr + 2 * layers + t, rate)
    return rate


@triton.jit
def update_block(
    weights_ptr,
    grad_ptr,
    momentum_ptr,
    low_ptr,
    offsets,
    mask,
    factor,
    gain,
    decay,
    momentum,
    keep,
    nesterov,
    lr_outside,
    W: tl.constexpr,
    M: tl.constexpr,
    LOW: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Update the entries at `offsets`; return their weights before and after."""
    old = wide(tl.load(weights_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_first"), WIDE)
    grad = wide(tl.load(grad_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_first"), WIDE)
    step = factor * (gain * grad + decay * old)
    if M is not None:
        velocity = wide(tl.load(momentum_ptr + offsets, mask=mask, other=0.0, eviction_policy="evict_first"), WIDE)
        velocity = momentum * velocity + keep * step
        tl.store(momentum_ptr + offsets, narrow(velocity, M), mask=mask, eviction_policy="evict_first")
        step = tl.where(nesterov, step + momentum * velocity, velocity)
    new = old - lr_outside * step
    stored = narrow(new, W)
    tl.store(weights_ptr + offsets, stored, mask=mask, eviction_policy="evict_first")
    if LOW is not None:
        tl.store(low_ptr + offsets, narrow(new, LOW), mask=mask, eviction_policy="evict_first")
    return old, wide(stored, WIDE)
