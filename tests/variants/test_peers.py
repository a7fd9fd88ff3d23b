"""The transcriptions are their peers: each golden replayed with the real implementation, in float64.

pytorch-optimizer, open-lars, optax and Chainer are development dependencies: without them these tests fail. timm,
lightly and Lightning Bolts are not; the one file of theirs that matters is loaded alone, from an installed package or
from a wheel in the folder that the variable PEER_WHEELS names.
"""

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from variants import assert_follows, load

GOLDENS = load()


def of(variant):
    """Return the decorator that runs a test for every golden of a variant."""
    return pytest.mark.parametrize("golden", [golden for golden in GOLDENS if golden.variant == variant], ids=str)


def replay(golden, make):
    """Return the weights after each step of the torch optimizer that `make` builds for the layers."""
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in golden.initial.items()}
    optimizer = make(list(params.values()))
    trajectory = []
    for lr, grads in zip(golden.lrs, golden.grads, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, param in params.items():
            param.grad = torch.tensor(grads[name])
        optimizer.step()
        trajectory.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return trajectory


@of("pytorch_optimizer")
@pytest.mark.parametrize("foreach", [True, False])
def test_pytorch_optimizer(golden, foreach):
    from pytorch_optimizer import LARS

    assert_follows(golden, replay(golden, lambda params: LARS(params, foreach=foreach, **golden.settings)))


@of("open_lars")
def test_open_lars(golden):
    from open_lars import LARS

    assert_follows(golden, replay(golden, lambda params: LARS(params, lr=1.0, **golden.settings)))


@of("optax")
def test_optax(golden):
    import jax.numpy as jnp
    import optax

    from jax_cases import x64

    with x64("float64"):
        rates = jnp.asarray(golden.lrs)
        transform = optax.lars(lambda count: rates[count], **golden.settings)
        weights = {name: jnp.asarray(value) for name, value in golden.initial.items()}
        state, trajectory = transform.init(weights), []
        for grads in golden.grads:
            updates, state = transform.update({name: jnp.asarray(g) for name, g in grads.items()}, state, weights)
            weights = optax.apply_updates(weights, updates)
            trajectory.append({name: np.asarray(weights[name]) for name in golden.initial})
    assert_follows(golden, trajectory)


@of("chainer")
def test_chainer(golden):
    import chainer

    link = chainer.Link()
    with link.init_scope():
        for name, value in golden.initial.items():
            setattr(link, name, chainer.Parameter(value.copy()))
    settings = dict(golden.settings)
    momentum = {"momentum": settings.pop("momentum")} if "momentum" in settings else {}
    optimizer = chainer.optimizers.MomentumSGD(**momentum).setup(link)
    optimizer.add_hook(chainer.optimizer_hooks.GradientLARS(**settings))
    trajectory = []
    for lr, grads in zip(golden.lrs, golden.grads, strict=True):
        optimizer.lr = lr
        for name, g in grads.items():
            getattr(link, name).grad = g.copy()
        optimizer.update()
        trajectory.append({name: getattr(link, name).array.copy() for name in golden.initial})
    assert_follows(golden, trajectory)


@of("timm")
@pytest.mark.parametrize("foreach", [True, False])
def test_timm(golden, foreach, monkeypatch):
    lars = peer_module(monkeypatch, "timm", "timm.optim.lars").Lars
    assert_follows(golden, replay(golden, lambda params: lars(params, foreach=foreach, **golden.settings)))


@of("bolts")
def test_lightly(golden, monkeypatch):
    lars = peer_module(monkeypatch, "lightly", "lightly.utils.lars").LARS
    assert_follows(golden, replay(golden, lambda params: lars(params, lr=1.0, **golden.settings)))


@of("bolts")
def test_bolts(golden, monkeypatch):
    # Gone from PyTorch since; and the real module of the decorator that warns imports all of Lightning.
    monkeypatch.setattr(importlib.import_module("torch.optim.optimizer"), "required", object(), raising=False)
    stability = types.ModuleType("pl_bolts.utils.stability")
    stability.under_review = lambda: lambda cls: cls
    monkeypatch.setitem(sys.modules, "pl_bolts.utils.stability", stability)
    lars = peer_module(monkeypatch, "pl_bolts", "pl_bolts.optimizers.lars").LARS
    assert_follows(golden, replay(golden, lambda params: lars(params, lr=1.0, **golden.settings)))


def peer_module(monkeypatch, package, name):
    """Return one module of a package without running the package's own ``__init__``; skip where there is none."""
    root = _root(package)
    if root is None:
        pytest.skip(f"{package} is not installed, and PEER_WHEELS names no folder with its wheel")
    parents = name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        parent = types.ModuleType(".".join(parents[:depth]))
        parent.__path__ = ["/".join([root, *parents[:depth]])]
        monkeypatch.setitem(sys.modules, parent.__name__, parent)
    before = set(sys.modules)
    module = importlib.import_module(name)
    for loaded in set(sys.modules) - before:
        if loaded.startswith(f"{package}."):
            del sys.modules[loaded]
    return module


def _root(package):
    """Return the folder or the wheel that holds a package, or None."""
    found = importlib.util.find_spec(package)
    if found is not None and found.submodule_search_locations:
        return str(Path(next(iter(found.submodule_search_locations))).parent)
    folder = os.environ.get("PEER_WHEELS")
    wheels = sorted(Path(folder).glob("*.whl")) if folder else []
    named = {"pl_bolts": "lightning_bolts"}.get(package, package)
    return next((str(wheel) for wheel in wheels if wheel.name.startswith(f"{named}-")), None)
