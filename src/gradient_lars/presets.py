r"""The published LARS variants, as settings of `gradient_lars.torch.LARS` and of `gradient_lars.optax.lars`.

A preset is a frozen mapping: it unpacks into keyword arguments. What it does not hold, above all the learning rate, is
yours to give; `Preset.lr` says what the source uses. `Preset.replace` changes a setting: one that is given
beside the preset too is an error of Python. Each is tested against the package itself where that can be
installed, and else against an independent float64 transcription of its source.

Example:
    >>> import torch
    >>> from gradient_lars import presets
    >>> from gradient_lars.torch import LARS
    >>> model = torch.nn.Linear(4, 2)
    >>> optimizer = LARS(model.named_parameters(), lr=0.2 * 4096 / 256, **presets.vicreg)
    >>> optimizer.param_groups[0]["norm_of"]
    'decayed'
    >>> presets.timm.replace(weight_decay=1e-4)["weight_decay"]
    0.0001
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gradient_lars._variants import SETTINGS

__all__ = ["Preset", "named", "names", *SETTINGS]


@dataclass(frozen=True, eq=False)
class Preset(Mapping[str, Any]):
    """The settings of one published variant.

    Attributes:
        name: as in this module.
        settings: of `gradient_lars.torch.LARS`, without the learning rate.
        about: what it is and in what it is peculiar.
        lr: the learning rate that its source uses, in words. B is the batch size of all devices together.
        source: where it was read.
    """

    name: str
    settings: Mapping[str, Any]
    about: str
    lr: str
    source: str
    _changed: frozenset[str] = field(default=frozenset(), repr=False)

    def __getitem__(self, setting: str) -> Any:
        return self.settings[setting]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)

    def __reduce__(self) -> Any:
        # A read-only view can be neither pickled nor copied deeply.
        return _restored, (self.name, dict(self.settings), self.about, self.lr, self.source, self._changed)

    def replace(self, **settings: Any) -> "Preset":
        """Return the preset with some settings of your own.

        Raises:
            ValueError: a name is not one of its settings.
        """
        for name in settings:
            if name not in self.settings:
                known = ", ".join(self.settings)
                raise ValueError(f"`{name}` is no setting of a preset. Known are {known}; give `lr` to the optimizer.")
        changed = MappingProxyType({**self.settings, **settings})
        return Preset(self.name, changed, self.about, self.lr, self.source, self._changed | set(settings))

    def optax(self) -> dict[str, Any]:
        """Return the same settings for `gradient_lars.optax.lars`; biases and the like are excluded by its masks.

        Raises:
            ValueError: the variant needs what the optax form does not have: LARC's clipping, or dampening.
        """
        missing = [name for name in ("trust_clip", "dampening") if self.settings[name]]
        if missing:
            raise ValueError(
                f"`{missing[0]}` of the preset {self.name!r} has no optax form. Use gradient_lars.torch.LARS, or do "
                f"without: presets.{self.name}.replace({missing[0]}={type(self.settings[missing[0]])()})."
            )
        found = {name: self.settings[name] for name in self.settings if name not in _TORCH_ONLY}
        if self.settings["adapt"] is not True:
            chosen = _of_two_dimensions if self.settings["adapt"] is None else False
            found["trust_ratio_mask"] = chosen
            if not self.settings["decay_excluded"]:
                found["weight_decay_mask"] = chosen
        return found


_TORCH_ONLY = ("dampening", "adapt", "trust_clip", "decay_excluded", "dampen_first_step")


def _of_two_dimensions(params: Any) -> Any:
    """Return, for a tree of parameters, which have two dimensions or more."""
    import jax

    return jax.tree.map(lambda leaf: getattr(leaf, "ndim", 0) >= 2, params)


def names() -> list[str]:
    """Return the names of all presets."""
    return list(SETTINGS)


def named(name: str) -> Preset:
    """Return the preset of this name.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(name, str) or name not in SETTINGS:
        raise ValueError(f"`name` must be a preset, got {name!r}. Known are {', '.join(SETTINGS)}.")
    found: Preset = globals()[name]
    return found


def _restored(name: str, settings: dict[str, Any], *others: Any) -> Preset:
    return Preset(name, MappingProxyType(settings), *others)


def _preset(name: str, about: str, *, lr: str, source: str) -> Preset:
    return Preset(name, MappingProxyType(dict(SETTINGS[name])), about, lr, source)


