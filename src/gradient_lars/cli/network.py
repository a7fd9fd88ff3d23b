"""The network that both optimizers train: three convolutions with batch normalisation."""

from collections import OrderedDict

import torch
from torch import nn

WIDTH = 8
_CHUNK = 1024


def build_network(channels: int, n_classes: int, seed: int) -> nn.Sequential:
    """Return the network with initial weights that depend on `seed` alone; the global generator is left as it was.

    Three 3x3 convolutions (8, 16, 32 channels; strides 1, 2, 2), each with batch normalisation and ReLU, the mean over
    the image, and one linear layer. The weights are channels_last, which takes a third off the time of a step on a CPU.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = channels
        for index, stride in enumerate((1, 2, 2), start=1):
            outputs = WIDTH * 2 ** (index - 1)
            layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers[f"norm{index}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{index}"] = nn.ReLU()
            inputs = outputs
        layers["mean"] = _SpatialMean()
        layers["linear"] = nn.Linear(inputs, n_classes)
    return nn.Sequential(layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class _SpatialMean(nn.Module):
    # A mean has a deterministic backward on CUDA; AdaptiveAvgPool2d has not.
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@torch.no_grad()
def recompute_statistics(network: nn.Module, x: torch.Tensor) -> None:
    """Replace the running statistics of batch normalisation by those of `x` under the present weights.

    A run of 20 steps is too short for a running mean to follow the weights, and a run of 640 is not: recomputed, the
    statistics favour no batch size.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over the chunks
    network.train()
    for chunk in torch.tensor_split(x, -(-len(x) // _CHUNK)):
        network(chunk)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
