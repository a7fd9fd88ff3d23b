"""Which path computes a step, of the hook and of `LARS`."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from gradient_lars.torch import _foreach, _fused_hook, _lars, _lars_cpu, _lars_cpu_plan, _loop
from gradient_lars.torch._lars_bucket import LarsLayer
from gradient_lars.torch._layers import Layer, LossScale, named_parameters
from gradient_lars.torch._sharding import Sharding
from gradient_lars.torch.rates import LayerRates, Norms

Rescale = Callable[..., list[Norms]]
LarsStep = Callable[..., tuple[list[Norms], Tensor | None]]

_HOOK_PATHS: dict[str, Rescale] = {"loop": _loop.rescale, "foreach": _foreach.rescale}

_TRITON_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

_LOOP: LarsStep = partial(_lars.lars, update=_lars.single_tensor_update, together=False)
_FOREACH: LarsStep = partial(_lars.lars, update=_lars.multi_tensor_update, together=True)
_FUSED_CPU: LarsStep = _lars_cpu.lars


def hook_path(device: torch.device) -> str:
    """Return the path that `add_hook` chooses for parameters on `device` when it is not told."""
    return "fused" if device.type == "cuda" and _why_no_kernels({"cuda"}) is None else "foreach"


def check_path(path: str | None) -> None:
    """Raise ValueError if `path` names no path of the hook."""
    known_paths = (*_HOOK_PATHS, "fused")
    if path is not None and path not in known_paths:
        known = ", ".join(map(repr, known_paths))
        raise ValueError(f"`path` must be None or one of {known}, got {path!r}. None chooses.")


class HookPath:
    """The path of one hook on one optimizer, and what the fused one keeps from step to step.

    Args:
        path: as `add_hook` takes it.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fused: _fused_hook.FusedHook | None = None

    def forget(self) -> None:
        """Let go of all parameters: the optimizer has others."""
        self._fused = None

    def rescale(
        self, layers: list[Layer], loss_scale: LossScale, sharding: Sharding | None, *, threshold: float, eps: float
    ) -> list[Norms]:
        """Rescale the gradients of `layers` in place; return their norms and rates. `sharding` is the optimizer's.

        Raises:
            RuntimeError: the fused path was asked for and cannot run.
        """
        devices = {layer.param.device for layer in layers}
        path = self._path or ("fused" if "fused" in map(hook_path, devices) else "foreach")
        if path == "fused":
            types = {device.type for device in devices}
            refusal = "some parameters are sharded" if sharding else self._prepare(layers, types)
            if refusal is None and self._fused is not None:
                return self._fused.rescale(layers, loss_scale, threshold=threshold, eps=eps)
            if self._path:
                raise RuntimeError(f"`path` 'fused' cannot run here: {refusal}. Use path=None, which chooses.")
            path = "foreach"
        return _HOOK_PATHS[path](layers, loss_scale, sharding, threshold=threshold, eps=eps)

    def _prepare(self, layers: list[Layer], devices: set[str]) -> str | None:
        """Have the kernel's tables made if there are none for `layers`; return why that cannot be, or None."""
        # Unasked it serves those that are on its devices: the others go another way in the same step.
        refusal = _why_no_kernels(devices if self._path else {"cuda"})
        if refusal or (self._fused is not None and self._fused.fits(layers)):
            return refusal
        if "cuda" in devices and torch.cuda.is_current_stream_capturing():
            return "it has not seen these tensors before a CUDA graph is captured, take a step outside the graph first"
        from gradient_lars.torch import _triton_hook

        served = ("cuda", "cpu") if self._path and _interpreting() else ("cuda",)
        self._fused = _fused_hook.FusedHook(layers, self._fused, _triton_hook, served)
        return None


def check_lars_path(*, foreach: bool | None, fused: bool | None, differentiable: bool) -> None:
    """Raise RuntimeError if the paths asked of `LARS` exclude each other."""
    if foreach and fused:
        raise RuntimeError("`foreach` and `fused` cannot both be True. Leave one out; None chooses.")
    if differentiable and (foreach or fused):
        name = "foreach" if foreach else "fused"
        raise RuntimeError(f"`{name}` does not support `differentiable`. Leave it out: the loop path is taken.")


