"""The layers of `torch_cases` in JAX, and trees to put them in."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import torch

from torch_cases import CASES as TORCH_CASES

# JAX has no layouts: converted, these would be the same case again.
LAYOUTS = {"transposed", "channels_last", "gradient of another layout", "offset view", "strided view"}
CASES = [case for case in TORCH_CASES if case.name not in LAYOUTS]


def x64(dtype):
    """Return the context in which JAX has `dtype`: float64 and complex128 are switched off elsewhere."""
    return jax.enable_x64(True) if str(dtype) in ("float64", "complex128") else contextlib.nullcontext()


def dtype_of(case):
    """Return the name of the type of a case's layer."""
    return str(layer(case)[0].dtype).removeprefix("torch.")


def layer(case, seed=1):
    """Return weights and gradient of a case, as tensors of PyTorch."""
    return case.make(torch.Generator().manual_seed(seed))


def to_jax(tensor):
    """Return the values of a tensor in an array of the same type."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype is torch.bfloat16:  # unknown to NumPy
        return jnp.asarray(tensor.float().numpy(), jnp.bfloat16)
    array = jnp.asarray(tensor.numpy().copy())
    assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
    return array


def to_wide(array):
    """Return the values of an array in float64 or complex128, in NumPy."""
    array = np.asarray(array)
    return array.astype(np.complex128 if jnp.iscomplexobj(array) else np.float64)


def structure(tree):
    """Return all that a compiled function looks at in its argument: structure, shapes, types."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(jnp.shape(leaf), leaf.dtype, leaf.weak_type) for leaf in leaves]
