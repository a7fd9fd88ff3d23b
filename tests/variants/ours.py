"""The goldens' settings, which are the peers' own, as presets of ours and groups of parameters."""

import inspect

import numpy as np
import torch

from gradient_lars import presets
from gradient_lars.torch import LARS
from variants import LAYERS
from variants.transcriptions import VARIANTS

# A peer's name for a setting, and ours.
NAMES = {
    **dict.fromkeys(("trust_coef", "trust_coeff", "eta", "eeta"), "trust_coefficient"),
    **dict.fromkeys(("clip", "clip_lars_lr"), "trust_clip"),
    "use_nesterov": "nesterov",
    "always_adapt": "adapt_without_decay",
    "epsilon": "eps",
}
# What a peer says by which layers it has in a group, or by a group's learning rate: `Golden.excluded` has the layers.
BY_GROUPS = ("exclude_bias_n_norm_lars", "exclude_from_weight_decay", "exclude_from_layer_adaptation", "filtered")
BY_GROUPS += ("skip_list", "bias_lr_ratio")
# Layers that timm's clip takes at a learning rate above 1 and ours does not: their weights or gradients are zero.
NOT_CLIPPED = {"timm-clip-large": ("zero.kernel", "zero.bias", "quiet.kernel", "dense.bias")}


def preset_of(golden):
    """Return the preset with the golden's settings, and settings of `LARS` that are in no preset."""
    defaults = inspect.signature(VARIANTS[golden.variant]).parameters.values()
    peers = {p.name: p.default for p in defaults if p.kind is p.KEYWORD_ONLY} | golden.settings
    ours = {NAMES.get(name, name): value for name, value in peers.items() if name not in BY_GROUPS}
    others = {"maximize": ours.pop("maximize")} if "maximize" in ours else {}
    if not ours.pop("classic_momentum", True):
        ours |= {"norm_of": "update", "lr_in_momentum": False}
    return presets.named(golden.variant).replace(**ours), others


def groups_of(golden, params):
    """Return the groups, where the preset's own rule is not the golden's."""
    by_rule = [name for name, (_, shape, _) in LAYERS.items() if len(shape) < 2]
    if presets.named(golden.variant)["adapt"] is None and golden.excluded == by_rule:
        return [{"params": list(params.items())}]
    undecayed = golden.settings.get("exclude_from_weight_decay", ())
    groups = []
    for name, param in params.items():
        group = {"params": [(name, param)], "adapt": name not in golden.excluded}
        if any(part in name for part in undecayed):
            group["weight_decay"] = 0.0
        groups.append(group)
    return groups


def factor_of(golden, group):
    """Return what a group's learning rate is times the others'."""
    return golden.settings.get("bias_lr_ratio", 1.0) if group["params"][0].dim() == 1 else 1.0


def start(golden, dtype=torch.float64):
    """Return the parameters by their names."""
    return {name: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in golden.initial.items()}


def step(golden, optimizer, params, i):
    """Take step `i`, counted from 0, of an optimizer of ours or of a peer."""
    for group in optimizer.param_groups:
        group["lr"] = golden.lrs[i] * factor_of(golden, group)
    for name, param in params.items():
        param.grad = torch.tensor(golden.grads[i][name], dtype=param.dtype)
    optimizer.step()


def replayed(golden, dtype=torch.float64, **path):
    """Return the weights after each step of LARS with the preset, and the optimizer."""
    params = start(golden, dtype)
    preset, others = preset_of(golden)
    optimizer = LARS(groups_of(golden, params), lr=1.0, **preset, **others, **path)
    trajectory = []
    for i in range(len(golden.lrs)):
        step(golden, optimizer, params, i)
        trajectory.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return trajectory, optimizer


def replayed_in_optax(golden):
    """Return the weights after each step of the optax form with the preset.

    Raises ValueError where it has no such form.
    """
    import jax.numpy as jnp
    import optax

    from gradient_lars.optax import lars
    from jax_cases import x64

    preset, others = preset_of(golden)
    if any(others.values()):
        raise ValueError(f"`{next(iter(others))}` is no setting of the optax form. Chain it with optax.scale(-1.0).")
    settings = preset.optax()
    undecayed = golden.settings.get("exclude_from_weight_decay", ())
    adapted = {name: name not in golden.excluded for name in golden.initial}
    decays = {
        name: not any(part in name for part in undecayed) and (adapted[name] or preset["decay_excluded"])
        for name in golden.initial
    }
    # Its own masks go by the number of dimensions, the golden's by whatever the peer goes by.
    settings |= {"trust_ratio_mask": adapted, "weight_decay_mask": decays}
    vectors = {name: value.ndim == 1 for name, value in golden.initial.items()}
    with x64("float64"):
        rates = jnp.asarray(golden.lrs)
        transformation = optax.chain(
            lars(lambda count: rates[count], **settings),
            # Where the learning rate acts after the momentum, that of some layers can be had by a factor.
            optax.masked(optax.scale(golden.settings.get("bias_lr_ratio", 1.0)), vectors),
        )
        weights = {name: jnp.asarray(value) for name, value in golden.initial.items()}
        state, trajectory = transformation.init(weights), []
        for grads in golden.grads:
            updates, state = transformation.update({name: jnp.asarray(g) for name, g in grads.items()}, state, weights)
            weights = optax.apply_updates(weights, updates)
            trajectory.append({name: np.asarray(weights[name]) for name in golden.initial})
    return trajectory


def error_of(golden, trajectory):
    """Return the largest difference of a layer from the golden trajectory, of its scale there."""
    worst = 0.0
    for after, expected in golden.weights.items():
        for name, weights in expected.items():
            if name in NOT_CLIPPED.get(str(golden), ()):
                continue
            actual = np.asarray(trajectory[after - 1][name], np.float64)
            assert actual.shape == weights.shape
            scale, error = np.max(np.abs(weights)), np.max(np.abs(actual - weights))
            assert np.isfinite(scale)
            assert np.isfinite(error), f"{golden}: {name} is not finite"
            worst = max(worst, error / scale if scale else (0.0 if error == 0 else np.inf))
    return float(worst)
