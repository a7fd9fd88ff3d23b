"""Make ``variants.npz`` from the transcriptions.

Run it in the folder ``tests`` as ``python -m variants.make_goldens``; the tests run it in memory and compare.
"""

import math

import numpy as np

from variants import CHECKPOINTS, LAYERS, STEPS, Golden, save
from variants.momentum import norm
from variants.transcriptions import run

SEED = 20170813


def rates(peak, start=0.2):
    """Return learning rates: from `start` of `peak` upwards over four steps, then a cosine down to a tenth of it."""
    factors = [start + (1 - start) * step / 4 for step in range(4)]
    factors += [0.55 + 0.45 * math.cos(math.pi * step / 15) for step in range(16)]
    return [peak * factor for factor in factors]


# Which layers a rule leaves without ratio, by name and number of dimensions.
RULES = {
    "none": lambda name, ndim: False,
    "fewer than two": lambda name, ndim: ndim < 2,
    "exactly one": lambda name, ndim: ndim == 1,
    "named": lambda name, ndim: "norm" in name or "bias" in name,
}
NAMED = ["norm", "bias"]
# Large enough that every step moves a layer by some per cent, and that the order of ratio, decay and momentum shows.
DECAY = {"momentum": 0.9, "weight_decay": 0.05}
PLAIN = {"momentum": 0.9, "weight_decay": 0.0}
# Learning rates on both sides of 1: a clip or an exclusion divides by them.
LARGE = {"lrs": rates(2.0)}
FROM_ZERO = {"lrs": rates(0.75, start=0.0)}


def case(variant, label, settings, rule="none", *, lrs=None):
    """Return a row of the table."""
    return variant, label, settings, rule, rates(0.5) if lrs is None else lrs


def torch_like(variant, trust, extra=(), rule="none", **more):
    """Return the rows that implementations in the form of ``torch.optim.SGD`` share, with settings of their own."""
    strong = {trust: 0.1, **more}
    return [
        case(variant, "defaults", {**more}, rule),
        case(variant, "decay", {**DECAY, **strong}, rule, **LARGE),
        case(variant, "no-decay", {**PLAIN, **strong}, rule),
        case(variant, "nesterov", {**DECAY, **strong, "nesterov": True}, rule),
        case(variant, "dampening", {**DECAY, **strong, "dampening": 0.3}, rule, **FROM_ZERO),
        case(variant, "eps", {**DECAY, **strong, "eps": 0.25}, rule),
        *[case(variant, label, {**DECAY, **strong, **settings}, rule, lrs=lrs) for label, settings, lrs in extra],
    ]


