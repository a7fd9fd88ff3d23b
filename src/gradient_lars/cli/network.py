"""The networks that all optimizers train: convolutions with batch normalisation."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradient_lars.cli.recipe import MEDIUM, SMALL_NETWORK, VGG

_CHUNK = 1024
# Of each convolution: channels, stride, and whether a 2x2 maximum follows.
_CONVOLUTIONS = {
    SMALL_NETWORK: ((8, 1, False), (16, 2, False), (32, 2, False)),
    MEDIUM: ((16, 2, False), (32, 2, False), (64, 2, False)),
    VGG: tuple((width, 1, second) for width in (64, 128, 256) for second in (False, True)),
}


def build_network(
    channels: int,
    n_classes: int,
    seed: int,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    kind: str = SMALL_NETWORK,
) -> nn.Sequential:
    """Return the network with initial weights that depend on `seed` alone; the global generator is left as it was.

    `SMALL_NETWORK` has three 3x3 convolutions (8, 16, 32 channels; strides 1, 2, 2), each with batch normalisation and
    ReLU, the mean over the image, and one linear layer. `MEDIUM` has the same with 16, 32 and 64 channels, all of
    stride 2: of images of 28x28 pixels it takes half the time and learns more. `VGG` has six, two each with 64, 128 and
    256 channels, and a 2x2 maximum after each two, as in Simonyan and Zisserman, arXiv 1409.1556. `norm` makes a batch
    normalisation of so many channels. The weights are channels_last, which takes a third off the time on a CPU.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inputs = channels
        for index, (outputs, stride, pooled) in enumerate(_CONVOLUTIONS[kind], start=1):
            layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers[f"norm{index}"] = norm(outputs)
            layers[f"relu{index}"] = nn.ReLU()
            if pooled:
                layers[f"pool{index}"] = nn.MaxPool2d(2, ceil_mode=True)
            inputs = outputs
        layers["mean"] = _SpatialMean()
        layers["linear"] = nn.Linear(inputs, n_classes)
    return nn.Sequential(layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class _SpatialMean(nn.Module):
    # A mean has a deterministic backward on CUDA; AdaptiveAvgPool2d has not.
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


@torch.no_grad()
def recompute_statistics(
    network: nn.Module, x: torch.Tensor, part: Callable[[torch.Tensor], torch.Tensor] = lambda chunk: chunk
) -> None:
    """Replace the running statistics of batch normalisation by those of `x` under the present weights.

    A run of 20 steps is too short for a running mean to follow the weights, and a run of 640 is not: recomputed, the
    statistics favour no batch size. Of each chunk of `x` this process takes the rows that `part` returns.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over the chunks
    network.train()
    for chunk in torch.tensor_split(x, -(-len(x) // _CHUNK)):
        network(part(chunk))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
