"""The layers of one launch: their table, their sums, and the guards of the sums that are carried."""

import warnings
from types import ModuleType

import torch
from torch import Tensor

from gradient_lars.torch import _fused_tables as tables
from gradient_lars.torch._flags import FetchedFlags
from gradient_lars.torch._fused_layer import FusedLayer
from gradient_lars.torch._fused_tables import Column, Mark

# Entries per turn of a program's loop, and sums that are added up at a time. 1024 was best on an H100.
BLOCK = 1024
REDUCE = 256

# Without fused multiply-add both kernels sum the same weights to the same bits, so that carried norms and those
# computed anew, after a checkpoint for one, give the same step. The memory is the limit, not the arithmetic.
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}

# Every so many steps the marks are fetched, without waiting for them.
LOOK_EVERY = 8


class Bucket:
    """Layers of one device and one combination of types.

    Args:
        layers: at least one layer.
        start: place of the first among all layers of the step.
        rows: the settings of the groups.
        kernels: the module `_triton`.
        whole: where the sums of sharded layers over all ranks will be, a tensor a mesh.
        carry: whether the sums of the weights are carried.
    """

    def __init__(
        self,
        layers: list[FusedLayer],
        start: int,
        rows: list[list[int]],
        kernels: ModuleType,
        whole: list[Tensor],
        *,
        carry: bool,
    ) -> None:
        self.layers, self.start, self.stop = layers, start, start + len(layers)
        self.device, self.wide_dtype, self.carry = layers[0].weights.device, layers[0].wide_dtype, carry
        self.staged = [pair for layer in layers for pair in layer.staged]
        self._kernels = kernels
        types = [None if dtype is None else kernels.TYPES[dtype] for dtype in (*layers[0].types, self.wide_dtype)]
        self._norm_types = (types[0], types[1], types[4], carry, tables.CHUNK, BLOCK, kernels.LAYOUT)
        self._sharded = any(layer.piece is not None for layer in layers)
        self._update_types = (*types, carry, self._sharded, tables.CHUNK, BLOCK, REDUCE, kernels.LAYOUT)
        self._totals_types = (types[4], REDUCE, kernels.LAYOUT)

        sizes = [tables.chunks_of(layer.weights.numel()) for layer in layers]
        first = [0]
        for chunks, _ in sizes:
            first.append(first[-1] + chunks)
        self.items = first.pop()
        self._items = tables.to_device(
            [t for t, (chunks, _) in enumerate(sizes) for _ in range(chunks)], torch.int32, self.device
        )
        columns: dict[Column, list[int]] = {
            Column.WEIGHTS: [layer.weights.data_ptr() for layer in layers],
            Column.MOMENTUM: [0 if layer.momentum is None else layer.momentum.data_ptr() for layer in layers],
            Column.LOW: [0 if layer.low is None else layer.low.data_ptr() for layer in layers],
            Column.NUMEL: [layer.weights.numel() for layer in layers],
            Column.FIRST: first,
            Column.CHUNKS: [chunks for chunks, _ in sizes],
            Column.SPAN: [span for _, span in sizes],
            Column.WHOLE: [
                0 if layer.piece is None else whole[layer.piece.mesh][layer.piece.slot].data_ptr() for layer in layers
            ],
            Column.FLAGS: [0] * len(layers),
            Column.GRAD: [tables.ABSENT] * len(layers),
        }
        self.table = tables.Table([columns[column] for column in Column], rows, self.device)

        self._g_sums = torch.zeros(self.items, dtype=self.wide_dtype, device=self.device)
        self._p_sums = [torch.zeros_like(self._g_sums) for _ in range(2 if carry else 1)]
        self._in_graph = False
        marks = [[0] * len(layers) for _ in Mark]
        marks[Mark.STARTED] = [0 if layer.fresh else 1 for layer in layers]
        self.marks = tables.to_device([mark for row in marks for mark in row], torch.int32, self.device)
        # Layers whose carried sums are not those of their weights.
        self.stale = set(range(len(layers)))
        self._flags: list[int] = []
        self._entered: list[int] = []
        self._pointers: list[int] = []
        self._until_look = LOOK_EVERY
        self._edited = FetchedFlags()

    def set_group_flags(self, flags: list[int]) -> None:
        """Set what FLAGS say of each layer beside the carried sums."""
        self._flags = flags

    def prepare(self, pointers: list[int]) -> None:
        """Enter the addresses of the gradients, and which layers' sums must be computed anew."""
        if pointers != self._pointers:
            self.table.set_column(Column.GRAD, pointers)
            self._pointers = pointers
        flags = self._flags
        if self.carry and self.stale:
            flags = [flag | tables.RECOMPUTE if i in self.stale else flag for i, flag in enumerate(flags)]
        if flags != self._entered:
            self.table.set_column(Column.FLAGS, flags)
            self._entered = flags

    def norms(self, bad: Tensor | None, scale: Tensor | None, *, capturing: bool) -> None:
        """Launch the sums; `bad` receives a one if a gradient's norm may not be finite."""
        for tensor, dense in self.staged:
            dense.copy_(tensor)
        self._table = self.table.on_device(capturing=capturing)
        self._kernels.norms[(self.items,)](
            self._table, self._items, self._p_sums[0], self._g_sums, self.marks, bad, scale, len(self.layers),
            *self._norm_types, **LAUNCH,
        )  # fmt: skip

    def totals(self, scale: Tensor | None) -> None:
        """Launch what enters the sums of sharded layers where the ranks will add them up."""
        if self._sharded:
            self._kernels.totals[(len(self.layers),)](
                self._table, self._p_sums[0], self._g_sums, scale, len(self.layers), *self._totals_types, **LAUNCH
            )

    def update(
        self,
        figures: Tensor,
        scale: Tensor | None,
        found_inf: Tensor | None,
        bad: Tensor | None,
        skipped: Tensor | None,
        *,
        capturing: bool,
    ) -> None:
        """Launch the update, which writes norms and rates into `figures`, and turn to the next step's sums."""
        self._kernels.update[(self.items,)](
            self._table, self._items, self._p_sums[0], self._g_sums, self._p_sums[-1], figures, self.marks,
            scale, found_inf, bad, skipped, self.items, len(self.layers), *self._update_types, **LAUNCH,
        )  # fmt: skip
        for tensor, dense in self.staged:
            tensor.copy_(dense)
        if self.carry:
            self._turn(capturing=capturing)

    def _turn(self, *, capturing: bool) -> None:
        # A graph reads the same buffer in every replay, and steps outside it must leave their sums there as well.
        self._in_graph |= capturing
        if self._in_graph:
            self._p_sums[0].copy_(self._p_sums[1])
        else:
            self._p_sums.reverse()
        if not capturing and self.stale:
            self.stale = {i for i in self.stale if self._pointers[i] == tables.ABSENT}

    def unstarted(self) -> list[FusedLayer]:
        """Return the layers whose momentum holds no step yet; waits for the device."""
        layers = len(self.layers)
        started, taken = (self.marks[mark * layers : (mark + 1) * layers] for mark in (Mark.STARTED, Mark.TAKEN))
        return [layer for layer, is_on in zip(self.layers, (started | taken).tolist(), strict=True) if not is_on]

    def look(self) -> None:
        """Warn of layers that were marked as edited, once the marks have arrived."""
        if self._edited.under_way:
            marks = self._edited.arrived()
            names = [repr(layer.name) for layer, mark in zip(self.layers, marks, strict=False) if mark]
            if names:
                _warn(names)
            return
        self._until_look -= 1
        if self._until_look == 0:
            self._until_look = LOOK_EVERY
            edited = self.marks[: len(self.layers)]
            self._edited.send(edited)
            edited.zero_()


def _warn(names: list[str]) -> None:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    warnings.warn(
        f"the weights of {shown} were changed between steps where their version counter could not see it: through "
        "`.data`, through raw memory, or between replays of a CUDA graph. One step has used the norms from before the "
        "change. Change weights in place under `torch.no_grad()`, or give LARS `carry_norms=False`.",
        RuntimeWarning,
        stacklevel=2,
    )
