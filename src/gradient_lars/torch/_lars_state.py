"""What ``LARS.load_state_dict`` does beyond PyTorch's: float32 state stays so, and SGD's momentum is carried over."""

from typing import Any

import torch

from gradient_lars.torch._lars_bucket import scalar_lr
from gradient_lars.torch._layers import ARRAYS


def load_wide(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Take the float32 state of narrower parameters as it is: PyTorch has rounded it to the parameters' type."""
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for key, param in zip(keys, params, strict=True):
        dtype = ARRAYS.wide_dtype(param.dtype)
        for name in ("master", "momentum_buffer") if dtype != param.dtype else ():
            value = state_dict["state"].get(key, {}).get(name)
            if value is not None:
                optimizer.state[param][name] = value.to(device=param.device, dtype=dtype)


def skipped_in(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> torch.Tensor | None:
    """Return the number of skipped steps that `state_dict` holds, where the parameters are, or None."""
    skipped = state_dict.get("skipped_steps")
    if skipped is None:
        return None
    device = next((param.device for group in optimizer.param_groups for param in group["params"]), None)
    return torch.as_tensor(skipped).to(device=device, dtype=torch.int64, copy=True)


def take_sgd_momentum(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Turn the momentum that SGD holds, which is without the learning rate, into that of `group`."""
    for param in group["params"]:
        state = optimizer.state.get(param, {})
        if state.get("momentum_buffer") is not None:
            # Not in place: what was loaded may be the very tensor that SGD goes on with.
            state["momentum_buffer"] = state["momentum_buffer"] * (scalar_lr(group) if group["lr_in_momentum"] else 1)
