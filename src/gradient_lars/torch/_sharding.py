"""Sharded parameters (DTensors): this rank's piece of each, and norms of the whole from one collective a device mesh.

A step computes the norms of the pieces. Their squares, two numbers a layer, are added up over the ranks that hold
pieces of the same tensors; where a mesh dimension holds copies, only the first copy is counted. Parameters that are not
sharded take no part, so that a step without DTensors communicates nothing.
"""

import math
import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch import distributed as dist

from gradient_lars.torch._flags import FetchedFlags

# What a rank without a gradient for a layer enters in place of the two squares: where some ranks have one and others
# none, the sums show it, because no sum of squares is negative.
NO_P, NO_G = ABSENT = -float("inf"), -1.0

PLAIN = (Tensor, torch.nn.Parameter)


class Piece(NamedTuple):
    """Where a sharded layer stands in the sums: which mesh, which slot there, and whether this rank's piece counts."""

    mesh: int
    slot: int
    counted: bool


class LocalNorms(NamedTuple):
    """Norms of what this rank holds of some layers, as vectors, and where each layer stands; None if it is whole."""

    pieces: Sequence[Piece | None]
    p_norm: Tensor
    g_norm: Tensor


def is_dtensor(tensor: Any) -> "TypeGuard[Any]":
    """Return whether `tensor` is a DTensor; without importing what makes them, which takes long."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's piece of a DTensor, sharing its memory; another tensor as it is."""
    if not is_dtensor(tensor):
        return tensor
    piece: Any = tensor._local_tensor
    if type(piece) is not Tensor and hasattr(piece, "wait"):  # a collective that is still on its way
        piece = piece.wait()
    found: Tensor = piece
    return found


def check_sharding(name: str, param: Tensor) -> None:
    """Raise ValueError if `param` is a DTensor without a norm: sums that are still to be added up."""
    if is_dtensor(param) and any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"`optimizer` holds {name!r} in the placement {param.placements}: its values are still to be summed over "
            "the ranks. Redistribute it to Shard or Replicate."
        )


def gradient_like(name: str, param: Tensor, grad: Tensor) -> Tensor:
    """Return `grad` as a tensor that is distributed as `param` is, summed over the ranks if it still is to be.

    Raises:
        ValueError: only one of the two is a DTensor, or they are on different meshes.
    """
    if is_dtensor(param) != is_dtensor(grad):
        kinds = ("a DTensor", "a plain tensor") if is_dtensor(param) else ("a plain tensor", "a DTensor")
        raise ValueError(
            f"`param.grad` of {name!r} is {kinds[1]}, and the parameter {kinds[0]}. Distribute the gradient as the "
            "parameter, for example with `torch.distributed.tensor.distribute_tensor`."
        )
    if not is_dtensor(param) or not is_dtensor(grad) or grad.placements == param.placements:
        return grad
    if grad.device_mesh != param.device_mesh:
        raise ValueError(
            f"`param.grad` of {name!r} is on {grad.device_mesh}, and the parameter on {param.device_mesh}. Distribute "
            "both over one mesh."
        )
    with torch.no_grad():
        same: Tensor = grad.redistribute(param.device_mesh, param.placements)
    return same


