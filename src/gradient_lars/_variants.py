"""The settings of the published LARS variants: what `presets` shows, and from what `LARS.from_peer` starts.

This module imports nothing. A variant's settings are those of `gradient_lars.torch.LARS` under its names, all that the
variants differ in. Each was read in the source named in `gradient_lars.presets`, and is tested against it.
"""

from typing import Any

# The paper's form, of which each variant says where it departs from it.
_PAPER: dict[str, Any] = {
    "momentum": 0.9,
    "dampening": 0.0,
    "weight_decay": 0.0,
    "nesterov": False,
    "trust_coefficient": 1e-3,
    "threshold": 0.0,
    "eps": 0.0,
    "adapt": True,
    "lr_in_momentum": True,
    "trust_clip": False,
    "norm_of": "gradient",
    "zero_gradient_rate": None,
    "adapt_without_decay": True,
    "decay_excluded": True,
    "dampen_first_step": False,
}

# A wrapper around torch.optim.SGD, or an optimizer in its form.
_LIKE_SGD = {**_PAPER, "momentum": 0.0, "eps": 1e-8, "lr_in_momentum": False}
# Self-supervised learning: the norm of gradient and decay together; biases and normalisation layers left out of both.
_SELF_SUPERVISED = {
    **_PAPER,
    "weight_decay": 1e-6,
    "adapt": None,
    "lr_in_momentum": False,
    "norm_of": "decayed",
    "decay_excluded": False,
}

SETTINGS: dict[str, dict[str, Any]] = {
    "chainer": {**_PAPER, "trust_coefficient": 1.0, "threshold": 0.01, "eps": 1e-9},
    "paper": {**_PAPER, "weight_decay": 5e-4},
    "torchlars": {**_LIKE_SGD, "zero_gradient_rate": 1.0},
    "larc": {**_LIKE_SGD, "trust_coefficient": 0.02, "trust_clip": True, "zero_gradient_rate": 0.0},
    "timm": {**_LIKE_SGD, "zero_gradient_rate": 1.0, "adapt_without_decay": False},
    "bolts": {**_LIKE_SGD, "zero_gradient_rate": 0.0, "adapt_without_decay": False},
    "solo_learn": {**_LIKE_SGD, "zero_gradient_rate": 0.0, "decay_excluded": False},
    "open_lars": {**_PAPER, "eps": 1e-8, "adapt": None, "zero_gradient_rate": 1.0},
    "pytorch_optimizer": {
        **_PAPER,
        "adapt": None,
        "lr_in_momentum": False,
        "decay_excluded": False,
        "dampen_first_step": True,
    },
    "optax": {**_PAPER, "norm_of": "decayed"},
    "simclr": {**_SELF_SUPERVISED, "lr_in_momentum": True},
    "byol": {**_SELF_SUPERVISED, "weight_decay": 1.5e-6},
    "barlow_twins": dict(_SELF_SUPERVISED),
    "vicreg": dict(_SELF_SUPERVISED),
    "swav": {**_LIKE_SGD, "momentum": 0.9, "weight_decay": 1e-6, "zero_gradient_rate": 0.0},
    "mlperf_resnet": {
        **_PAPER,
        "weight_decay": 5e-5,
        "adapt": None,
        "zero_gradient_rate": 1.0,
        "decay_excluded": False,
    },
}