CASES = [
    case("chainer", "defaults", {}),
    case("chainer", "decay", {"weight_decay": 0.05, "threshold": 0.5, "eps": 0.25}, lrs=rates(0.05)),
    case("chainer", "no-decay", {"momentum": 0.5, "threshold": 0.0}, lrs=rates(0.05, start=0.0)),
    case("paper", "defaults", {}, lrs=rates(2.0)),
    case("paper", "decay", {**DECAY, "eta": 0.1}),
    case("paper", "no-decay", {**PLAIN, "eta": 0.1}, **FROM_ZERO),
    *torch_like("torchlars", "trust_coef"),
    *torch_like(
        "larc",
        "trust_coefficient",
        [
            ("clip-large", {"trust_coefficient": 2.0}, rates(2.0, start=0.75)),
            ("clip-from-zero", {"trust_coefficient": 0.5, "weight_decay": 0.0}, rates(0.75, start=0.0)),
            ("no-clip", {"clip": False}, None),
        ],
    ),
    case("swav", "recipe", {}, lrs=rates(4.8, start=0.0)),
    case("swav", "decay", {**DECAY, "trust_coefficient": 0.1}),
    *torch_like(
        "timm",
        "trust_coeff",
        [
            ("always-adapt", {"always_adapt": True, "weight_decay": 0.0}, None),
            ("clip", {"trust_clip": True, "trust_coeff": 0.5}, None),
            ("clip-large", {"trust_clip": True, "trust_coeff": 2.0}, rates(2.0, start=0.75)),
            ("clip-from-zero", {"trust_clip": True, "trust_coeff": 0.5}, rates(0.75, start=0.0)),
            ("clip-no-decay", {"trust_clip": True, "weight_decay": 0.0}, rates(2.0)),
        ],
    ),
    *torch_like("bolts", "trust_coefficient"),
    *torch_like("solo_learn", "eta", [("clip", {"clip_lars_lr": True, "eta": 0.5}, rates(0.75, start=0.0))]),
    case(
        "solo_learn",
        "excluded",
        {**DECAY, "eta": 0.5, "clip_lars_lr": True, "exclude_bias_n_norm_lars": True},
        "exactly one",
        **LARGE,
    ),
    case("open_lars", "defaults", {}, "fewer than two", **LARGE),
    case("open_lars", "decay", {**DECAY, "trust_coefficient": 0.1}, "fewer than two"),
    case("open_lars", "no-decay", {**PLAIN, "trust_coefficient": 0.1, "eps": 0.25}, "fewer than two", **FROM_ZERO),
    case("open_lars", "no-momentum", {**DECAY, "momentum": 0.0, "trust_coefficient": 0.1}, "fewer than two"),
    case("pytorch_optimizer", "defaults", {}, "fewer than two", **LARGE),
    case("pytorch_optimizer", "decay", {**DECAY, "trust_coefficient": 0.1}, "fewer than two"),
    case("pytorch_optimizer", "no-decay", {**PLAIN, "trust_coefficient": 0.1}, "fewer than two", **FROM_ZERO),
    case("pytorch_optimizer", "nesterov", {**DECAY, "trust_coefficient": 0.1, "nesterov": True}, "fewer than two"),
    case("pytorch_optimizer", "dampening", {**DECAY, "trust_coefficient": 0.1, "dampening": 0.3}, "fewer than two"),
    case("pytorch_optimizer", "maximize", {**DECAY, "trust_coefficient": 0.1, "maximize": True}, "fewer than two"),
    case("optax", "defaults", {}, **LARGE),
    case("optax", "decay", {**DECAY, "trust_coefficient": 0.1}),
    case("optax", "no-decay", {**PLAIN, "trust_coefficient": 0.1, "eps": 0.25}, **FROM_ZERO),
    case("optax", "nesterov", {**DECAY, "trust_coefficient": 0.1, "nesterov": True}),
    case("simclr", "defaults", {}, **LARGE),
    case("simclr", "recipe", {"weight_decay": 1e-6, "exclude_from_weight_decay": NAMED}, "named", **FROM_ZERO),
    case("simclr", "decay", {**DECAY, "eeta": 0.1, "exclude_from_weight_decay": NAMED}, "named"),
    case("simclr", "nesterov", {**DECAY, "eeta": 0.1, "use_nesterov": True}),
    case(
        "simclr",
        "ratio-for-all",
        {**DECAY, "eeta": 0.1, "exclude_from_weight_decay": NAMED, "exclude_from_layer_adaptation": ["nothing"]},
    ),
    case(
        "simclr",
        "popular",
        {**DECAY, "eeta": 0.1, "classic_momentum": False, "exclude_from_weight_decay": NAMED},
        "named",
    ),
    case("simclr", "popular-no-decay", {**PLAIN, "eeta": 0.1, "classic_momentum": False}, **FROM_ZERO),
    case("simclr", "popular-nesterov", {**DECAY, "eeta": 0.1, "classic_momentum": False, "use_nesterov": True}),
    case("byol", "recipe", {"weight_decay": 1.5e-6}, "named", **FROM_ZERO),
    case("byol", "decay", {**DECAY, "eta": 0.1}, "named"),
    case("byol", "no-decay", {**PLAIN, "eta": 0.1, "filtered": False}),
    case("barlow_twins", "recipe", {"weight_decay": 1e-6, "bias_lr_ratio": 0.024}, "exactly one", **FROM_ZERO),
    case("barlow_twins", "decay", {**DECAY, "eta": 0.1}, "exactly one"),
    case("barlow_twins", "unfiltered", {**DECAY, "eta": 0.1, "filtered": False}),
    case("vicreg", "recipe", {"weight_decay": 1e-6}, "exactly one", **FROM_ZERO),
    case("vicreg", "decay", {**DECAY, "eta": 0.1}, "exactly one"),
    case("mlperf_resnet", "defaults", {}, **LARGE),
    case("mlperf_resnet", "recipe", {"weight_decay": 5e-5, "skip_list": NAMED}, "named", **FROM_ZERO),
    case("mlperf_resnet", "decay", {**DECAY, "eeta": 0.1, "epsilon": 1e-7, "skip_list": NAMED}, "named"),
    case("mlperf_resnet", "nesterov", {**DECAY, "eeta": 0.1, "epsilon": 0.25, "use_nesterov": True}),
]


def goldens():
    """Return the run of every row."""
    initial, grads = _inputs()
    made = []
    for variant, label, settings, rule, lrs in CASES:
        trajectory = run(variant, initial, grads, lrs, **settings)
        _check_threshold(settings.get("threshold", 0.01) if variant == "chainer" else 0.0, [initial, *trajectory])
        made.append(
            Golden(
                variant=variant,
                label=label,
                settings=settings,
                lrs=lrs,
                excluded=[name for name, (_, shape, _) in LAYERS.items() if RULES[rule](name, len(shape))],
                initial=initial,
                grads=grads,
                weights={step: trajectory[step - 1] for step in CHECKPOINTS},
            )
        )
    return made


def _inputs():
    rng = np.random.default_rng(SEED)
    initial, grads = {}, [{} for _ in range(STEPS)]
    for name, (value, shape, quiet) in LAYERS.items():
        initial[name] = rng.standard_normal(shape) * 0.5 if value is None else np.full(shape, value)
        drift = rng.standard_normal(shape)
        for step, layers in enumerate(grads):
            layers[name] = np.asarray(0.3 * (drift + rng.standard_normal(shape)) * (step not in quiet))
    return {name: np.asarray(weights) for name, weights in initial.items()}, grads


def _check_threshold(threshold, trajectory):
    """Raise where a norm is so near the threshold that rounding decides whether it is above."""
    for weights in trajectory:
        for name, array in weights.items():
            distance = abs(norm(array) - threshold)
            if 0 < distance < 1e-6:
                raise ValueError(f"the norm of {name} is {distance} from the threshold {threshold}")


if __name__ == "__main__":
    save(goldens())
