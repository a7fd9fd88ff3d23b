"""Stand-ins for CuPy and ChainerX: NumPy inside, and an error for whatever a device would have to wait for."""

import operator
import types

import numpy as np


class HostSyncError(RuntimeError):
    """The host has asked for a value of the device."""


class WrongDeviceError(RuntimeError):
    """A kernel was started while another device was selected."""


def make_cupy():
    """Return a module ``cupy`` whose arrays live on devices and never give their values to the host."""
    cupy = types.ModuleType("cupy")
    selected = [0]

    class Device:
        def __init__(self, number):
            self.id = number

        def __enter__(self):
            selected.append(self.id)
            return self

        def __exit__(self, *error):
            selected.pop()

    def values(operand):
        return operand.values if isinstance(operand, ndarray) else operand

    def kernel(function, *operands):
        """Compute with arrays of the selected device and Python numbers."""
        for operand in operands:
            if isinstance(operand, ndarray) and operand.device.id != selected[-1]:
                raise WrongDeviceError(f"array of device {operand.device.id}, device {selected[-1]} is selected")
            if isinstance(operand, np.ndarray | np.generic):
                raise TypeError(f"Unsupported type {type(operand)}")
        return ndarray(np.asarray(function(*map(values, operands))), selected[-1])

    def binary(name):
        function = getattr(operator, name)
        return lambda self, other: kernel(function, self, other), lambda self, other: kernel(function, other, self)

    def in_place(name):
        function = getattr(operator, name)

        def method(self, other):
            self.values[...] = kernel(function, self, other).values.astype(self.dtype)
            return self

        return method

    def forbidden(name):
        def method(self, *args, **kwargs):
            raise HostSyncError(f"{name} waits for the device")

        return method

    class ndarray:  # noqa: N801  the library's own name
        __module__ = "cupy"
        __array_ufunc__ = None
        __hash__ = None

        def __init__(self, array, device=0):
            self.values, self.device = array, Device(device)

        dtype = property(lambda self: self.values.dtype)
        shape = property(lambda self: self.values.shape)
        flags = property(lambda self: types.SimpleNamespace(c_contiguous=True, f_contiguous=False, owndata=True))

        def astype(self, dtype):
            return kernel(lambda array: array.astype(dtype), self)

        def __setitem__(self, index, value):
            if index is not Ellipsis:
                raise HostSyncError("an index")
            self.values[...] = kernel(np.positive, value).values

    for name in ("add", "sub", "mul", "truediv"):
        forward, backward = binary(name)
        setattr(ndarray, f"__{name}__", forward)
        setattr(ndarray, f"__r{name}__", backward)
        setattr(ndarray, f"__i{name}__", in_place(name))
    for name in ("gt", "ge", "lt", "le", "eq", "ne", "and_", "or_"):
        setattr(ndarray, f"__{name.rstrip('_')}__", binary(name)[0])
    for name in (
        "__array__",
        "__bool__",
        "__complex__",
        "__float__",
        "__index__",
        "__int__",
        "__iter__",
        "__len__",
        "get",
        "item",
        "tolist",
    ):
        setattr(ndarray, name, forbidden(name))

    def where(condition, if_true, if_false):
        if not isinstance(condition, ndarray):
            raise TypeError("the condition must be an array of the device")
        return kernel(np.where, condition, if_true, if_false)

    cupy.ndarray, cupy.where, cupy.float32 = ndarray, where, np.float32
    cupy.linalg = types.SimpleNamespace(norm=lambda array: kernel(np.linalg.norm, array))
    cupy.current_device = lambda: selected[-1]
    return cupy


def make_chainerx():
    """Return modules ``chainerx`` and ``chainer``; the first's arrays can do nothing but lend their memory."""
    chainerx, chainer = types.ModuleType("chainerx"), types.ModuleType("chainer")

    class ndarray:  # noqa: N801  the library's own name
        __module__ = "chainerx"
        __slots__ = ("_lent",)

        def __init__(self, lent):
            self._lent = lent

    chainerx.ndarray = ndarray
    chainer.backend = types.SimpleNamespace(from_chx=lambda array: array._lent if isinstance(array, ndarray) else array)
    return chainerx, chainer
