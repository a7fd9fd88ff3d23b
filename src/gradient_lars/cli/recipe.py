"""What decides a training run, and the rules for it; shared by the options, the results file and the run itself."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

SMALL_NETWORK = "small"
MEDIUM = "medium"
VGG = "vgg"
NETWORKS = (SMALL_NETWORK, MEDIUM, VGG)
LINEAR = "linear"
POLYNOMIAL = "polynomial"
COSINE = "cosine"
TVLARS = "tvlars"
SCHEDULES = (LINEAR, POLYNOMIAL, COSINE, TVLARS)
PLAIN = "none"
SHIFT = "shift"
SHIFT_FLIP = "shift-flip"
AUGMENTATIONS = (PLAIN, SHIFT, SHIFT_FLIP)
ALL_LAYERS = "all"
MATRICES = "matrices"
ADAPTED = (ALL_LAYERS, MATRICES)


@dataclass(frozen=True, kw_only=True)
class Training:
    """Choices that all optimizers share, each with what it was before there was a choice.

    Attributes:
        warm_up: share of the steps.
        micro_batch: images that go through the network at once, of all processes together; 0 means the whole batch.
            Batch normalisation sees so many.
        bf16: forward and backward under ``torch.autocast`` in bfloat16; the weights and the step stay float32.
        compiled: forward and backward compiled by ``torch.compile``; the results are those without it, up to rounding.
        adapt: the layers that GradientLARS acts on: `ALL_LAYERS` above the threshold, or of these the `MATRICES`, the
            tensors with two or more dimensions.
        lr_in_momentum: GradientLARS with the learning rate inside the momentum, as in the paper and in Chainer.
        recompute_norm: whether the statistics of batch normalisation are recomputed after training.
    """

    network: str = SMALL_NETWORK
    schedule: str = LINEAR
    warm_up: float = 0.1
    label_smoothing: float = 0.0
    augment: str = PLAIN
    micro_batch: int = 0
    bf16: bool = False
    compiled: bool = False
    adapt: str = ALL_LAYERS
    lr_in_momentum: bool = False
    recompute_norm: bool = True

    def choices(self) -> dict[str, Any]:
        """Return these choices by name, without what a subclass adds."""
        return {field.name: getattr(self, field.name) for field in fields(Training)}

    def broken_rules(self, world_size: int) -> Iterator[tuple[str, str, str]]:
        """Yield name, rule and remedy of each choice that cannot be."""
        known = {"network": NETWORKS, "schedule": SCHEDULES, "augment": AUGMENTATIONS, "adapt": ADAPTED}
        for name, values in known.items():
            if getattr(self, name) not in values:
                yield name, f"one of {', '.join(f'`{value}`' for value in values)}", "give one of these"
        if not 0 <= self.warm_up < 1:
            yield "warm_up", "in [0, 1)", "it is the share of the steps, and 0.1 is usual"
        if not 0 <= self.label_smoothing < 1:
            yield "label_smoothing", "in [0, 1)", "0 means none, and 0.1 is usual"
        least = 2 * world_size
        if self.micro_batch and self.micro_batch < least:
            yield "micro_batch", f"0 or at least {least}", "batch normalisation needs two images in each process"


@dataclass(frozen=True)
class Recipe(Training):
    """Everything that decides one run, apart from the data and the device."""

    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    seed: int
    momentum: float
    weight_decay: float
    threshold: float
    eps: float
