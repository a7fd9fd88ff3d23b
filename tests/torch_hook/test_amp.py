"""GradScaler, with plain and with fused optimizers: the parameters are those of training without a loss scale."""

import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close, lars
from torch_cases import PATHS, to_numpy

SCALE = 1024.0


def _layers():
    generator = torch.Generator().manual_seed(5)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in [(4, 3), (5,), (2, 2, 3)]]


def _gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(*shape, generator=generator) for shape in [(4, 3), (5,), (2, 2, 3)]]


def _train(path, *, fused, scaler, overflow_at=None, unscale=False, weight_decay=0.05, steps=4):
    params = _layers()
    optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=fused)
    handle = add_hook(optimizer, GradientLARS(weight_decay=weight_decay), path=path)
    history = []
    for step in range(steps):
        for param, grad in zip(params, _gradients(step), strict=True):
            param.grad = grad * scaler.get_scale() if scaler else grad
        if step == overflow_at:
            params[0].grad[0, 0] = float("inf")
        if scaler is None:
            optimizer.step()
        else:
            # The scaler's own check that a loss was scaled; the gradients above are what backward would have left.
            scaler.scale(torch.zeros(()))
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        history.append([to_numpy(param) for param in params])
    return history, handle, params


def _scaler():
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_scaled_training_equals_unscaled_training(path, fused, unscale):
    expected, plain, _ = _train(path, fused=fused, scaler=None)
    actual, scaled, _ = _train(path, fused=fused, scaler=_scaler(), unscale=unscale)
    for before, after in zip(expected, actual, strict=True):
        for a, b in zip(after, before, strict=True):
            assert_close(a, b, "float32", factor=0.1)
    assert_close(scaled.rates().g_norm.numpy(), plain.rates().g_norm.numpy(), "float32")
    assert_close(scaled.rates().rate.numpy(), plain.rates().rate.numpy(), "float32")


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_an_overflowed_step_changes_nothing(path, fused, unscale):
    history, _, _ = _train(path, fused=fused, scaler=_scaler(), overflow_at=2, unscale=unscale)
    for a, b in zip(history[1], history[2], strict=True):
        assert (a == b).all()
    # Afterwards training goes on from there, with the momentum of before.
    assert all((a != b).any() for a, b in zip(history[2], history[3], strict=True))
    params = history[1]
    velocity = [b - a for a, b in zip(history[0], history[1], strict=True)]
    for layer, (param, grad) in enumerate(zip(params, _gradients(3), strict=True)):
        scaled = lars(param, to_numpy(grad), weight_decay=0.05).grad
        assert_close(history[3][layer], param + 0.9 * velocity[layer] - 0.1 * scaled, "float32")


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("path", PATHS)
def test_overflowed_gradients_stay_as_they_are_with_a_fused_optimizer(path, weight_decay):
    # What the fused kernel itself does to a gradient (it divides by the scale) is PyTorch's; LARS adds nothing to it.
    _, _, params = _train(path, fused=True, scaler=_scaler(), overflow_at=0, steps=1, weight_decay=weight_decay)
    for param, grad in zip(params[1:], _gradients(0)[1:], strict=True):
        ratio = to_numpy(param.grad) / to_numpy(grad)
        assert_close(ratio, ratio.flat[0].repeat(ratio.size).reshape(ratio.shape), "float32")
        assert ratio.flat[0] in (1.0, SCALE)


@pytest.mark.parametrize("path", PATHS)
def test_autocast_network_with_a_closure_free_loop(path):
    torch.manual_seed(6)
    twins = []
    for enabled in (False, True):
        torch.manual_seed(6)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
        add_hook(optimizer, GradientLARS(weight_decay=1e-3), path=path)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled)
        data = torch.randn(16, 6, generator=torch.Generator().manual_seed(7))
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(data).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        twins.append([to_numpy(p) for p in model.parameters()])
    for a, b in zip(*twins, strict=True):
        assert_close(a, b, "float32")
