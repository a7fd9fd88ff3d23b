"""Links of the real Chainer whose parameters and gradients are given arrays."""

import importlib.util

import numpy as np
import pytest

if importlib.util.find_spec("chainer") is None:
    pytest.skip("Chainer is not installed", allow_module_level=True)

import chainer

import gradient_lars

OPTIMIZERS = ["SGD", "MomentumSGD", "CorrectedMomentumSGD", "NesterovAG"]
LEVELS = ["optimizer", "rule"]
HOOKS = [chainer.optimizer_hooks.GradientLARS, gradient_lars.GradientLARS]
hook_ids = {"ids": ["chainer", "ours"]}


def link_of(**arrays):
    """Return a link with a parameter for each array, copied."""
    link = chainer.Link()
    with link.init_scope():
        for name, array in arrays.items():
            setattr(link, name, chainer.Parameter(np.array(array)))
    return link


def set_grads(link, **grads):
    """Give each named parameter a gradient of its own."""
    for name, grad in grads.items():
        getattr(link, name).grad = np.array(grad)


def register(optimizer, hook, level):
    """Register `hook` on the optimizer, on each of its update rules, or on both."""
    if level in ("optimizer", "both"):
        optimizer.add_hook(hook)
    if level in ("rule", "both"):
        for param in optimizer.target.params():
            param.update_rule.add_hook(hook)


def loss_of(link, grads):
    """Return a loss whose gradients are `grads`, up to Chainer's loss scale."""
    return sum(chainer.functions.sum(getattr(link, name) * grad) for name, grad in grads.items())


def arrays_of(link):
    """Return copies of the parameters by name."""
    return {param.name: param.array.copy() for param in link.params()}
