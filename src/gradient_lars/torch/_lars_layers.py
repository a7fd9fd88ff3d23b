"""The layers of a LARS step: parameters that have gradients, each with its state, which is made where there is none."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradient_lars.torch._lars_bucket import Group, LarsLayer
from gradient_lars.torch._layers import ARRAYS
from gradient_lars.torch._sharding import Sharding, gradient_like, is_dtensor, local

Named = tuple[Group, str, bool, Tensor]
States = MutableMapping[Tensor, Any]


def layers_of(named: Sequence[Named], sharding: Sharding, states: States, *, master_weights: bool) -> list[LarsLayer]:
    """Return the layers of the parameters that have gradients.

    Args:
        named: as of `named_parameters`.
        sharding: of these parameters.
        states: the optimizer's, by parameter; momenta and master weights are added.
        master_weights: whether narrow parameters are stepped by way of a float32 copy.

    Raises:
        ValueError: a gradient is sparse, or not distributed as its parameter is; no state was made then.
    """
    # All are looked at before any state is made.
    found = [(group, name, param, _checked(group, name, param)) for group, name, _, param in named]
    layers = []
    for group, name, param, grad in found:
        if grad is None:
            continue
        adapted = is_adapted(param, group)
        master, fresh_master = _master(param, states) if master_weights else (None, False)
        momentum, fresh = _momentum(param, group, states)
        piece = sharding.piece(param)
        if is_dtensor(param):
            param, grad = local(param), local(grad)
            momentum = None if momentum is None else local(momentum)
            master = None if master is None else local(master)
        if param.is_complex():
            param, grad = torch.view_as_real(param), torch.view_as_real(grad.resolve_conj())
            momentum = None if momentum is None else torch.view_as_real(momentum)
            master = None if master is None else torch.view_as_real(master)
        layers.append(LarsLayer(name, param, grad, momentum, master, group, adapted, fresh, piece, fresh_master))
    return layers


def is_adapted(param: Tensor, group: Group) -> bool:
    """Return whether a layer of this group is adapted, should its weights' norm be above the threshold."""
    if group["weight_decay"] == 0 and not group["adapt_without_decay"]:
        return False
    return param.dim() >= 2 if group["adapt"] is None else bool(group["adapt"])


def _checked(group: Group, name: str, param: Tensor) -> Tensor | None:
    """Return the gradient, distributed as its parameter is."""
    grad = param.grad
    if grad is None:
        return None
    if grad.layout is not torch.strided:
        raise ValueError(
            f"`param.grad` of {name!r} is sparse, which LARS does not take. Use a dense gradient "
            "(`sparse=False` in nn.Embedding), or torch.optim.SGD with `add_hook`."
        )
    if is_dtensor(param) or is_dtensor(grad):
        if group["differentiable"]:
            raise ValueError(
                f"`differentiable` cannot be had for {name!r}, a sharded parameter (DTensor). Leave it out."
            )
        grad = gradient_like(name, param, grad)
    return grad


def _master(param: Tensor, states: States) -> tuple[Tensor | None, bool]:
    """Return the master copy, if the parameter has one, and whether it was made for this step."""
    dtype = ARRAYS.wide_dtype(param.dtype)
    if dtype == param.dtype:
        return None, False
    state = states[param]
    fresh = "master" not in state
    if fresh:
        state["master"] = param.detach().to(dtype, memory_format=torch.preserve_format)
    return state["master"], fresh


def _momentum(param: Tensor, group: Group, states: States) -> tuple[Tensor | None, bool]:
    """Return the momentum, if the group has one, and whether it was made for this step."""
    if group["momentum"] == 0:
        return None, False
    state = states[param]
    fresh = state.get("momentum_buffer") is None
    if fresh:
        like = state.get("master", param)
        state["momentum_buffer"] = torch.zeros_like(like, memory_format=torch.preserve_format, requires_grad=False)
    return state["momentum_buffer"], fresh
