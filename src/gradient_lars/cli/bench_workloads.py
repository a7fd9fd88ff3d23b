"""The parameter lists that ``gradient-lars bench`` steps: shapes of well-known networks, computed without them.

Shapes and their order are those of torchvision's and Hugging Face's models, so that a list is the one an optimizer is
given in training. Nothing here needs a framework.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Shape = tuple[int, ...]
Shapes = list[Shape]


@dataclass(frozen=True)
class Workload:
    """A list of parameter tensors; `title` is what a table calls it."""

    name: str
    title: str
    make: Callable[[], Shapes]

    @property
    def shapes(self) -> Shapes:
        """Shapes of the tensors in the network's own order."""
        return self.make()


def n_parameters(shapes: Shapes) -> int:
    """Return how many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes)


def resnet(blocks: Shape, *, bottleneck: bool) -> Shapes:
    """Return the shapes of a ResNet for ImageNet (He et al. 2015) with so many blocks in its four stages."""
    shapes = _convolution_and_norm(3, 64, 7)
    entering = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        leaving = 4 * width if bottleneck else width
        for block in range(count):
            if bottleneck:
                shapes += _convolution_and_norm(entering, width, 1)
                shapes += _convolution_and_norm(width, width, 3)
                shapes += _convolution_and_norm(width, leaving, 1)
            else:
                shapes += _convolution_and_norm(entering, width, 3)
                shapes += _convolution_and_norm(width, leaving, 3)
            if block == 0 and entering != leaving:
                shapes += _convolution_and_norm(entering, leaving, 1)
            entering = leaving
    return [*shapes, *_linear(entering, 1000)]


# Of each stage of EfficientNet-B0: expansion, kernel, output channels, blocks (Tan, Le 2019, table 1).
_STAGES = ((1, 3, 16, 1), (6, 3, 24, 2), (6, 5, 40, 2), (6, 3, 80, 3), (6, 5, 112, 3), (6, 5, 192, 4), (6, 3, 320, 1))


def efficientnet_b0() -> Shapes:
    """Return the shapes of EfficientNet-B0 for ImageNet."""
    shapes = _convolution_and_norm(3, 32, 3)
    entering = 32
    for expansion, kernel, leaving, count in _STAGES:
        for _ in range(count):
            inner, squeezed = expansion * entering, entering // 4
            if expansion > 1:
                shapes += _convolution_and_norm(entering, inner, 1)
            shapes += _convolution_and_norm(1, inner, kernel)  # depth-wise
            shapes += [(squeezed, inner, 1, 1), (squeezed,), (inner, squeezed, 1, 1), (inner,)]
            shapes += _convolution_and_norm(inner, leaving, 1)
            entering = leaving
    return [*shapes, *_convolution_and_norm(entering, 1280, 1), *_linear(1280, 1000)]


def vit(layers: int, width: int, patch: int) -> Shapes:
    """Return the shapes of a Vision Transformer for images of 224 pixels, 1,000 classes (Dosovitskiy et al. 2020)."""
    positions = (224 // patch) ** 2 + 1
    shapes: Shapes = [(1, 1, width), (width, 3, patch, patch), (width,), (1, positions, width)]
    for _ in range(layers):
        shapes += _norm(width)
        shapes += _linear(width, 3 * width) + _linear(width, width)
        shapes += _norm(width)
        shapes += _linear(width, 4 * width) + _linear(4 * width, width)
    return [*shapes, *_norm(width), *_linear(width, 1000)]


def gpt(layers: int, width: int, *, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """Return the shapes of a GPT-2 (Radford et al. 2019), whose output layer is the embedding once more."""
    shapes: Shapes = [(vocabulary, width), (context, width)]
    for _ in range(layers):
        shapes += _norm(width)
        # Hugging Face's GPT-2 keeps its matrices transposed: (in, out).
        shapes += [(width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += _norm(width)
        shapes += [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [*shapes, *_norm(width)]


def _convolution_and_norm(entering: int, leaving: int, kernel: int) -> Shapes:
    return [(leaving, entering, kernel, kernel), *_norm(leaving)]


def _norm(width: int) -> Shapes:
    return [(width,), (width,)]


def _linear(entering: int, leaving: int) -> Shapes:
    return [(leaving, entering), (leaving,)]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("resnet18", "ResNet-18", lambda: resnet((2, 2, 2, 2), bottleneck=False)),
        Workload("resnet50", "ResNet-50", lambda: resnet((3, 4, 6, 3), bottleneck=True)),
        Workload("efficientnet-b0", "EfficientNet-B0", efficientnet_b0),
        Workload("vit-l-16", "ViT-L/16", lambda: vit(24, 1024, 16)),
        Workload("gpt2", "GPT-2 (124 M)", lambda: gpt(12, 768)),
        Workload("gpt-1b", "GPT-like (1.0 B)", lambda: gpt(18, 2048)),
    )
}
