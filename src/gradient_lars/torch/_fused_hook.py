"""The hook's fused path on CUDA and ROCm: one launch for all layers of the same types.

`FusedHook` is made once for the layers of an optimizer. A step then reads addresses and strides of all tensors, in
lists and not layer by layer, sends what has changed and launches the kernel. Layers that the kernel cannot take are
left to the multi-tensor path. What it does not recognise makes it give up before anything is changed, and the hook
makes a new one.
"""

import weakref
from itertools import groupby
from operator import is_
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gradient_lars.torch import _foreach
from gradient_lars.torch._fused_hook_bucket import HookBucket, Member, Row
from gradient_lars.torch._fused_launch import is_capturing
from gradient_lars.torch._fused_tables import ABSENT, is_dense, same_order
from gradient_lars.torch._layers import Layer, LossScale
from gradient_lars.torch.rates import Norms

_ADDRESS: Any = Tensor.data_ptr
_STRIDE: Any = Tensor.stride
_NUMEL: Any = Tensor.numel
_IS_NEGATED: Any = Tensor.is_neg


class FusedHook:
    """The fused rescaling of an optimizer's gradients, for as long as its tensors stay what they are.

    Args:
        layers: the layers of the step to come.
        before: what this one replaces. Layers that have no gradient now are taken over from it, so that gradients may
            come and go without making everything anew.
        kernels: the module `_triton_hook`.
        devices: types of the devices it runs on.
    """

    def __init__(
        self, layers: list[Layer], before: "FusedHook | None", kernels: ModuleType, devices: tuple[str, ...]
    ) -> None:
        self._kernels, self._devices = kernels, devices
        members: list[Member] = [Member(layer.param, layer.grad.dtype) for layer in layers if self._takes(layer)]
        here = {id(layer.param) for layer in layers}
        if before is not None:
            members += [m for m in before.members if id(m.param) not in here and self._takes_weights(m.param)]
        by_key: dict[Any, list[Member]] = {}
        for member in members:
            by_key.setdefault(member.key, []).append(member)
        self._rows = [(layer.weight_decay, layer.sign) for layer in layers]
        self._max_rows = len(set(self._rows))
        self._parts = [(group, HookBucket(group, self._max_rows, kernels)) for group in by_key.values()]
        self.members: list[Member] = [member for group, _ in self._parts for member in group]
        self._numel = {id(member.param): member.param.numel() for member in self.members}
        self._keys = {id(member.param): member.key for member in self.members}
        self._in_graph = self._decay = False
        self._arrange([layer.param for layer in layers])

    def _arrange(self, params: list[Tensor]) -> None:
        """Note which of `params`, those that have gradients, are members, and where; the others go another way."""
        self._params = params
        self._mine = [i for i, param in enumerate(params) if id(param) in self._numel]
        self._others = [i for i, param in enumerate(params) if id(param) not in self._numel]
        mine = self._my_params = [params[i] for i in self._mine]
        self._my_numel = [self._numel[id(param)] for param in mine]
        self._my_keys = [self._keys[id(param)] for param in mine]
        self._my_strides: Any = None
        # Of each launch, for every layer its place among these; none for a layer without gradient.
        place_of = {id(param): i for i, param in enumerate(mine)}
        self._places = [[place_of.get(id(member.param)) for member in group] for group, _ in self._parts]
        self._weights = [[member.param.data_ptr() for member in group] for group, _ in self._parts]
        self._addresses: list[int] = []
        self._entered: tuple[list[Row], float, float] | None = None

    def fits(self, layers: list[Layer]) -> bool:
        """Return whether the kernel can do with `layers` what it was made for; to be asked before each step."""
        params = [layer.param for layer in layers]
        if len(params) != len(self._params) or not all(map(is_, params, self._params)):
            self._arrange(params)
        if not self._as_before([layers[i].grad for i in self._mine]):
            return False
        if any(self._takes(layers[i]) for i in self._others):
            return False
        self._rows = [(layer.weight_decay, layer.sign) for layer in layers]
        return len(set(self._rows)) <= self._max_rows

    def rescale(self, layers: list[Layer], loss_scale: LossScale, *, threshold: float, eps: float) -> list[Norms]:
        """Rescale the gradients of `layers`, which fit, in place; return their norms and rates."""
        settings = (self._rows, threshold, eps)
        if settings != self._entered:
            self._enter(*settings)
            self._entered = settings
        grads = [layers[i].grad for i in self._mine]
        self._find_weights()
        norms = self._launch(list(map(_ADDRESS, grads)), loss_scale, threshold)
        # As PyTorch's own operations in place do. Inference tensors, which have no version, get here in that mode only.
        if not torch.is_inference_mode_enabled():
            increment_version(grads)
        others = [layers[i] for i in self._others]
        if others:
            for part in _foreach.rescale(others, loss_scale, None, threshold=threshold, eps=eps):
                norms.append(part._replace(places=[self._others[i] for i in part.places]))
        return norms

    def _as_before(self, grads: list[Tensor]) -> bool:
        """Return whether gradients and weights have device, types, sizes and order of memory as the kernel was told."""
        params = self._my_params
        try:
            strides = list(map(_STRIDE, params)), list(map(_STRIDE, grads))
        except RuntimeError:  # a sparse gradient has none
            return False
        if strides != self._my_strides:
            if not all(map(is_dense, params)) or not all(map(same_order, grads, params)):
                return False
            self._my_strides = strides
        keys = [(param.device, param.dtype, grad.dtype) for param, grad in zip(params, grads, strict=True)]
        if keys != self._my_keys or list(map(_NUMEL, params)) != self._my_numel:
            return False
        return set(map(type, grads)) <= {Tensor} and not any(map(_IS_NEGATED, grads))

    def _enter(self, of_layers: list[Row], threshold: float, eps: float) -> None:
        """Enter the settings of the hook and of its groups."""
        rows = list(dict.fromkeys(of_layers))
        index = {row: i for i, row in enumerate(rows)}
        mine = [index[of_layers[i]] for i in self._mine]
        for (_, bucket), places in zip(self._parts, self._places, strict=True):
            bucket.set_rows(rows, [0 if i is None else mine[i] for i in places], threshold=threshold, eps=eps)
        self._decay = any(decay for decay, _ in rows)

    def _find_weights(self) -> None:
        addresses = list(map(_ADDRESS, self._my_params))
        if addresses != self._addresses:
            self._addresses = addresses
            for weights, places in zip(self._weights, self._places, strict=True):
                weights[:] = [w if i is None else addresses[i] for w, i in zip(weights, places, strict=True)]

    def _takes(self, layer: Layer) -> bool:
        """Return whether the kernel can take `layer`: both tensors dense, in one order of memory, of known types."""
        grad = layer.grad
        return (
            type(grad) is Tensor
            and grad.layout is torch.strided
            and grad.dtype in self._kernels.TYPES
            and not grad.is_neg()
            and self._takes_weights(layer.param)
            and same_order(grad, layer.param)
        )

    def _takes_weights(self, param: Tensor) -> bool:
        known = param.device.type in self._devices and param.dtype in self._kernels.TYPES
        return known and not param.is_neg() and is_dense(param)

    def _launch(self, addresses: list[int], loss_scale: LossScale, threshold: float) -> list[Norms]:
        found = []
        for (group, bucket), places, weights in zip(self._parts, self._places, self._weights, strict=True):
            grads = [ABSENT if i is None else addresses[i] for i in places]
            figures = bucket.launch(weights, grads, loss_scale, decay=self._decay)
            for start, stop, here in _runs(places):
                p_norm, g_norm, rate = figures[:, start:stop].unbind()
                found.append(Norms([self._mine[i] for i in here], p_norm, g_norm, rate, threshold))
            if not self._in_graph and is_capturing(bucket.device):
                # The graph reads and writes what the bucket holds, whatever becomes of the hook.
                weakref.finalize(group[0].param, _let_go, bucket).atexit = False
        self._in_graph |= any(is_capturing(bucket.device) for _, bucket in self._parts)
        return found


def _runs(places: list[int | None]) -> list[tuple[int, int, list[int]]]:
    """Return where stretches of layers that have a gradient start and stop, and the places of these layers."""
    runs = []
    for absent, run in groupby(enumerate(places), key=lambda item: item[1] is None):
        if not absent:
            rows = list(run)
            runs.append((rows[0][0], rows[-1][0] + 1, [i for _, i in rows if i is not None]))
    return runs


def _let_go(bucket: HookBucket) -> None:
    """Do nothing: the finalizer that calls this holds the bucket until then."""