def lars_path(layers: list[LarsLayer]) -> LarsStep:
    """Return the function that takes a step of `layers`, as their groups ask or as suits them best.

    Raises:
        RuntimeError: the fused path was asked for and cannot run.
    """
    groups = {id(layer.group): layer.group for layer in layers}.values()
    if any(group["differentiable"] for group in groups):
        return _LOOP
    asked = any(group["fused"] for group in groups)
    refusal = _why_not_fused(layers)
    if asked and refusal:
        raise RuntimeError(f"`fused` cannot run here: {refusal}. Use fused=None, which chooses.")
    if any(group["fused"] is False and group["foreach"] is False for group in groups):
        return _LOOP
    if any(group["foreach"] for group in groups) or any(group["fused"] is False for group in groups):
        return _FOREACH
    return _FOREACH if refusal else _FUSED_CPU


class FusedStep(Protocol):
    """The fused path's step of one optimizer, as long as its tensors stay what they are."""

    def step(self, optimizer: Any, loss_scale: LossScale, count: Any) -> LayerRates | None:
        """Take a step; return its rates, or None if the tensors are others and nothing was done."""

    def forget_unstarted(self, optimizer: Any) -> None:
        """Drop momenta in which there is no step yet, all having been skipped: the next one is then the first."""


def fused_step(layers: list[LarsLayer], optimizer: torch.optim.Optimizer, sharding: Sharding) -> FusedStep | None:
    """Return the step by Triton's kernels or the plan of one on the CPU, or None where another path is to be taken.

    Raises:
        RuntimeError: a CUDA graph is being captured: what the kernels read must be made before.
    """
    groups = optimizer.param_groups
    declined = any(group["differentiable"] or group["foreach"] or group["fused"] is False for group in groups)
    # Triton's interpreter proves the kernels, and is slow: on the CPU only who asks gets it.
    unasked = not any(group["fused"] for group in groups) and any(layer.param.device.type == "cpu" for layer in layers)
    if not layers or declined or torch.compiler.is_compiling():
        return None
    params = [param for *_, param in named_parameters(optimizer) if param.grad is not None]
    if unasked or _why_not_triton(layers):
        return _lars_cpu_plan.plan(layers, params, optimizer)
    if layers[0].param.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "LARS is stepped inside a CUDA graph capture with tensors it has not seen before. Take a step outside the "
            "graph first, with the same parameters, as PyTorch's notes on CUDA graphs advise."
        )
    from gradient_lars.torch import _fused, _triton

    return _fused.Fused(layers, params, optimizer, sharding, _triton)


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _why_no_kernels(devices: set[str]) -> str | None:
    """Return why Triton's kernels cannot run on `devices`, types of them, or None."""
    for device in devices:
        if device != "cuda" and not (device == "cpu" and _interpreting()):
            return f"it has no kernels for {device!r}"
    if torch.compiler.is_compiling():
        return "not under torch.compile, which makes its own kernels"
    return "Triton is not installed" if importlib.util.find_spec("triton") is None else None


def _why_not_triton(layers: list[LarsLayer]) -> str | None:
    """Return why Triton's kernels cannot take `layers`, or None."""
    refusal = _why_no_kernels({layer.param.device.type for layer in layers})
    if refusal:
        return refusal
    for layer in layers:
        if layer.group["norm_of"] == "update":
            return "`norm_of` is 'update', which no kernel has"
        for tensor in (layer.param, layer.grad, layer.momentum, layer.master):
            if tensor is not None and tensor.dtype not in _TRITON_TYPES:
                return f"{layer.name!r} has a tensor of {tensor.dtype}"
    return None


def _why_not_fused(layers: list[LarsLayer]) -> str | None:
    """Return why the fused path cannot take `layers`, or None."""
    if any(layer.param.device.type == "cuda" for layer in layers):
        return _why_not_triton(layers)
    for layer in layers:
        if layer.param.device.type != "cpu":
            return f"it has no kernels for {layer.param.device.type!r}"
        if not _lars_cpu.supported(layer):
            return (
                "on the CPU it takes float32 or float64 throughout, without `nesterov`, `master_weights` and "
                f"`norm_of='update'`, and {layer.name!r} is otherwise"
            )
    return None
