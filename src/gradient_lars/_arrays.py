"""Norms and in-place rescaling of one layer, per array library.

A library is recognised by the module of the array's type and is imported only then. ``rescale`` is the whole job; the
rest of the package also uses the pieces of the PyTorch part.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Protocol

from gradient_lars import _formula

# PyTorch's CPU kernel sums a whole tensor into a few float32 numbers: 25 million entries in [0, 1) come out 8e-4 too
# small, 2 million 3e-5. Norms of blocks, and then the norm of these, are right to 1e-7 in the same time.
_BLOCK = 4096
LARGE = 16 * _BLOCK

COPY_REMEDY = "Give it memory of its own first, for example `param.grad = {copy}`."


class ArrayLibrary(Protocol):
    """What the formula needs of an array library. Arrays are changed in place, norms stay where the arrays are."""

    def check(self, data: Any, grad: Any, weight_decay: float, label: str) -> None:
        """Raise TypeError or ValueError, before anything is changed, if `grad` cannot be rescaled in place."""

    def device_of(self, array: Any) -> AbstractContextManager[Any]:
        """Return the context in which the memory of `array` may be computed with."""

    def norm(self, array: Any) -> Any:
        """Return the Euclidean norm as a 0-d array or scalar, accumulated in float32 at least."""

    def where(self, condition: Any, if_true: Any, if_false: Any) -> Any:
        """Return `if_true` where `condition`, else `if_false`."""

    def scale(self, grad: Any, data: Any, rate: Any, decay: Any) -> None:
        """Set ``grad <- rate * (grad + decay * data)`` in place, computed in float32 at least."""


def rescale(
    data: Any,
    grad: Any,
    *,
    threshold: float,
    weight_decay: float,
    eps: float,
    loss_scale: float | None = None,
    name: str | None = None,
) -> None:
    """Apply the LARS formula to one layer: `grad` changes in place, `data` is read.

    With a `loss_scale` s, `grad` holds s times the gradient: its norm is divided by s, the decay multiplied by it.
    """
    library, data, grad = _library_of(data, grad)
    label = f"`param.grad`{f' of {name!r}' if name else ''}"
    library.check(data, grad, weight_decay, label)
    with library.device_of(data):
        p_norm, g_norm = library.norm(data), library.norm(grad)
        decay = weight_decay
        if loss_scale is not None:
            g_norm, decay = g_norm / loss_scale, weight_decay * loss_scale
        rate = _formula.rate(
            p_norm, g_norm, threshold=threshold, weight_decay=weight_decay, eps=eps, where=library.where
        )
        library.scale(grad, data, rate, decay)


def _library_of(data: Any, grad: Any) -> tuple[ArrayLibrary, Any, Any]:
    found = _module_name(data), _module_name(grad)
    if found[0] != found[1]:
        raise TypeError(
            f"`param.data` and `param.grad` must come from one array library, got {type(data).__name__} and "
            f"{type(grad).__name__}."
        )
    match found[0]:
        case "torch":
            return TorchArrays(sys.modules["torch"]), data, grad
        case "numpy" | "cupy":
            return NumpyArrays(sys.modules[found[0]]), data, grad
        case "chainerx":
            # A ChainerX array lends its memory to NumPy or CuPy, as Chainer's own update rules use it.
            from_chx = sys.modules["chainer"].backend.from_chx
            return _library_of(from_chx(data), from_chx(grad))
    raise TypeError(
        f"`param.data` must be an array of NumPy, CuPy, ChainerX or PyTorch, got {type(data).__name__}. "
        "JAX arrays cannot change in place: use gradient_lars.optax there."
    )


def _module_name(array: Any) -> str:
    for base in type(array).__mro__:
        root = base.__module__.partition(".")[0]
        if root in {"numpy", "cupy", "chainerx", "torch"}:
            return root
    return ""


class NumpyArrays:
    """NumPy, and CuPy, whose interface is the same and which keeps 0-d results on the device."""

    def __init__(self, xp: ModuleType | Any) -> None:
        self._xp = xp

    def check(self, data: Any, grad: Any, weight_decay: float, label: str) -> None:
        """See `ArrayLibrary`."""
        for array, what in ((data, label.replace("grad", "data", 1)), (grad, label)):
            if getattr(getattr(array, "dtype", None), "kind", "") not in {"f", "c"}:
                raise TypeError(f"{what} must be an array of floating point, got {_describe(array)}.")
        if data.shape != grad.shape:
            raise ValueError(f"{label} must have the shape of `param.data`, {data.shape}, got {grad.shape}.")
        if data.dtype.kind == "c" and grad.dtype.kind != "c":
            raise TypeError(f"{label} must be complex as `param.data` is, got {grad.dtype}.")
        # CuPy arrays have no such flag: they can always be written.
        if not getattr(grad.flags, "writeable", True):
            remedy = COPY_REMEDY.format(copy="numpy.array(param.grad)")
            raise ValueError(f"{label} is read-only and cannot be rescaled in place. {remedy}")

    def device_of(self, array: Any) -> AbstractContextManager[Any]:
        """See `ArrayLibrary`."""
        # Chainer selects no device before it calls an optimizer's hooks, and a CuPy kernel runs on the selected one.
        # NumPy's arrays have a `device` too, since 2.0: the text "cpu".
        device = getattr(array, "device", None)
        selected: AbstractContextManager[Any] = nullcontext()
        return device if isinstance(device, AbstractContextManager) else selected

    def norm(self, array: Any) -> Any:
        """See `ArrayLibrary`."""
        return self._xp.linalg.norm(self._widened(array))

    def where(self, condition: Any, if_true: Any, if_false: Any) -> Any:
        """See `ArrayLibrary`."""
        return self._xp.where(condition, if_true, if_false)

    def scale(self, grad: Any, data: Any, rate: Any, decay: Any) -> None:
        """See `ArrayLibrary`."""
        wide = self._widened(grad)
        if decay:
            wide += decay * self._widened(data)
        wide *= rate
        if wide is not grad:
            grad[...] = wide

    def _widened(self, array: Any) -> Any:
        return array.astype(self._xp.float32) if array.dtype.itemsize < 4 else array


class TorchArrays:
    """PyTorch tensors on any device; nothing here waits for the device."""

    def __init__(self, torch: ModuleType | Any) -> None:
        self._torch = torch

    def check(self, data: Any, grad: Any, weight_decay: float, label: str) -> None:
        """See `ArrayLibrary`."""
        torch = self._torch
        for tensor, what in ((data, label.replace("grad", "data", 1)), (grad, label)):
            if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype.itemsize < 2:
                raise TypeError(f"{what} must be a tensor of floating point, got {_describe(tensor)}.")
        if data.shape != grad.shape:
            shapes = tuple(data.shape), tuple(grad.shape)
            raise ValueError(f"{label} must have the shape of `param.data`, {shapes[0]}, got {shapes[1]}.")
        _check_placements(data, grad, weight_decay, label)
        if data.is_complex() and not grad.is_complex():
            raise TypeError(f"{label} must be complex as `param.data` is, got {grad.dtype}.")
        if grad.layout is torch.sparse_coo:
            if weight_decay:
                raise ValueError(
                    f"{label} is sparse, and `weight_decay` is {weight_decay}: a decay would make it dense. Use "
                    "weight_decay=0 for this parameter, or a dense gradient (`sparse=False` in nn.Embedding)."
                )
        elif grad.layout is not torch.strided:
            raise ValueError(f"{label} has the layout {grad.layout}. Use a dense or a sparse COO gradient.")
        elif _overlaps(grad):
            remedy = COPY_REMEDY.format(copy="param.grad.clone()")
            raise ValueError(
                f"{label} is an expanded tensor or overlaps itself, and cannot be rescaled in place. {remedy}"
            )
        if grad.is_inference() and not torch.is_inference_mode_enabled():
            remedy = COPY_REMEDY.format(copy="param.grad.clone()")
            raise ValueError(f"{label} is an inference tensor and cannot be rescaled in place. {remedy}")

    def device_of(self, array: Any) -> AbstractContextManager[Any]:
        """See `ArrayLibrary`."""
        return nullcontext()

    def norm(self, array: Any) -> Any:
        """See `ArrayLibrary`."""
        torch = self._torch
        if array.layout is torch.sparse_coo:
            array = array.coalesce()._values()
        dtype = self.wide_dtype(array.dtype)
        if array.device.type == "cpu" and array.numel() >= LARGE and dtype in (torch.float32, torch.complex64):
            if hasattr(array, "placements"):
                # A DTensor has no blocks of its own: its pieces are summed in float64 instead.
                double = torch.complex128 if dtype.is_complex else torch.float64
                return torch.linalg.vector_norm(array, dtype=double).to(torch.float32)
            flat = _flat(array)
            whole = flat.numel() // _BLOCK * _BLOCK
            blocks = torch.linalg.vector_norm(flat[:whole].view(-1, _BLOCK), dim=1, dtype=dtype)
            rest = torch.linalg.vector_norm(flat[whole:], dtype=dtype)
            return torch.linalg.vector_norm(torch.cat([blocks, rest.reshape(1)]))
        return torch.linalg.vector_norm(array, dtype=dtype)

    def where(self, condition: Any, if_true: Any, if_false: Any) -> Any:
        """See `ArrayLibrary`."""
        return self._torch.where(condition, if_true, if_false)

    def scale(self, grad: Any, data: Any, rate: Any, decay: Any) -> None:
        """See `ArrayLibrary`."""
        with self._torch.no_grad():
            if grad.layout is self._torch.sparse_coo:
                grad = grad._values()
                decay = 0.0
            wide_dtype = self.wide_dtype(grad.dtype)
            wide = grad.to(wide_dtype)
            if not isinstance(decay, float) or decay != 0.0:
                wide.add_(data.to(wide_dtype) * decay)
            wide.mul_(rate)
            if wide is not grad:
                grad.copy_(wide)

    def wide_dtype(self, dtype: Any) -> Any:
        """Return the type in which tensors of `dtype` are computed: float32 or complex64 at least."""
        torch = self._torch
        return {
            torch.float16: torch.float32,
            torch.bfloat16: torch.float32,
            torch.complex32: torch.complex64,
        }.get(dtype, dtype)


def _check_placements(data: Any, grad: Any, weight_decay: float, label: str) -> None:
    """Raise ValueError if `data` and `grad` are not both DTensors or none, or the decay would be summed over ranks."""
    where = [getattr(tensor, "placements", None) for tensor in (data, grad)]
    if (where[0] is None) != (where[1] is None):
        raise ValueError(
            f"{label} must be a DTensor if `param.data` is one, and only then. Distribute both alike, for example with "
            "`torch.distributed.tensor.distribute_tensor`."
        )
    if weight_decay and any(placement.is_partial() for placement in where[1] or ()):
        raise ValueError(
            f"{label} is still to be summed over the ranks, and with `weight_decay` {weight_decay} the decay would be "
            "too. Sum it first: `param.grad = param.grad.redistribute(placements=param.data.placements)`."
        )


def _flat(tensor: Any) -> Any:
    """Return the entries of `tensor` in the order of memory as a vector, without a copy if they lie densely."""
    order = sorted(range(tensor.dim()), key=lambda d: tensor.stride(d), reverse=True)
    return tensor.permute(order).reshape(-1)


def _overlaps(tensor: Any) -> bool:
    """Return whether `tensor` has more entries than places in memory, as an expanded tensor has."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return bool(tensor.numel() > span)


def _describe(array: Any) -> str:
    dtype, shape = getattr(array, "dtype", None), getattr(array, "shape", None)
    return type(array).__name__ if dtype is None else f"{dtype} of shape {tuple(shape or ())}"
