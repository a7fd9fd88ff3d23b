"""GradScaler, steps that are skipped for their gradients, and float32 masters of narrow parameters."""

import pytest
import torch

from gradient_lars.torch import LARS
from lars.expected import (
    PATHS,
    advance,
    assert_same,
    checked_step,
    expect,
    network,
    set_gradients,
    state_of,
    train,
)
from reference import assert_close
from torch_cases import to_numpy

SCALE = 1024.0
SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}
FORMS = {
    "inside": {},
    "outside": {"lr_in_momentum": False},
    "dampening": {"dampening": 0.5},
    "no momentum": {"momentum": 0.0},
    "maximize": {"maximize": True},
    "no decay": {"weight_decay": 0.0},
    "decayed": {"norm_of": "decayed"},
    "decayed, maximize": {"norm_of": "decayed", "maximize": True},
}


def _scaler():
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)


def _scaled_step(optimizer, scaler, *, unscale=False):
    # The scaler's own check that a loss was scaled; the gradients are what backward would have left.
    scaler.scale(torch.zeros(()))
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def _momentum(optimizer, param):
    return optimizer.state[param]["momentum_buffer"]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_scaled_training_is_unscaled_training(path, form, unscale):
    named = network()
    optimizer = LARS(named, **{**SETTINGS, **FORMS[form]}, **PATHS[path])
    scaler = _scaler()
    for step in range(4):
        scale = scaler.get_scale()
        set_gradients(named, step, scale=scale)
        expected = expect(optimizer, scale)
        before = [param.grad.clone() for _, param in named]
        _scaled_step(optimizer, scaler, unscale=unscale)
        for param, layer in expected:
            assert_close(to_numpy(param), layer.p, "float32")
            if layer.v is not None:
                assert_close(to_numpy(_momentum(optimizer, param)), layer.v, "float32")
        assert_close(optimizer.rates().g_norm.numpy(), [layer.g_norm for _, layer in expected], "float32")
        assert_close(optimizer.rates().rate.numpy(), [layer.rate for _, layer in expected], "float32")
        if not unscale:
            assert_same([param.grad for _, param in named], before)
    assert scaler.get_scale() == 4 * SCALE


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_an_overflow_changes_nothing(path, form, at, unscale):
    named = network()
    optimizer = LARS(named, **{**SETTINGS, **FORMS[form]}, **PATHS[path])
    scaler = _scaler()
    twin = network()
    steady = LARS(twin, **{**SETTINGS, **FORMS[form]}, **PATHS[path])
    for step in range(4):
        set_gradients(named, step, scale=scaler.get_scale())
        if step == at:
            named[0][1].grad[0, 0] = float("inf")
            before = [param.detach().clone() for _, param in named]
            _scaled_step(optimizer, scaler, unscale=unscale)
            assert_same([param.detach() for _, param in named], before)
            continue
        _scaled_step(optimizer, scaler, unscale=unscale)
        # The steady one has never seen the step that overflowed: momentum, and its first step, are the same.
        set_gradients(twin, step)
        steady.step()
    for a, b in zip(state_of(optimizer), state_of(steady), strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32", factor=10)
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("bad", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_skip_nonfinite(path, form, at, bad):
    named, twin = network(), network()
    optimizer = LARS(named, **{**SETTINGS, **FORMS[form]}, skip_nonfinite=True, **PATHS[path])
    steady = LARS(twin, **{**SETTINGS, **FORMS[form]}, skip_nonfinite=True, **PATHS[path])
    assert optimizer.skipped_steps == 0
    for step in range(4):
        set_gradients(named, step)
        if step == at:
            # In the last layer: the ones before it must not have moved either.
            named[2][1].grad[0, 0, 0] = float(bad)
            before = [param.detach().clone() for _, param in named]
            optimizer.step()
            assert_same([param.detach() for _, param in named], before)
            assert optimizer.skipped_steps == 1
            continue
        optimizer.step()
        set_gradients(twin, step)
        steady.step()
    assert_same(state_of(optimizer), state_of(steady))
    assert (optimizer.skipped_steps, steady.skipped_steps) == (1, 0)


@pytest.mark.parametrize("path", PATHS)
def test_without_it_a_nan_reaches_the_weights(path):
    named = network()
    optimizer = LARS(named, **SETTINGS, **PATHS[path])
    set_gradients(named, 0)
    named[0][1].grad[0, 0] = float("nan")
    optimizer.step()
    assert named[0][1].isnan().any()
    assert not named[1][1].isnan().any()


@pytest.mark.parametrize("path", PATHS)
def test_skips_of_the_scaler_are_counted_with_skip_nonfinite(path):
    named = network()
    optimizer = LARS(named, **SETTINGS, skip_nonfinite=True, **PATHS[path])
    scaler = _scaler()
    for step in range(3):
        set_gradients(named, step, scale=scaler.get_scale())
        if step == 1:
            named[0][1].grad[0, 0] = float("inf")
        _scaled_step(optimizer, scaler)
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", ["loop", "foreach", "chosen"])
def test_masters_under_the_scaler(path, dtype):
    named, twin = network(dtype), network(dtype)
    optimizer = LARS(named, **SETTINGS, master_weights=True, **PATHS[path])
    steady = LARS(twin, **SETTINGS, master_weights=True, **PATHS[path])
    scaler = _scaler()
    for step in range(4):
        # A power of two scales float16 without rounding.
        set_gradients(named, step)
        for _, param in named:
            param.grad.mul_(scaler.get_scale())
        if step == 1:
            named[1][1].grad[0] = float("inf")
            before = state_of(optimizer)
            _scaled_step(optimizer, scaler)
            assert_same(state_of(optimizer), before)
            continue
        _scaled_step(optimizer, scaler)
        set_gradients(twin, step)
        checked_step(steady)
    for a, b in zip(state_of(optimizer), state_of(steady), strict=True):
        assert_close(to_numpy(a), to_numpy(b), a.dtype)


@pytest.mark.parametrize("path", ["loop", "foreach", "chosen"])
def test_twenty_bfloat16_steps_track_float32_with_masters_only(path):
    ends = {}
    for dtype, master_weights in ((torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)):
        named = [(name, torch.nn.Parameter(p.detach().bfloat16().to(dtype))) for name, p in network(shapes=((40, 30),))]
        (param,) = [param for _, param in named]
        start = param.detach().float().clone()
        optimizer = LARS(named, 1.0, trust_coefficient=2e-4, master_weights=master_weights, **PATHS[path])
        for _ in range(20):
            # One direction, as a network's gradients have at the start of training.
            param.grad = torch.ones_like(param)
            optimizer.step()
        ends[dtype, master_weights] = optimizer.state[param].get("master", param.detach()).float() - start
    way = ends[torch.float32, False]
    off = {key: ((end - way).norm() / way.norm()).item() for key, end in ends.items()}
    assert off[torch.bfloat16, True] < 1e-3
    assert off[torch.bfloat16, False] > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", ["loop", "foreach", "chosen"])
def test_masters_are_float32_and_parameters_their_rounding(path, dtype):
    named = [*network(dtype), *[(f"wide{i}", param) for i, (_, param) in enumerate(network(torch.float32))]]
    optimizer = LARS(named, **SETTINGS, nesterov=True, master_weights=True, **PATHS[path])
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)
    masters = [optimizer.state[param].get("master") for _, param in named]
    assert [master is not None for master in masters] == [True] * 3 + [False] * 3
    assert {master.dtype for master in masters[:3]} == {torch.float32}
    assert {_momentum(optimizer, param).dtype for _, param in named} == {torch.float32}


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("path", ["loop", "foreach"])
def test_masters_of_narrow_complex_parameters_keep_both_parts(path):
    param = torch.nn.Parameter(torch.tensor([[1 + 2j, 3 - 1j]]).to(torch.complex32))
    param.grad = torch.tensor([[0.5 - 1j, 1 + 1j]]).to(torch.complex32)
    optimizer = LARS([param], 0.5, trust_coefficient=0.25, master_weights=True, **PATHS[path])
    optimizer.step()
    master = optimizer.state[param]["master"]
    assert master.dtype == torch.complex64
    rate = 0.25 * (15**0.5) / (3.25**0.5)
    assert_close(to_numpy(master), [[1 + 2j - 0.5 * rate * (0.5 - 1j), 3 - 1j - 0.5 * rate * (1 + 1j)]], "complex64")


@pytest.mark.parametrize("path", PATHS)
def test_autocast_network(path):
    ends = []
    for enabled in (False, True):
        torch.manual_seed(6)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        optimizer = LARS(model.named_parameters(), 0.5, trust_coefficient=0.1, adapt=None, **PATHS[path])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=enabled)
        data = torch.randn(16, 6, generator=torch.Generator().manual_seed(7))
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(data).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        ends.append([to_numpy(param) for param in model.parameters()])
    for a, b in zip(*ends, strict=True):
        assert_close(a, b, "float32")


def test_training_after_the_scaler_is_as_ever():
    named = network()
    optimizer = train(named, 0, **SETTINGS)
    set_gradients(named, 0, scale=SCALE)
    _scaled_step(optimizer, _scaler())
    advance(optimizer, named, 1, first=1)
    set_gradients(named, 2)
    checked_step(optimizer)
