"""Batch normalisation over the batch of all processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class SyncBatchNormCPU(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` on the images of all processes together; what ``nn.SyncBatchNorm`` is on a GPU.

    With the sums over all images of all processes::

        mean = sum x / n,   var = sum x^2 / n - mean^2,   y = (x - mean) / sqrt(var + eps) * weight + bias

    The sums are float64, in which the difference loses nothing that float32 would show. They travel in one collective,
    and so do their gradients.
    """

    def __init__(self, num_features: int, *, process_group: dist.ProcessGroup) -> None:
        super().__init__(num_features)
        self.process_group = process_group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` (N, channels, height, width); N may differ between processes and be 0 in some."""
        if not self.training:
            return super().forward(x)
        wide = x.double()
        own = torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
        counts = own.new_full((1, own.shape[1]), x.numel() / x.shape[1])
        total, total_square, count = _Sum.apply(torch.cat([own, counts]), self.process_group)  # type: ignore[no-untyped-call]
        mean = total / count
        var = total_square / count - mean.square()
        self._follow(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * (var + self.eps).rsqrt().to(x.dtype)
        shift = self.bias - mean.to(x.dtype) * scale
        return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1))

    def _follow(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Move the running statistics towards `mean` and the unbiased `var`, as ``nn.BatchNorm2d`` does."""
        tracked, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        if tracked is None or running_mean is None or running_var is None:
            return
        tracked.add_(1)
        share = 1 / tracked.item() if self.momentum is None else self.momentum
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_(var.to(running_var.dtype), share)


class _Sum(torch.autograd.Function):
    """The sum over the processes. Each of them has the gradient of its own loss, and these are summed as well."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        total = own.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
