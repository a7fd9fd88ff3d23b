"""What the published variants set otherwise: combinations, large layers, refusals, and changes between steps."""

import itertools

import pytest
import torch

from gradient_lars.torch import LARS
from lars.expected import PATHS, advance, assert_same, checked_step, network, set_gradients, state_of
from reference import assert_close
from torch_cases import CASES, parameter, to_numpy

# Not with fused=True, which refuses it.
AFTER = {name: path for name, path in PATHS.items() if name != "fused"}
SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}
LARGE = ((300, 400), (70000,), (5,), (16411, 5), (65536,), (0, 3))


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.0}, {"dampening": 0.25}, {"nesterov": True}], ids=str)
@pytest.mark.parametrize("path", AFTER)
def test_the_rate_after_the_momentum(path, momentum):
    others = {
        "maximize": [False, True],
        "weight_decay": [0.0, 0.125],
        "adapt": [True, None],
        "more": [{}, {"decay_excluded": False, "trust_clip": True}, {"dampen_first_step": True, "threshold": 2.0}],
    }
    for *values, more in itertools.product(*others.values()):
        settings = {**dict(zip(others, values, strict=False)), **more, **momentum}
        named = network(torch.float64, shapes=((4, 3), (3,), (), (2, 2)))
        optimizer = LARS(named, **{**SETTINGS, **settings}, lr_in_momentum=False, norm_of="update", **PATHS[path])
        for step, lr in enumerate([0.5, 0.75, 0.125]):
            optimizer.param_groups[0]["lr"] = lr
            set_gradients(named, step)
            if step == 0:
                named[-1][1].grad.zero_()
            checked_step(optimizer)


# With the gradient itself in it, the momentum of that case is too large for float16.
@pytest.mark.parametrize(
    ("case", "norm_of"),
    [
        (case, norm)
        for case in CASES
        for norm in ("decayed", "update")
        if (case.name, norm) != ("float16 near overflow", "update")
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_case(case, norm_of):
    for path in AFTER:
        param = parameter(*case.make(torch.Generator().manual_seed(1)))
        optimizer = LARS([param], **SETTINGS, lr_in_momentum=False, norm_of=norm_of, **PATHS[path])
        for _ in range(3):
            checked_step(optimizer)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_large_layers(path, maximize):
    named = network(shapes=LARGE)
    settings = {**SETTINGS, "weight_decay": 2.0, "norm_of": "decayed", "maximize": maximize}
    optimizer = LARS(named, **settings, **PATHS[path])
    for step in range(4):
        set_gradients(named, step)
        checked_step(optimizer)


@pytest.mark.parametrize("path", PATHS)
def test_gradient_and_decay_that_nearly_cancel(path):
    # The three sums of squares would leave no digit of the norm; the sum itself is exact.
    named = network(torch.float32, shapes=((300, 400), (7,)))
    optimizer = LARS(named, **SETTINGS, norm_of="decayed", momentum=0.0, **PATHS[path])
    with torch.no_grad():
        for _, param in named:
            param.copy_(param.sign())
            # Powers of two: the rest of 2^-12 is exact in float32.
            param.grad = -0.125 * param * (1 - 2.0**-12)
    checked_step(optimizer)


@pytest.mark.parametrize("path", PATHS)
def test_settings_that_change_between_steps(path):
    named = network(torch.float64, shapes=((4, 3), (5,), (3, 3)) * 5)
    optimizer = LARS(named, **SETTINGS, adapt=None, lr_in_momentum=False, **PATHS[path])
    changes = [
        {},
        {},
        {"norm_of": "decayed"},
        {"decay_excluded": False},
        {"weight_decay": 0.0},
        {"adapt_without_decay": False},
        {"weight_decay": 0.25},
        {"norm_of": "gradient", "zero_gradient_rate": 0.0},
    ]
    for step, change in enumerate(changes):
        optimizer.param_groups[0].update(change)
        set_gradients(named, step)
        named[0][1].grad.mul_(step != 7)
        checked_step(optimizer)


def test_switching_to_the_rate_after_the_momentum_leaves_the_kernels():
    named = network(torch.float64)
    optimizer = LARS(named, **SETTINGS, lr_in_momentum=False)
    for step in range(5):
        optimizer.param_groups[0]["norm_of"] = "update" if step >= 3 else "gradient"
        set_gradients(named, step)
        checked_step(optimizer)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("path", AFTER)
def test_a_skipped_step_leaves_the_rate_after_the_momentum_alone(path, at):
    named, twin = network(), network()
    settings = {**SETTINGS, "lr_in_momentum": False, "norm_of": "update", "skip_nonfinite": True, "dampening": 0.5}
    optimizer, steady = LARS(named, **settings, **PATHS[path]), LARS(twin, **settings, **PATHS[path])
    for step in range(4):
        set_gradients(named, step)
        if step == at:
            named[1][1].grad[0] = float("inf")
            before = [param.detach().clone() for _, param in named]
            optimizer.step()
            assert_same([param.detach() for _, param in named], before)
            continue
        advance(steady, twin, 1, first=step)
        optimizer.step()
    for a, b in zip(state_of(optimizer), state_of(steady), strict=True):
        assert_close(to_numpy(a), to_numpy(b), "float32")
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("norm_of", ["decayed", "update"])
def test_autograd_goes_through_the_step(norm_of):
    # Of a loss of the stepped weights, by central differences in the learning rate.
    def loss_at(lr):
        param = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64))
        start = param.clone()
        start.retain_grad()
        optimizer = LARS([start], lr=lr, weight_decay=0.5, norm_of=norm_of, lr_in_momentum=False, differentiable=True)
        start.grad = torch.tensor([[0.5, 0.25], [-1.0, 2.0]], dtype=torch.float64)
        optimizer.step()
        return start.square().sum()

    lr = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    loss_at(lr).backward()
    wanted = (loss_at(20.0 + 1e-4) - loss_at(20.0 - 1e-4)).item() / 2e-4
    assert lr.grad.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"norm_of": "weights"}, ValueError, "`norm_of` must be 'gradient' or 'decayed' or 'update', got 'weights'"),
        ({"norm_of": None}, ValueError, "`norm_of` must be"),
        ({"norm_of": "update"}, ValueError, "'update' needs `lr_in_momentum=False`"),
        ({"zero_gradient_rate": -1.0}, ValueError, "`zero_gradient_rate` must be >= 0, got -1.0. None leaves"),
        ({"zero_gradient_rate": "one"}, TypeError, "`zero_gradient_rate` must be a number"),
        ({"decay_excluded": 1}, TypeError, "`decay_excluded` must be True or False, got 1"),
        ({"adapt_without_decay": None}, TypeError, "`adapt_without_decay` must be True or False"),
        ({"dampen_first_step": "no"}, TypeError, "`dampen_first_step` must be True or False"),
    ],
    ids=str,
)
def test_refusals(settings, error, message):
    with pytest.raises(error, match=message):
        LARS(network(), lr=0.1, **settings)


def test_the_fused_path_refuses_the_rate_after_the_momentum():
    named = network()
    optimizer = LARS(named, lr=0.1, lr_in_momentum=False, norm_of="update", fused=True)
    set_gradients(named, 0)
    before = [param.detach().clone() for _, param in named]
    with pytest.raises(RuntimeError, match="`fused` cannot run here: .*norm_of='update'"):
        optimizer.step()
    assert_same([param.detach() for _, param in named], before)
    assert not any("momentum_buffer" in state for state in optimizer.state.values())