class _Mesh:
    """The layers that are sharded over one device mesh, and the groups of ranks over which their sums are added up.

    Args:
        mesh: the device mesh.
        members: names and parameters of the layers.
    """

    def __init__(self, mesh: Any, members: Sequence[tuple[str, Any]]) -> None:
        self.names = [name for name, _ in members]
        self.flags = FetchedFlags()
        self._param = members[0][1]
        self._absent: Tensor | None = None
        self._mesh = mesh
        self._joined: Any = None
        placements = [param.placements for _, param in members]
        self._dims = [i for i in range(mesh.ndim) if not all(where[i].is_replicate() for where in placements)]
        self.size = math.prod(mesh.size(i) for i in self._dims)
        first = [mesh.get_local_rank(i) == 0 for i in range(mesh.ndim)]
        self.counted = [all(first[i] or not where[i].is_replicate() for i in self._dims) for where in placements]

    @property
    def device(self) -> torch.device:
        """Where the pieces are; a network that was made on the device meta gets its memory later."""
        return local(self._param).device

    @property
    def absent(self) -> Tensor:
        """The entry of a layer that has no gradient."""
        device = self.device
        if self._absent is None or self._absent.device != device:
            # Filled in on the device: what is copied from the host makes it wait, and no graph can hold that.
            entries = [torch.full((), entry, dtype=torch.float64, device=device) for entry in ABSENT]
            self._absent = torch.stack(entries)
        return self._absent

    def all_reduce(self, sums: Tensor) -> None:
        """Add `sums` up over the ranks, in place."""
        groups = self._groups()
        # Parameters offloaded to the CPU belong to a mesh of GPUs, whose groups may not know the CPU.
        known = all(sums.device.type in {device.type for device in group._device_types} for group in groups)
        there = sums if known else sums.to(self._mesh.device_type)
        for group in groups:
            dist.all_reduce(there, group=group)
        if there is not sums:
            sums.copy_(there)

    def _groups(self) -> list[Any]:
        """Return the group of the ranks that differ from this one in the sharded dimensions only.

        Or one group a dimension, where a new group would have to be made by all ranks of the job at once.
        """
        mesh, dims = self._mesh, self._dims
        if len(dims) == 1:
            return [mesh.get_group(dims[0])]
        if self._joined is None:
            world: Any = dist.group.WORLD
            place = tuple(slice(None) if i in dims else mesh.get_local_rank(i) for i in range(mesh.ndim))
            ranks = sorted(mesh.mesh[place].flatten().tolist())
            if len(ranks) == world.size():
                return [world]
            if world.bound_device_id is not None:
                return [mesh.get_group(i) for i in dims]
            group = dist.new_group(ranks, use_local_synchronization=True)
            self._joined = type(mesh).from_group(group, mesh.device_type)
        return [self._joined.get_group()]


