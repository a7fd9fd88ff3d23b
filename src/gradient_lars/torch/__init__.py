"""LARS on PyTorch: Chainer's ``add_hook`` for any ``torch.optim`` optimizer, and an optimizer of its own."""

from gradient_lars.torch._dispatch import hook_path
from gradient_lars.torch._group_table import ParamGroups
from gradient_lars.torch.hooks import HookHandle, add_hook, remove_hook
from gradient_lars.torch.optimizer import LARS
from gradient_lars.torch.param_groups import EXEMPT, param_groups
from gradient_lars.torch.rates import LayerRate, LayerRates
from gradient_lars.torch.schedules import scaled_lr, tvlars, warmup_polynomial

__all__ = [
    "EXEMPT",
    "LARS",
    "HookHandle",
    "LayerRate",
    "LayerRates",
    "ParamGroups",
    "add_hook",
    "hook_path",
    "param_groups",
    "remove_hook",
    "scaled_lr",
    "tvlars",
    "warmup_polynomial",
]