chainer = _preset(
    "chainer",
    "Chainer's GradientLARS on MomentumSGD. There is no trust coefficient: the learning rate holds it. Layers at or "
    "below the threshold keep their gradient, decay included.",
    lr="gamma * eta of the paper; MomentumSGD's default is 0.01",
    source="Chainer 7.8.1, chainer/optimizer_hooks/gradient_lars.py and optimizers/momentum_sgd.py",
)
paper = _preset(
    "paper",
    "The paper's algorithm 1. It names no excluded layers and no eps.",
    lr="a warm-up, then polynomial decay of power 2",
    source="You, Gitman, Ginsburg, arXiv 1708.03888",
)
torchlars = _preset(
    "torchlars",
    "torchlars around torch.optim.SGD. Momentum and decay are those of the SGD inside, whose defaults are 0. A layer "
    "without gradient has rate 1: it decays by lr * weight_decay.",
    lr="that of the SGD inside",
    source="kakaobrain/torchlars 0.1.2, torchlars/lars.py and adaptive_lr_cuda.cu",
)
larc = _preset(
    "larc",
    "Apex's LARC around torch.optim.SGD, with its clipping: lr * rate is at most lr. Momentum and decay are those of "
    "the SGD inside. A layer without gradient has no decay either.",
    lr="that of the SGD inside, an upper bound of a layer's own",
    source="NVIDIA/apex, apex/parallel/LARC.py",
)
timm = _preset(
    "timm",
    "timm's Lars. Without weight decay it is plain SGD; its always_adapt is `adapt_without_decay`. Its trust_clip also "
    "clips layers whose weights or gradient are zero, at learning rates above 1; `trust_clip` here does not.",
    lr="1.0 by default",
    source="huggingface/pytorch-image-models 1.0.31, timm/optim/lars.py",
)
bolts = _preset(
    "bolts",
    "Lightning Bolts' and lightly's LARS. Without weight decay it is plain SGD, and a layer without gradient has no "
    "decay.",
    lr="none by default",
    source="lightning-bolts 0.7.0, pl_bolts/optimizers/lars.py; lightly 1.6.0, lightly/utils/lars.py",
)
solo_learn = _preset(
    "solo_learn",
    "solo-learn's LARS. Its exclude_bias_n_norm is `adapt=None` (vectors; this leaves out numbers too), its "
    "clip_lars_lr `trust_clip`.",
    lr="none by default",
    source="vturrisi/solo-learn, solo/utils/lars.py",
)
open_lars = _preset(
    "open_lars",
    "open-lars. Vectors and numbers are not adapted and keep their decay.",
    lr="none by default",
    source="open-lars 0.1.1, open_lars/lars.py",
)
pytorch_optimizer = _preset(
    "pytorch_optimizer",
    "pytorch_optimizer's LARS. Vectors and numbers are neither adapted nor decayed.",
    lr="1e-3 by default",
    source="pytorch-optimizer 4.1.0, pytorch_optimizer/optimizer/lars.py",
)
optax = _preset(
    "optax",
    "optax.lars: the ratio divides by the norm of gradient and decay together. Its masks are the user's.",
    lr="none by default",
    source="optax 0.2.8, optax/_src/alias.py and transform.py",
)
simclr = _preset(
    "simclr",
    "SimCLR's LARSOptimizer and recipe. It leaves out batch normalisation and biases, by their names, and the head for "
    "supervised training; its classic_momentum=False is `norm_of='update'` with `lr_in_momentum=False`.",
    lr="0.3 * B / 256 (B 512 by default, 4,096 in the paper); 10 epochs of warm-up, then a cosine",
    source="google-research/simclr, lars_optimizer.py, model_util.py and run.py; arXiv 2002.05709",
)
byol = _preset(
    "byol",
    "BYOL's lars and recipe for 1,000 epochs (1e-6 for fewer). It leaves out normalisation layers and biases, by name.",
    lr="0.2 * B / 256 for 1,000 epochs, 0.3 for 300, 0.45 for 100, at B = 4,096; 10 epochs of warm-up, then a cosine",
    source="google-deepmind/deepmind-research, byol/utils/optimizers.py and byol/configs/byol.py; arXiv 2006.07733",
)
barlow_twins = _preset(
    "barlow_twins",
    "Barlow Twins' LARS and recipe. Vectors are neither adapted nor decayed (numbers, in the source, are both), and "
    "have a learning rate of their own: two groups.",
    lr="0.2 * B / 256 for weights, 0.0048 * B / 256 for vectors, at B = 2,048; 10 epochs of warm-up, a cosine to 0.001",
    source="facebookresearch/barlowtwins, main.py; arXiv 2103.03230",
)
vicreg = _preset(
    "vicreg",
    "VICReg's LARS and recipe. Vectors are neither adapted nor decayed (numbers, in the source, are both), and have "
    "the full learning rate.",
    lr="0.2 * B / 256, at B = 2,048; 10 epochs of warm-up, then a cosine to 0.001",
    source="facebookresearch/vicreg, main_vicreg.py; arXiv 2105.04906",
)
swav = _preset(
    "swav",
    "SwAV's recipe: apex's LARC without its clipping around SGD, biases and normalisation layers adapted too.",
    lr="0.3 * B / 256, that is 4.8 at B = 4,096; 10 epochs of warm-up, then a cosine",
    source="facebookresearch/swav, main_swav.py and scripts/swav_800ep_pretrain.sh; arXiv 2006.09882",
)
mlperf_resnet = _preset(
    "mlperf_resnet",
    "MLPerf's reference for ResNet-50 at B = 3,264. It leaves out batch normalisation and biases, by their names. In "
    "its TensorFlow 2 version the eps of 0 becomes Keras's 1e-7.",
    lr="10.5 at B = 3,264: 2 epochs of warm-up, polynomial decay of power 2, 37 epochs",
    source="mlcommons/training, image_classification/tensorflow2; mlcommons/logging, rcps_resnet.json (2.0.0)",
)
