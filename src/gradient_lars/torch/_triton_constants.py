"""The tables' numbers as constants of the kernels, which read them as attributes of this module.

Triton compares every global name that a kernel uses at every launch, which for 36 of them takes 15 us of the host's
time; a module's attributes it reads when it compiles, and does not look at again. Nor do they enter the name under
which it keeps what it has compiled: `LAYOUT`, which every kernel takes as an argument, does that for all of them.
"""

import zlib

import triton.language as tl

from gradient_lars.torch import _fused_order as order
from gradient_lars.torch import _fused_tables as tables
from gradient_lars.torch._fused_tables import Column, Mark, Setting, Switch

COLUMNS, SETTINGS, ABSENT = tl.constexpr(tables.COLUMNS), tl.constexpr(tables.SETTINGS), tl.constexpr(tables.ABSENT)
WEIGHTS, MOMENTUM, LOW = (tl.constexpr(int(c)) for c in (Column.WEIGHTS, Column.MOMENTUM, Column.LOW))
NUMEL, FIRST, CHUNKS = (tl.constexpr(int(c)) for c in (Column.NUMEL, Column.FIRST, Column.CHUNKS))
SPAN, WHOLE, FLAGS, GRAD = (tl.constexpr(int(c)) for c in (Column.SPAN, Column.WHOLE, Column.FLAGS, Column.GRAD))
RECOMPUTE, ADAPTED, COPY = (tl.constexpr(bit) for bit in (tables.RECOMPUTE, tables.ADAPTED, tables.COPY))
UNDECAYED, DECAYED = (tl.constexpr(bit) for bit in (tables.UNDECAYED, tables.DECAYED))
GROUP_SHIFT = tl.constexpr(tables.GROUP_SHIFT)
EDITED, STARTED, TAKEN = (tl.constexpr(int(m)) for m in (Mark.EDITED, Mark.STARTED, Mark.TAKEN))
LR, LR_ADDRESS, MOMENTUM_FACTOR = (tl.constexpr(int(s)) for s in (Setting.LR, Setting.LR_ADDRESS, Setting.MOMENTUM))
KEEP, DECAY, TRUST = (tl.constexpr(int(s)) for s in (Setting.KEEP, Setting.WEIGHT_DECAY, Setting.TRUST_COEFFICIENT))
THRESHOLD, EPS, MIN = (tl.constexpr(int(s)) for s in (Setting.THRESHOLD, Setting.EPS, Setting.MIN_RATE))
MAX, ZERO_RATE = (tl.constexpr(int(s)) for s in (Setting.MAX_RATE, Setting.ZERO_GRADIENT_RATE))
SWITCHES = tl.constexpr(int(Setting.SWITCHES))
NESTEROV, MAXIMIZE, INSIDE = (tl.constexpr(int(s)) for s in (Switch.NESTEROV, Switch.MAXIMIZE, Switch.LR_IN_MOMENTUM))
CLIP, DOUBLE_LR = (tl.constexpr(int(s)) for s in (Switch.TRUST_CLIP, Switch.LR_IS_DOUBLE))
INFINITY = tl.constexpr(float("inf"))
CHUNK_BITS, CHUNK_MASK = tl.constexpr(order.CHUNK_BITS), tl.constexpr((1 << order.CHUNK_BITS) - 1)

# Two carried sums that differ by more, relatively, are not of the same weights. Rounding makes 1e-6 of it.
SAME_SUM = tl.constexpr(1e-5)

_NUMBERS = sorted((name, value.value) for name, value in globals().items() if isinstance(value, tl.constexpr))
LAYOUT = zlib.crc32(repr(_NUMBERS).encode())
