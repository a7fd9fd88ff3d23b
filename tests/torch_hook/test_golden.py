"""The trajectories of the real Chainer, replayed in PyTorch with the hook, on every path."""

import pytest
import torch

from golden import load
from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close
from torch_cases import PATHS


class ChainerNesterovAG(torch.optim.Optimizer):
    """Chainer's rule, which is not PyTorch's: it looks ahead with the new velocity, and so once more."""

    def __init__(self, params, lr, momentum):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for param in group["params"]:
                velocity = self.state[param].setdefault("velocity", torch.zeros_like(param))
                velocity.mul_(momentum).sub_(lr * param.grad)
                param.add_(momentum * momentum * velocity - (1 + momentum) * lr * param.grad)


def _optimizer(golden, params):
    if golden.optimizer == "NesterovAG":
        return ChainerNesterovAG(params, golden.lr, golden.momentum)
    # At a constant learning rate PyTorch's SGD takes the steps of Chainer's SGD and of both its momentum optimizers.
    return torch.optim.SGD(params, lr=golden.lr, momentum=golden.momentum)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("golden", load(), ids=str)
def test_trajectory(golden, path):
    params = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in golden.initial]
    optimizer = _optimizer(golden, params)
    add_hook(optimizer, GradientLARS(**golden.hook), path=path)
    for grads, expected in zip(golden.grads, golden.params, strict=True):
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        for param, values in zip(params, expected, strict=True):
            assert_close(param.detach().numpy(), values, golden.dtype)
