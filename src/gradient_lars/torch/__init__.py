"""GradientLARS on PyTorch: Chainer's ``add_hook`` for any ``torch.optim`` optimizer."""

from gradient_lars.torch._dispatch import hook_path
from gradient_lars.torch.hooks import HookHandle, add_hook, remove_hook
from gradient_lars.torch.rates import LayerRates

__all__ = ["HookHandle", "LayerRates", "add_hook", "hook_path", "remove_hook"]
