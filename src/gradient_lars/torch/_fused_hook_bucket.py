"""The layers of one launch of the hook's kernel: their table, their work items and their sums."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from gradient_lars import _formula
from gradient_lars.torch import _fused_tables as tables
from gradient_lars.torch._fused_bucket import BLOCK, LAUNCH, REDUCE
from gradient_lars.torch._fused_launch import current, is_capturing
from gradient_lars.torch._fused_order import tickets
from gradient_lars.torch._fused_tables import Column
from gradient_lars.torch._layers import ARRAYS, LossScale

# Two programs of four warps have enough loads under way to fill an H100's memory bus (16 KB a processor by Little's
# law; each has up to 32 KB), and what is under way takes room in the L2 cache from what is to stay there. Half as many
# items between a layer's last sum and its rescaling: at most half the programs may have to wait for it, and never for
# longer than the rest of one item. By a count of bytes with a least-recently-used cache of 25, 32 and 50 MiB, the step
# of fused SGD with the hook then moves 1.57, 1.57 and 1.53 times the bytes of fused SGD alone on ResNet-50, and 1.75,
# 1.67 and 1.60 times on ViT-L, with a decay; two launches move 2.0 times.
PROGRAMS = 2
# Where there are no processors to count, which is Triton's interpreter. It runs one program after the other.
_INTERPRETED = 6

# Decay and sign of some layers.
Row = tuple[float, int]


@dataclass(slots=True)
class Member:
    """A layer that the kernel takes: its weights, and the type its gradients have."""

    param: Tensor
    grad_dtype: torch.dtype

    @property
    def key(self) -> tuple[torch.device, torch.dtype, torch.dtype]:
        """Layers of the same key go into one launch."""
        return self.param.device, self.param.dtype, self.grad_dtype


class HookBucket:
    """Layers of one device and one combination of types.

    Args:
        members: at least one layer.
        rows: how many rows of settings there may be.
        kernels: the module `_triton_hook`.
    """

    def __init__(self, members: list[Member], rows: int, kernels: ModuleType) -> None:
        self.device, weights_dtype, grad_dtype = members[0].key
        self.layers = len(members)
        self._wide_dtype = torch.promote_types(ARRAYS.wide_dtype(weights_dtype), ARRAYS.wide_dtype(grad_dtype))
        self._kernel, self._layout = kernels.rescale, kernels.LAYOUT
        self._types = [kernels.TYPES[dtype] for dtype in (weights_dtype, grad_dtype, self._wide_dtype)]

        sizes = [tables.chunks_of(member.param.numel()) for member in members]
        chunks = [count for count, _ in sizes]
        first = [0]
        for count in chunks:
            first.append(first[-1] + count)
        sums = first.pop()
        self._programs = min(2 * sums, _programs(self.device))
        self._items = tables.to_device(tickets(chunks, self._programs // 2), torch.int32, self.device)
        zeros = [0] * self.layers
        columns: dict[Column, list[int]] = {
            Column.NUMEL: [member.param.numel() for member in members],
            Column.FIRST: first,
            Column.CHUNKS: chunks,
            Column.SPAN: [span for _, span in sizes],
            Column.GRAD: [tables.ABSENT] * self.layers,
        }
        blank = [[0] * tables.SETTINGS for _ in range(rows)]
        self.table = tables.Table([columns.get(column, zeros) for column in Column], blank, self.device)
        self._p_sums = torch.zeros(sums, dtype=self._wide_dtype, device=self.device)
        self._g_sums = torch.zeros_like(self._p_sums)
        self._counts = torch.zeros(self.layers + 1, dtype=torch.int32, device=self.device)

    def set_rows(self, rows: Sequence[Row], of_layers: Sequence[int], *, threshold: float, eps: float) -> None:
        """Set the rows of settings, and which one belongs to each layer."""
        for i, row in enumerate(rows):
            self.table.set_settings(i, _settings(*row, threshold, eps))
        self.table.set_column(Column.FLAGS, [i << tables.GROUP_SHIFT | tables.ADAPTED for i in of_layers])

    def launch(self, weights: Sequence[int], grads: Sequence[int], loss_scale: LossScale, *, decay: bool) -> Tensor:
        """Rescale the gradients at the addresses `grads`; return norms and rates, shape (3, layers).

        Rows of layers whose gradient is `ABSENT` are left undefined.
        """
        self.table.set_column(Column.WEIGHTS, weights)
        self.table.set_column(Column.GRAD, grads)
        table = self.table.on_device(capturing=is_capturing(self.device))
        figures = torch.empty((3, self.layers), dtype=self._wide_dtype, device=self.device)
        scale, found_inf = (
            None if t is None else t.to(self.device, non_blocking=True)
            for t in (loss_scale.scale, loss_scale.found_inf)
        )
        with current(self.device):
            self._kernel[(self._programs,)](
                table, self._items, self._counts, self._p_sums, self._g_sums, figures, scale, found_inf,
                len(self._items), self.layers, *self._types, decay, tables.CHUNK, BLOCK, REDUCE, self._layout,
                **LAUNCH,
            )  # fmt: skip
        return figures


def _programs(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED
    return PROGRAMS * int(torch.cuda.get_device_properties(device).multi_processor_count)


def _settings(decay: float, sign: int, threshold: float, eps: float) -> list[int]:
    """Return the row of LARS's settings that makes its rate the hook's."""
    hook = {"weight_decay": decay, "maximize": sign < 0, "threshold": threshold, "eps": eps}
    neutral = {"trust_coefficient": 1.0, "min_rate": 0.0, "max_rate": _formula.INFINITY, "zero_gradient_rate": None}
    unused = dict.fromkeys(("momentum", "dampening", "nesterov", "lr_in_momentum", "trust_clip"), False)
    return tables.settings_row({**hook, **neutral, **unused}, 0.0)
