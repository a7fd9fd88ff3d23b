"""Make ``chainer.npz`` with the real Chainer 7.8.1 and Chainer's own ``GradientLARS``.

Run it in the folder ``tests`` as ``python -m golden.make_chainer``; the tests run it in memory and compare. Thresholds
are powers of two: at any other NumPy 1 and 2 disagree on whether a norm that is exactly on it is above it.
"""

import numpy as np

from golden import PATH, Trajectory, save

# Chainer 7.8.1 reads np.sctypes, which NumPy 2 no longer has, when it is imported.
if not hasattr(np, "sctypes"):
    np.sctypes = {
        "int": [np.int8, np.int16, np.int32, np.int64],
        "float": [np.float16, np.float32, np.float64, np.longdouble],
    }

import chainer

STEPS = 5
SEED = 20171003
# 0.03125 keeps every layer well-conditioned over the steps: no parameter cancels to noise.
LR = 2.0**-5
OPTIMIZERS = {"SGD": 0.0, "MomentumSGD": 0.9, "CorrectedMomentumSGD": 0.9, "NesterovAG": 0.875}
HOOKS = {
    "low": ({"threshold": 2.0**-7, "weight_decay": 0.0, "eps": 1e-9}, "optimizer"),
    "high": ({"threshold": 0.25, "weight_decay": 0.0, "eps": 1e-9}, "rule"),
    "high-decay": ({"threshold": 0.25, "weight_decay": 0.25, "eps": 1e-9}, "optimizer"),
    "low-decay-eps": ({"threshold": 2.0**-7, "weight_decay": 0.25, "eps": 0.5}, "rule"),
    "high-eps": ({"threshold": 0.25, "weight_decay": 0.0, "eps": 0.5}, "optimizer"),
    "zero-decay": ({"threshold": 0.0, "weight_decay": 0.0625, "eps": 1e-9}, "rule"),
}
# Names in the order of the alphabet, which is Chainer's: norm of the weights, norm of the gradients, shape.
LAYERS = {
    "a_conv": (2.0, 0.75, (3, 2, 3, 3)),
    "b_steep": (1.0, 50.0, (5, 4)),
    "c_below": (0.125, 0.25, (6,)),
    "d_on_high": (0.25, 3.0, (2, 2)),
    "e_on_low": (2.0**-7, 0.125, (4,)),
    "f_zero_weights": (0.0, 1.0, (3,)),
    "g_zero_gradient": (0.5, 0.0, (3,)),
    "h_scalar": (0.75, 0.5, ()),
    "i_one": (1.5, 0.125, (1,)),
}


def trajectories():
    """Return all runs, both types of each."""
    runs = []
    for dtype in ("float64", "float32"):
        initial, grads = _inputs(dtype)
        for optimizer, momentum in OPTIMIZERS.items():
            for label, (hook, level) in HOOKS.items():
                params = run(optimizer, momentum, chainer.optimizer_hooks.GradientLARS(**hook), level, initial, grads)
                _check_margins(label, hook["threshold"], initial, params)
                runs.append(
                    Trajectory(
                        name=f"{optimizer}-{label}-{dtype}",
                        optimizer=optimizer,
                        lr=LR,
                        momentum=momentum,
                        hook=hook,
                        level=level,
                        dtype=dtype,
                        layers=list(LAYERS),
                        initial=initial,
                        grads=grads,
                        params=params,
                    )
                )
    return runs


def run(optimizer, momentum, hook, level, initial, grads, lr=LR):
    """Return the parameters after each step of a Chainer optimizer with `hook` registered at `level`."""
    link = chainer.Link()
    with link.init_scope():
        for name, array in zip(LAYERS, initial, strict=True):
            setattr(link, name, chainer.Parameter(array.copy()))
    settings = {"momentum": momentum} if optimizer != "SGD" else {}
    chosen = getattr(chainer.optimizers, optimizer)(lr=lr, **settings).setup(link)
    if level == "optimizer":
        chosen.add_hook(hook)
    else:
        for param in link.params():
            param.update_rule.add_hook(hook)
    after = []
    for step in grads:
        for name, grad in zip(LAYERS, step, strict=True):
            getattr(link, name).grad = grad.copy()
        chosen.update()
        after.append([getattr(link, name).array.copy() for name in LAYERS])
    return after


def _inputs(dtype):
    rng = np.random.default_rng(SEED)
    initial, grads = [], [[] for _ in range(STEPS)]
    for name, (p_norm, g_norm, shape) in LAYERS.items():
        if name.partition("_")[2].startswith("on_"):
            # Four equal powers of two: their norm is exact in every type.
            weights = np.full(shape, p_norm / 2.0)
        else:
            weights = _with_norm(rng.standard_normal(shape), p_norm)
        initial.append(weights.astype(dtype))
        drift = rng.standard_normal(shape)
        for step in grads:
            step.append(_with_norm(drift + rng.standard_normal(shape), g_norm).astype(dtype))
    return initial, grads


def _with_norm(array, norm):
    return np.asarray(array * (norm / np.sqrt(np.sum(array**2))))


def _check_margins(label, threshold, initial, params):
    """Raise where a norm is so near the threshold that rounding decides, or a layer has shrunk to noise."""
    for step, arrays in enumerate([initial, *params]):
        for name, array, first in zip(LAYERS, arrays, initial, strict=True):
            norm, before = (
                np.sqrt(np.sum(array.astype(np.float64) ** 2)),
                np.sqrt(np.sum(first.astype(np.float64) ** 2)),
            )
            exactly = norm == threshold and (step == 0 or norm == 0.0)
            if not exactly and abs(norm - threshold) <= 1e-3 * threshold:
                raise RuntimeError(f"{label}: {name} is too near the threshold after step {step}: {norm!r}.")
            if norm < 0.25 * before:
                raise RuntimeError(f"{label}: {name} has shrunk to {norm / before:.2g} after step {step}.")


if __name__ == "__main__":
    save(trajectories())
    print(f"{PATH.name}: {len(trajectories())} trajectories, {PATH.stat().st_size} bytes")
