"""The stored trajectories are what the transcriptions give, and show what sets the variants apart."""

import ast
from pathlib import Path

import numpy as np
import pytest

from variants import CHECKPOINTS, LAYERS, PATH, STEPS, assert_follows, load, make_goldens, save
from variants.momentum import sgd
from variants.transcriptions import VARIANTS, run

GOLDENS = load()


def find(name):
    """Return the golden of this name."""
    (golden,) = [golden for golden in GOLDENS if str(golden) == name]
    return golden


def test_made_again_they_are_equal(tmp_path):
    again = make_goldens.goldens()
    assert [str(run) for run in again] == [str(run) for run in GOLDENS]
    for made, stored in zip(again, GOLDENS, strict=True):
        for key in ("settings", "excluded"):
            assert getattr(made, key) == getattr(stored, key)
        np.testing.assert_allclose(made.lrs, stored.lrs, rtol=1e-15)
        for new, old in zip(_arrays(made), _arrays(stored), strict=True):
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-13 * np.max(np.abs(old), initial=0))
    save(again, tmp_path / "again.npz")
    for written, made in zip(load(tmp_path / "again.npz"), again, strict=True):
        assert (written.settings, written.lrs, written.excluded) == (made.settings, made.lrs, made.excluded)
        for new, old in zip(_arrays(written), _arrays(made), strict=True):
            np.testing.assert_array_equal(new, old)


def test_every_variant_is_there_with_changing_rates_and_both_kinds_of_decay():
    assert {golden.variant for golden in GOLDENS} == set(VARIANTS)
    assert len({str(golden) for golden in GOLDENS}) == len(GOLDENS)
    assert PATH.stat().st_size < 200_000
    for golden in GOLDENS:
        assert len(golden.lrs) == len(golden.grads) == STEPS
        assert len(set(golden.lrs)) > STEPS // 2
        assert list(golden.weights) == list(CHECKPOINTS)
    for variant in VARIANTS:
        decays = {golden.settings.get("weight_decay", "default") for golden in GOLDENS if golden.variant == variant}
        assert 0.05 in decays
        assert len(decays) > 1


def test_layers_of_every_number_of_dimensions_with_zero_weights_and_zero_gradients():
    initial, grads = GOLDENS[0].initial, GOLDENS[0].grads
    assert {array.ndim for array in initial.values()} == {0, 1, 2, 4}
    assert [name for name, array in initial.items() if not array.any()] == ["zero.kernel", "zero.bias"]
    quiet = {name: [step for step in range(STEPS) if not grads[step][name].any()] for name in LAYERS}
    assert {name: steps for name, steps in quiet.items() if steps} == {"dense.bias": [6], "quiet.kernel": [0, 6, 13]}


@pytest.mark.parametrize("module", ["momentum", "wrappers", "optimizers", "transcriptions"])
def test_transcriptions_import_numpy_alone(module):
    tree = ast.parse(Path(PATH).with_name(f"{module}.py").read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in found} <= {"variants", "numpy", "math", "re"}


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_excluded_layers_do_not_depend_on_the_trust_coefficient(golden):
    key = {"timm": "trust_coeff", "torchlars": "trust_coef", "simclr": "eeta", "mlperf_resnet": "eeta"}.get(
        golden.variant, "eta" if golden.variant in ("paper", "solo_learn", "byol", "barlow_twins", "vicreg") else None
    )
    if golden.variant == "chainer":
        return  # which has none: the learning rate holds it
    key = key or "trust_coefficient"
    other = run(golden.variant, golden.initial, golden.grads, golden.lrs, **{**golden.settings, key: 0.0123})
    same = [name for name in LAYERS if np.array_equal(other[-1][name], golden.weights[STEPS][name])]
    off = golden.variant in ("timm", "bolts") and not golden.settings.get("weight_decay")
    assert same == (list(LAYERS) if off and not golden.settings.get("always_adapt") else golden.excluded)


def test_a_step_without_gradient_is_what_sets_the_rules_of_zero_norms_apart():
    lr = {name: find(f"{name}-decay").lrs[0] for name in ("timm", "larc", "pytorch_optimizer", "optax")}
    first = {name: find(f"{name}-decay").weights[1]["quiet.kernel"] for name in lr}
    start = GOLDENS[0].initial["quiet.kernel"]
    np.testing.assert_allclose(first["timm"], start * (1 - lr["timm"] * 0.05), rtol=1e-15)
    np.testing.assert_array_equal(first["larc"], start)
    np.testing.assert_allclose(first["pytorch_optimizer"], start * (1 - lr["pytorch_optimizer"] * 0.1), rtol=1e-15)
    np.testing.assert_allclose(first["optax"], start * (1 - lr["optax"] * 0.1), rtol=1e-15)


def test_the_clip_of_timm_is_seen_by_a_layer_without_norm_and_that_of_larc_is_not():
    gradient = GOLDENS[0].grads
    for name, step_of in (("timm-clip-large", lambda lr: min(1 / lr, 1.0)), ("larc-clip-large", lambda lr: 1.0)):
        golden = find(name)
        lr = golden.lrs[0]
        assert lr > 1, "at smaller rates both are 1"
        expected = -lr * step_of(lr) * gradient[0]["zero.kernel"]
        np.testing.assert_allclose(golden.weights[1]["zero.kernel"], expected, rtol=1e-15)


@pytest.mark.parametrize("change", ["value", "layer", "type", "nan"])
def test_the_comparison_can_fail(change):
    golden = find("optax-decay")
    trajectory = run("optax", golden.initial, golden.grads, golden.lrs, **golden.settings)
    assert_follows(golden, trajectory)
    last = dict(trajectory[-1])
    if change == "value":
        last["dense.bias"] = last["dense.bias"] * (1 + 1e-11)
    elif change == "layer":
        del last["dense.bias"]
    elif change == "type":
        last["dense.bias"] = last["dense.bias"].astype(np.float32)
    else:
        last["dense.bias"] = last["dense.bias"] * np.nan
    with pytest.raises(AssertionError):
        assert_follows(golden, [*trajectory[:-1], last])


@pytest.mark.parametrize("settings", [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.3, False), (0.9, 0.0, True)])
def test_the_shared_momentum_is_that_of_torch(settings):
    import torch

    momentum, dampening, nesterov = settings
    golden = GOLDENS[0]
    weight = torch.nn.Parameter(torch.tensor(golden.initial["conv.kernel"]))
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=momentum, dampening=dampening, nesterov=nesterov)
    p, v = golden.initial["conv.kernel"], None
    for lr, grads in zip(golden.lrs, golden.grads, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.tensor(grads["conv.kernel"])
        optimizer.step()
        p, v = sgd(p, grads["conv.kernel"], v, lr, momentum, dampening, nesterov)
        np.testing.assert_allclose(weight.detach().numpy(), p, rtol=1e-13)


def _arrays(run):
    trees = (run.initial, *run.grads, *run.weights.values())
    return [array for tree in trees for array in tree.values()]