class Sharding:
    """The sharded ones among an optimizer's parameters.

    Args:
        named: names and parameters that the step may have gradients for, the same on all ranks.

    Attributes:
        dtensors: those that are DTensors, sharded or replicated.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._held: list[Tensor] = []
        found: dict[Any, list[tuple[str, Any]]] = {}
        for name, param in named:
            self._held.append(param)
            if is_dtensor(param) and any(not placement.is_replicate() for placement in param.placements):
                found.setdefault(param.device_mesh, []).append((name, param))
        self.dtensors = [param for param in self._held if is_dtensor(param)]
        # A rank outside a mesh holds nothing of its tensors.
        found = {mesh: members for mesh, members in found.items() if mesh.get_coordinate() is not None}
        self._meshes = [_Mesh(mesh, members) for mesh, members in found.items()]
        self._pieces = {
            id(param): Piece(i, slot, mesh.counted[slot])
            for i, (mesh, members) in enumerate(zip(self._meshes, found.values(), strict=True))
            for slot, (_, param) in enumerate(members)
        }

    def __bool__(self) -> bool:
        return bool(self._meshes)

    def holds_for(self, params: Sequence[Tensor]) -> bool:
        """Return whether this is of the same parameters."""
        return len(params) == len(self._held) and all(map(operator.is_, params, self._held))

    def piece(self, param: Tensor) -> Piece | None:
        """Return where a parameter stands in the sums, or None if it is whole on every rank."""
        return self._pieces.get(id(param))

    def whole(
        self, found: Sequence[LocalNorms], overflow: Tensor | None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """Return the norms of whole layers from those of the pieces, and whether the step must change nothing.

        Every rank of a mesh must call it in every step, whatever gradients it has.

        Args:
            found: the layers that have gradients here; those without a piece are handed through.
            overflow: a bool that is true if this rank wants the step skipped, or None. Then all ranks skip it.

        Returns:
            Pairs of vectors as in `found`; and a bool on the first mesh's device, or None if nothing can stop the step.

        Raises:
            RuntimeError: some ranks have a gradient for a layer and others none. On a GPU, where the host does not wait
                for the sums, such a step is to be stopped and a later one raises.
        """
        sums = [self._squares(i, found) for i in range(len(self._meshes))]
        stop = self.add_up(sums, overflow)
        totals = [rows.sqrt().unbind() for rows in sums]
        return [_replaced(part, totals) for part in found], stop

    def absent(self) -> list[Tensor]:
        """Return what a rank enters that has no gradients, one tensor a mesh: float64, shape (layers, 2)."""
        return [mesh.absent.repeat(len(mesh.names), 1) for mesh in self._meshes]

    def add_up(self, sums: Sequence[Tensor], overflow: Tensor | None) -> Tensor | None:
        """Add up over the ranks, in place, the squares of both norms of every layer, one tensor a mesh as of `absent`.

        Arguments, results and errors are otherwise those of `whole`.
        """
        self._raise_disagreement()
        stops: list[Tensor] = []
        for mesh, rows in zip(self._meshes, sums, strict=True):
            if overflow is not None:
                # An overflow anywhere makes the first slot infinite, with or without a gradient there.
                infinite = torch.where(overflow.reshape(()).to(rows.device, non_blocking=True), float("inf"), 0.0)
                rows[0, 1] += infinite.to(torch.float64)
            mesh.all_reduce(rows)
            p_squares, g_squares = rows.unbind(1)
            odd = (p_squares == NO_P) & (g_squares != NO_G * mesh.size)
            if overflow is not None:
                finite = torch.isfinite(g_squares)
                odd = odd & finite
                stops.append(~finite.all())
            if not mesh.flags.send(odd):
                stops.append(odd.any())
        # After all collectives: a rank that raised between two of them would leave others waiting.
        self._raise_disagreement()
        if not stops:
            return None
        return torch.stack([stop.to(stops[0].device, non_blocking=True) for stop in stops]).any()

    def _squares(self, mesh_index: int, found: Sequence[LocalNorms]) -> Tensor:
        """Return what this rank enters for a mesh, in the form of `absent`."""
        mesh = self._meshes[mesh_index]
        absent = mesh.absent
        rows = [absent] * len(mesh.names)
        for part in found:
            here = [(i, piece) for i, piece in enumerate(part.pieces) if piece is not None and piece.mesh == mesh_index]
            if not here:
                continue
            squares = torch.stack([part.p_norm, part.g_norm], 1).to(torch.float64).square().to(absent.device).unbind()
            nothing = torch.zeros_like(absent)
            for i, piece in here:
                rows[piece.slot] = squares[i] if piece.counted else nothing
        return torch.stack(rows)

    def _raise_disagreement(self) -> None:
        # Of all meshes: flags that are left would raise in the next step, on some of the ranks only.
        found = [zip(mesh.names, mesh.flags.arrived(), strict=False) for mesh in self._meshes]
        odd = [repr(name) for flags in found for name, flag in flags if flag]
        if odd:
            shown = ", ".join(odd[:5]) + (f" and {len(odd) - 5} more" if len(odd) > 5 else "")
            raise RuntimeError(
                f"the ranks disagree about `param.grad` of {shown}: some have a gradient and others have None. The "
                "norm of a sharded layer needs all its pieces. Give every rank a gradient, of zeros if need be, or "
                "None on all."
            )


def _replaced(part: LocalNorms, totals: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the norms of a part with those of whole layers in place of those of pieces."""
    if not any(part.pieces):
        return part.p_norm, part.g_norm
    own = torch.stack([part.p_norm, part.g_norm], 1)
    rows = [
        row if piece is None else totals[piece.mesh][piece.slot].to(row.device, row.dtype)
        for row, piece in zip(own.unbind(), part.pieces, strict=True)
    ]
    p_norm, g_norm = torch.stack(rows).unbind(1)
    return p_norm, g_norm
