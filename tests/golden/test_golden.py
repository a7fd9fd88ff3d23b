"""The stored trajectories are Chainer's, and they follow the formula."""

import importlib.util

import numpy as np
import pytest

from golden import PATH, load, save
from reference import assert_close, lars

TRAJECTORIES = load()


def test_every_optimizer_type_and_regime_is_there():
    assert {(run.optimizer, run.dtype) for run in TRAJECTORIES} == {
        (optimizer, dtype)
        for optimizer in ("SGD", "MomentumSGD", "CorrectedMomentumSGD", "NesterovAG")
        for dtype in ("float64", "float32")
    }
    assert {run.level for run in TRAJECTORIES} == {"optimizer", "rule"}
    assert {run.hook["eps"] for run in TRAJECTORIES} == {1e-9, 0.5}
    assert {run.hook["weight_decay"] for run in TRAJECTORIES} >= {0.0, 0.25}
    assert PATH.stat().st_size < 200_000


@pytest.mark.parametrize("regime", ["above", "below", "exactly on"])
def test_both_sides_of_the_threshold_with_and_without_decay(regime):
    found = set()
    for run in TRAJECTORIES:
        for weights in run.initial:
            p_norm, threshold = lars(weights, weights).p_norm, run.hook["threshold"]
            here = "exactly on" if p_norm == threshold else "above" if p_norm > threshold else "below"
            if here == regime:
                found.add((run.dtype, run.hook["weight_decay"] > 0))
    assert found == {(dtype, decay) for dtype in ("float64", "float32") for decay in (True, False)}


@pytest.mark.parametrize("run", TRAJECTORIES, ids=str)
def test_stored_arrays_have_the_type_and_shapes_of_the_layers(run):
    assert len(run.grads) == len(run.params) == 5
    for arrays in (run.initial, *run.grads, *run.params):
        assert [array.shape for array in arrays] == [array.shape for array in run.initial]
        assert {array.dtype for array in arrays} == {np.dtype(run.dtype)}
    assert {array.ndim for array in run.initial} == {0, 1, 2, 4}


@pytest.mark.parametrize("run", TRAJECTORIES, ids=str)
def test_stored_trajectories_follow_the_formula(run):
    for layer in range(len(run.layers)):
        p, v = run.initial[layer].astype(np.float64), 0.0
        for step in range(5):
            # Continued from the stored parameters, so that a float32 trajectory does not drift from the float64 one.
            g = lars(p, run.grads[step][layer], **run.hook).grad
            p, v = _update(run.optimizer, run.lr, run.momentum, p, v, g)
            assert_close(run.params[step][layer], p, run.dtype)
            p = run.params[step][layer].astype(np.float64)


def test_made_again_they_are_equal(tmp_path):
    if importlib.util.find_spec("chainer") is None:
        pytest.skip("Chainer is not installed")
    from golden import make_chainer

    again = make_chainer.trajectories()
    assert [run.name for run in again] == [run.name for run in TRAJECTORIES]
    for made, stored in zip(again, TRAJECTORIES, strict=True):
        settings = ("optimizer", "lr", "momentum", "hook", "level", "dtype", "layers")
        assert [getattr(made, key) for key in settings] == [getattr(stored, key) for key in settings]
        for new, old in zip(_arrays(made), _arrays(stored), strict=True):
            assert_close(new, old, stored.dtype)
    save(again, tmp_path / "again.npz")
    for written, made in zip(load(tmp_path / "again.npz"), again, strict=True):
        for new, old in zip(_arrays(written), _arrays(made), strict=True):
            np.testing.assert_array_equal(new, old)


def _arrays(run):
    return [array for arrays in (run.initial, *run.grads, *run.params) for array in arrays]


def _update(optimizer, lr, momentum, p, v, g):
    """One step of Chainer's optimizers, as its documentation gives them."""
    match optimizer:
        case "SGD":
            return p - lr * g, v
        case "MomentumSGD":
            v = momentum * v - lr * g
            return p + v, v
        case "CorrectedMomentumSGD":
            v = momentum * v - g
            return p + lr * v, v
        case "NesterovAG":
            v = momentum * v - lr * g
            return p + momentum * momentum * v - (1 + momentum) * lr * g, v
    raise ValueError(optimizer)
