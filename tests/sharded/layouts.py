"""The ways to spread parameters over ranks that every path is tried on: a new path is tested by joining the table."""

from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

# Rows that no number of ranks divides, fewer rows than ranks, one row, a vector, a number.
SHAPES = ((7, 5), (2, 3), (1, 6), (5,), (4, 3, 2), ())


@dataclass(frozen=True)
class Layout:
    """`meshes` are shapes, of all ranks each; `place` returns mesh and placements of parameter and gradient."""

    name: str
    ranks: tuple[int, ...]
    meshes: tuple
    place: object


def _rows(i, meshes):
    return meshes[0], [Shard(0)]


def _columns(i, meshes):
    return meshes[0], [Shard(len(SHAPES[i]) - 1)]


def _everywhere(i, meshes):
    return meshes[0], [Replicate()]


def _some(i, meshes):
    return [(None, None), (meshes[0], [Shard(0)]), (meshes[0], [Replicate()])][i % 3]


def _hybrid(i, meshes):
    return meshes[0], [Replicate(), Shard(0)]


def _both(i, meshes):
    return meshes[0], [[Shard(0), Shard(0)], [Shard(0), Replicate()], [Replicate(), Shard(0)]][i % 3]


def _several(i, meshes):
    return [(meshes[0], [Shard(0)]), (meshes[1], [Shard(0), Replicate()]), (meshes[2], [Shard(0)])][i % 3]


def _deep(i, meshes):
    return meshes[0], [Replicate(), Shard(0), [Replicate(), Shard(0)][i % 2]]


def _all(n):
    return (n,)


LAYOUTS = [
    Layout("rows", (1, 2, 3, 4), (_all,), _rows),
    Layout("columns", (3,), (_all,), _columns),
    Layout("replicated", (2,), (_all,), _everywhere),
    Layout("mixed with plain", (2, 3), (_all,), _some),
    Layout("hybrid", (2, 4), (lambda n: (2, n // 2),), _hybrid),
    Layout("two dimensions", (2, 4), (lambda n: (n // 2, 2),), _both),
    # The third mesh holds some of the ranks only, and each rank in one of several.
    Layout("several meshes", (2, 4), (_all, lambda n: (n // 2, 2), lambda n: (n // 2,)), _several),
    # Neither one dimension nor all ranks: a group of its own.
    Layout("three dimensions", (4,), (lambda n: (2, 2, 1),), _deep),
]


class Spread:
    """The parameters of a layout on this rank, and their twins that are whole.

    Args:
        layout: of `LAYOUTS`.
        dtype: of the parameters.
        partial: whether gradients arrive as sums that are still to be added up.
    """

    def __init__(self, layout, dtype, *, partial=False):
        n = dist.get_world_size()
        self.meshes = [_mesh(shape(n)) for shape in layout.meshes]
        self.places = [layout.place(i, self.meshes) for i in range(len(SHAPES))]
        # A number has no rows.
        self.places = [
            (mesh, [Replicate()] * mesh.ndim) if mesh is not None and not shape else (mesh, where)
            for (mesh, where), shape in zip(self.places, SHAPES, strict=True)
        ]
        self.partial = partial
        generator = torch.Generator().manual_seed(7)
        values = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
        self.whole = [(f"layer{i}", torch.nn.Parameter(value.clone())) for i, value in enumerate(values)]
        self.spread = [
            (f"layer{i}", torch.nn.Parameter(self._placed(i, value.clone()))) for i, value in enumerate(values)
        ]

    def set_gradients(self, step, without=()):
        """Give both the gradients of this step, but for the layers at the places `without`."""
        generator = torch.Generator().manual_seed(100 + step)
        for i, ((_, whole), (_, spread)) in enumerate(zip(self.whole, self.spread, strict=True)):
            grad = torch.randn(whole.shape, generator=generator, dtype=torch.float64).to(whole.dtype)
            absent = i in without
            whole.grad = None if absent else grad.clone()
            spread.grad = None if absent else self._gradient(i, grad.clone())

    def assert_equal(self, tolerance):
        """Assert that spread parameters are the whole ones, to `tolerance` of a tensor's scale."""
        for (name, whole), (_, spread) in zip(self.whole, self.spread, strict=True):
            assert_close(name, full(spread), whole.detach(), tolerance)

    def _placed(self, i, value):
        mesh, where = self.places[i]
        return value if mesh is None else distribute_tensor(value, mesh, where, src_data_rank=None)

    def _gradient(self, i, grad):
        mesh, _ = self.places[i]
        if mesh is None or not self.partial:
            return self._placed(i, grad)
        # Each rank holds a part of the sum, and the parts differ.
        size, rank = mesh.size(0), mesh.get_local_rank(0)
        part = grad / size + (rank - (size - 1) / 2)
        rest = [Replicate()] * (mesh.ndim - 1)
        return DTensor.from_local(part, mesh, [Partial(), *rest])


def _mesh(shape):
    """Return a mesh of this shape; one of fewer ranks than there are is that of which this rank is a part."""
    size = int(torch.tensor(shape).prod())
    first = dist.get_rank() // size * size
    # Made by hand: all ranks must make the groups of all such meshes, in one order.
    groups = [
        DeviceMesh("cpu", torch.arange(start, start + size).view(shape))
        for start in range(0, dist.get_world_size(), size)
    ]
    return groups[first // size]


def full(tensor):
    """Return the whole of a parameter, spread or not."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_close(name, actual, expected, tolerance):
    """Assert that two tensors differ by no more than `tolerance` of the larger one's largest entry."""
    assert actual.shape == expected.shape, name
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    off = float((actual.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    assert off <= tolerance * scale, f"{name} differs by {off}, more than {tolerance} of {scale}"
