"""Every published variant by its name, and a run of some steps over the layers of a network."""

import numpy as np

from variants import optimizers, wrappers

VARIANTS = {
    "chainer": optimizers.chainer,
    "paper": optimizers.paper,
    "torchlars": wrappers.torchlars,
    "larc": wrappers.larc,
    "timm": wrappers.timm,
    "bolts": wrappers.bolts,
    "solo_learn": wrappers.solo_learn,
    "open_lars": optimizers.open_lars,
    "pytorch_optimizer": optimizers.pytorch_optimizer,
    "optax": optimizers.optax,
    "simclr": optimizers.simclr,
    "byol": optimizers.byol,
    "barlow_twins": optimizers.barlow_twins,
    "vicreg": optimizers.vicreg,
    "swav": wrappers.swav,
    "mlperf_resnet": optimizers.mlperf_resnet,
}


def step(variant, weights, grads, memory, lr, **settings):
    """Return weights and momentum after one step; all are dictionaries by the layers' names, `memory` first empty."""
    after, momentum = {}, {}
    for name, p in weights.items():
        after[name], momentum[name] = VARIANTS[variant](name, p, grads[name], memory.get(name), lr, **settings)
        after[name] = np.asarray(after[name], np.float64)
    return after, momentum


def run(variant, initial, grads, lrs, **settings):
    """Return the weights after each step, one for each pair of gradients and learning rate."""
    weights, memory, trajectory = initial, {}, []
    for step_grads, lr in zip(grads, lrs, strict=True):
        weights, memory = step(variant, weights, step_grads, memory, lr, **settings)
        trajectory.append(weights)
    return trajectory
