"""GradScaler and steps that are skipped, decided and counted on the device."""

import copy

import pytest
import torch

from fused.common import SETTINGS, copied, fused, network, set_gradients, state_of, took_the_kernels
from gradient_lars.torch import LARS, _fused, _fused_bucket
from lars.expected import assert_same, expect
from reference import assert_close
from torch_cases import to_numpy

SHAPES = ((3, 7000), (5,), (2, 2, 3))
FORMS = {
    "inside": {},
    "outside": {"lr_in_momentum": False},
    "dampening": {"dampening": 0.5},
    "nesterov": {"nesterov": True},
    "maximize": {"maximize": True, "momentum": 0.0},
    "decayed": {"norm_of": "decayed", "maximize": True},
}


def _scaler(device):
    return torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=2)


def _scaled_step(optimizer, scaler, device, *, unscale=False):
    scaler.scale(torch.zeros((), device=device))
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_scaled_training_is_unscaled_training(form, unscale, device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, **FORMS[form])
    scaler = _scaler(device)
    for step in range(4):
        scale = scaler.get_scale()
        set_gradients(named, step, scale=scale)
        before = [param.grad.clone() for _, param in named]
        expected = expect(optimizer, scale)
        _scaled_step(optimizer, scaler, device, unscale=unscale)
        for (param, layer), rate in zip(expected, optimizer.rates(), strict=True):
            assert_close(to_numpy(param), layer.p, "float32")
            assert_close(rate[1:4], [layer.p_norm, layer.g_norm, layer.rate], "float32")
        if not unscale:
            assert_same([param.grad for _, param in named], before)
    assert scaler.get_scale() == 4096.0


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["overflow", "skip_nonfinite"])
def test_a_skipped_step_has_never_been(how, form, at, device):
    named, twin = network(device, shapes=SHAPES), network(device, shapes=SHAPES)
    skip_nonfinite = how == "skip_nonfinite"
    optimizer = fused(named, **FORMS[form], skip_nonfinite=skip_nonfinite)
    steady = fused(twin, **FORMS[form])
    scaler = torch.amp.GradScaler(device, init_scale=1.0, backoff_factor=1.0 - 1e-12, enabled=not skip_nonfinite)
    for step in range(4):
        set_gradients(named, step)
        if step == at:
            named[1][1].grad[-1] = float("inf")
            before = [param.detach().clone() for _, param in named]
            _scaled_step(optimizer, scaler, device)
            assert_same([param.detach() for _, param in named], before)
            continue
        _scaled_step(optimizer, scaler, device)
        set_gradients(twin, step)
        steady.step()
    # Momentum and dampening too: the step after a skipped first one is the first.
    for a, b in zip(state_of(optimizer), state_of(steady), strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", factor=0.01)
    assert optimizer.skipped_steps == (1 if skip_nonfinite else 0)
    assert took_the_kernels(optimizer)


@pytest.mark.parametrize("bad", ["inf", "-inf", "nan"])
def test_skip_nonfinite(bad, device):
    # In two types, so that the launch of one must see the gradient of the other.
    named = [*network(device, shapes=((40, 3), (8,))), *network(device, shapes=((9, 2),), dtype=torch.float16)]
    named = [(f"layer{i}", param) for i, (_, param) in enumerate(named)]
    optimizer = fused(named, skip_nonfinite=True)
    set_gradients(named, 0)
    optimizer.step()
    for layer in range(3):
        set_gradients(named, 1 + layer)
        named[layer][1].grad.view(-1)[-1] = float(bad)
        before = state_of(optimizer)
        optimizer.step()
        assert_same(state_of(optimizer), before)
        assert optimizer.skipped_steps == layer + 1
    set_gradients(named, 5)
    before = [param.detach().clone() for _, param in named]
    optimizer.step()
    assert not any(torch.equal(param, old) for (_, param), old in zip(named, before, strict=True))
    assert optimizer.skipped_steps == 3


def test_a_sum_of_squares_that_overflows_is_not_finite_either(device):
    # Each chunk's sum is 2.4e38, the tensor's is not in float32 any more.
    param = torch.nn.Parameter(torch.ones(4 * 8192, device=device))
    optimizer = fused([param], skip_nonfinite=True)
    param.grad = torch.full_like(param, 1.7e17)
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert (param == 1).all()


def test_skips_of_the_scaler_are_counted_with_skip_nonfinite(device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, skip_nonfinite=True)
    scaler = _scaler(device)
    for step in range(3):
        set_gradients(named, step, scale=scaler.get_scale())
        if step == 1:
            named[0][1].grad[0, 0] = float("inf")
        _scaled_step(optimizer, scaler, device)
    assert optimizer.skipped_steps == 1


def test_without_it_a_nan_reaches_the_weights(device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named)
    set_gradients(named, 0)
    named[0][1].grad[0, 0] = float("nan")
    optimizer.step()
    assert named[0][1].isnan().any()
    assert not named[1][1].isnan().any()


def test_a_small_network_with_an_overflow_ends_where_foreach_ends(device):
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    ends = []
    for path in ({"fused": True}, {"foreach": True}):
        torch.manual_seed(3)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(288, 4),
        ).to(device)
        optimizer = LARS(model.named_parameters(), **SETTINGS, **path)
        scaler = _scaler(device)
        for step in range(6):
            optimizer.zero_grad()
            loss = model(images).square().mean()
            if step == 3:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append([param.detach() for param in model.parameters()])
    for a, b in zip(*ends, strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", factor=10)


def _state_dict_of(optimizer, named):
    optimizer.state_dict()
    return optimizer, named


def _other_storage(optimizer, named):
    named[0][1].data = named[0][1].detach().clone()
    return optimizer, named


def _other_path(optimizer, named):
    optimizer.param_groups[0].update(fused=False, foreach=True)
    return optimizer, named


def _resumed(optimizer, named):
    twin = copied(named)
    resumed = fused(twin, skip_nonfinite=True)
    resumed.load_state_dict(optimizer.state_dict())
    return resumed, twin


def _deep_copy(optimizer, named):
    params, twin = copy.deepcopy(([param for _, param in named], optimizer))
    return twin, [(name, param) for (name, _), param in zip(named, params, strict=True)]


@pytest.mark.parametrize("then", [_state_dict_of, _other_storage, _other_path, _resumed, _deep_copy])
@pytest.mark.parametrize("skipped_first", [True, False])
def test_the_first_step_taken_has_no_dampening_whatever_comes_before_it(skipped_first, then, device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, dampening=0.25, skip_nonfinite=True)
    set_gradients(named, 0)
    if skipped_first:
        named[1][1].grad[-1] = float("nan")
    optimizer.step()
    before = [param.detach().clone() for _, param in named]
    momenta = [torch.zeros_like(param) for param in before]
    if not skipped_first:
        momenta = [optimizer.state[param]["momentum_buffer"].clone() for _, param in named]
    optimizer, named = then(optimizer, named)
    set_gradients(named, 1)
    optimizer.step()
    for (_, param), weights, momentum, rate in zip(named, before, momenta, optimizer.rates(), strict=True):
        step = 0.5 * rate.rate * (param.grad + 0.125 * weights)
        expected = 0.9 * momentum + (1.0 if skipped_first else 0.75) * step
        assert_close(to_numpy(optimizer.state[param]["momentum_buffer"]), to_numpy(expected), "float32", factor=10)
        assert_close(to_numpy(param), to_numpy(weights - expected), "float32", factor=10)
    assert optimizer.skipped_steps == int(skipped_first)


def test_what_somebody_puts_into_the_momentum_of_a_skipped_step_stays(device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, dampening=0.25, skip_nonfinite=True)
    set_gradients(named, 0, scale=float("nan"))
    optimizer.step()
    buffer = optimizer.state[named[0][1]]["momentum_buffer"]
    buffer.fill_(2.0)
    optimizer.state_dict()
    assert optimizer.state[named[0][1]]["momentum_buffer"] is buffer
    assert "momentum_buffer" not in optimizer.state[named[1][1]]


def test_the_state_is_looked_at_until_all_have_started(device, monkeypatch):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, dampening=0.25)
    set_gradients(named, 0)
    optimizer.step()
    optimizer.state_dict()
    monkeypatch.setattr(_fused_bucket.Bucket, "unstarted", None)
    optimizer.state_dict()
    plain = fused(named)
    plain.step()
    plain.state_dict()


def test_a_captured_step_keeps_its_momentum(device, monkeypatch):
    if device != "cpu":
        pytest.skip("a pretended capture")
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, dampening=0.25, skip_nonfinite=True, capturable=True)
    set_gradients(named, 0, scale=float("nan"))
    optimizer.step()
    with monkeypatch.context() as capture:
        capture.setattr(_fused, "is_capturing", lambda device: True)
        optimizer.step()
    optimizer.state_dict()
    assert all("momentum_buffer" in optimizer.state[param] for _, param in named)
