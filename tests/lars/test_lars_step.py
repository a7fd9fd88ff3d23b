"""A step from outside: closures, schedulers, rates, tied layers, no host synchronisation, compiled, differentiable."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gradient_lars.torch import LARS
from lars.expected import PATHS, checked_step, expect, lars_step, network, set_gradients, train
from reference import assert_close
from torch_cases import to_numpy

SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}


@pytest.mark.parametrize("style", ["none", "positional", "keyword"])
@pytest.mark.parametrize("path", PATHS)
def test_closure(path, style):
    param = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    target = torch.tensor([10.0, -20.0, 5.0])
    optimizer = LARS([param], **SETTINGS, **PATHS[path])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (param - target).square().sum()
        loss.backward()
        return loss

    p, v = to_numpy(param), None
    for _ in range(3):
        layer = lars_step(p, 2 * (p - target.numpy()), v, optimizer.param_groups[0])
        expected_loss = ((p - target.numpy()) ** 2).sum()
        p, v = layer.p, layer.v
        if style == "none":
            closure()
            assert optimizer.step() is None
        else:
            with torch.no_grad():
                loss = optimizer.step(closure) if style == "positional" else optimizer.step(closure=closure)
            assert_close(loss.item(), expected_loss, "float32")
    assert_close(to_numpy(param), p, "float32")
    assert calls == [True] * 3


@pytest.mark.parametrize("path", PATHS)
def test_one_cycle_and_a_lambda_per_group(path):
    named = network()
    groups = [{"params": named[:1]}, {"params": named[1:], "lr": 0.25}]
    for make in (
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda t: 1 / (1 + t), lambda t: 2.0]),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=[0.5, 1.0], total_steps=8),
    ):
        optimizer = LARS([dict(group) for group in groups], **SETTINGS, **PATHS[path])
        scheduler = make(optimizer)
        seen = []
        for step in range(6):
            set_gradients(named, step)
            checked_step(optimizer)
            seen.append(tuple((group["lr"], group["momentum"]) for group in optimizer.param_groups))
            scheduler.step()
        assert len({first for first, _ in seen}) == 6
        assert sum(first[0] != second[0] for first, second in seen) >= 5
    # OneCycleLR cycles the momentum against the learning rate.
    assert len({first[1] for first, _ in seen}) > 3


@pytest.mark.parametrize("path", PATHS)
def test_tensor_lr_under_a_scheduler(path):
    named = network()
    optimizer = LARS(named, torch.tensor(0.5), trust_coefficient=0.25, **PATHS[path])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    lr = optimizer.param_groups[0]["lr"]
    for step in range(3):
        set_gradients(named, step)
        checked_step(optimizer)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.0625


@pytest.mark.parametrize("path", PATHS)
def test_rates_are_those_of_the_last_step(path):
    named = network()
    optimizer = LARS(named, **SETTINGS, adapt=None, **PATHS[path])
    with pytest.raises(RuntimeError, match="`rates` has nothing to show yet. Take a step first."):
        optimizer.rates()
    for step in range(2):
        set_gradients(named, step)
        expected = [layer for _, layer in expect(optimizer)]
        optimizer.step()
    # Changes after the step are not those of the step.
    optimizer.param_groups[0]["threshold"] = 1e6
    with torch.no_grad():
        named[0][1].zero_()
    rates = optimizer.rates()
    assert rates.names == ("layer0", "layer1", "layer2")
    assert rates.adapted.tolist() == [True, False, True]
    assert rates.rate[1] == 1.0
    assert_close(rates.p_norm.numpy(), [layer.p_norm for layer in expected], "float32")
    assert_close(rates.g_norm.numpy(), [layer.g_norm for layer in expected], "float32")
    assert_close(rates.rate.numpy(), [layer.rate for layer in expected], "float32")
    assert [rate.name for rate in rates] == list(rates.names)


@pytest.mark.parametrize("path", PATHS)
def test_parameters_without_gradients_are_left_alone(path):
    named = network()
    optimizer = LARS(named, **SETTINGS, **PATHS[path])
    before = [param.detach().clone() for _, param in named]
    optimizer.step()
    assert len(optimizer.rates()) == 0
    assert optimizer.rates().rate.shape == (0,)
    set_gradients(named, 0)
    named[1][1].grad = None
    checked_step(optimizer)
    assert optimizer.rates().names == ("layer0", "layer2")
    assert torch.equal(named[1][1], before[1])
    # Its first step comes later, on its own.
    set_gradients(named, 1)
    checked_step(optimizer)
    assert len(optimizer.rates()) == 3


@pytest.mark.parametrize("path", PATHS)
def test_tied_parameters_move_once(path):
    first, second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    first.weight.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = LARS([first.weight, second.weight], **SETTINGS, **PATHS[path])
    (_, layer), _ = expect(optimizer)
    optimizer.step()
    assert_close(to_numpy(first.weight), layer.p, "float32")
    assert len(optimizer.rates()) == 1
    once = LARS(torch.nn.Sequential(first, second).named_parameters(), **SETTINGS, **PATHS[path])
    checked_step(once)


class NoSynchronisation(TorchDispatchMode):
    """Raises on the operations that read a value of a tensor from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            raise RuntimeError("synchronised")
        return func(*args, **(kwargs or {}))


SHAPES = ((4, 3), (), (0, 2), (8,), (2, 3, 3, 3))
QUIET = {
    "plain": {},
    "tensor lr": {"lr": torch.tensor(0.5)},
    "clipped": {"trust_clip": True, "lr": torch.tensor(0.5), "min_rate": 0.1, "max_rate": 2.0},
    "outside": {"lr_in_momentum": False, "lr": torch.tensor(0.5)},
    "nesterov": {"nesterov": True},
    "no momentum": {"momentum": 0.0, "maximize": True},
    "masters": {"master_weights": True},
    "capturable": {"capturable": True, "lr": torch.tensor(0.5)},
}


def _quiet(path, dtype, device, form, skip_nonfinite):
    named = [(name, torch.nn.Parameter(param.detach().to(device))) for name, param in network(dtype, SHAPES)]
    for _, param in named:
        param.grad = torch.ones_like(param)
    settings = {**SETTINGS, **QUIET[form], "skip_nonfinite": skip_nonfinite}
    return LARS(named, **settings, **PATHS[path])


def test_the_check_sees_a_synchronisation():
    with NoSynchronisation(), pytest.raises(RuntimeError, match="synchronised"):
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("form", QUIET)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
@pytest.mark.parametrize("path", ["loop", "foreach"])
def test_no_synchronisation(path, dtype, form, skip_nonfinite, scaled):
    optimizer = _quiet(path, dtype, "cpu", form, skip_nonfinite)
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    with NoSynchronisation():
        for _ in range(2):
            optimizer.step()
        assert len(optimizer.rates().names) == len(SHAPES)


@pytest.mark.parametrize("skip_nonfinite", [False, True])
@pytest.mark.parametrize("form", QUIET)
@pytest.mark.parametrize("path", ["loop", "foreach", "chosen"])
def test_on_a_device_without_values(path, form, skip_nonfinite):
    # A meta tensor has no value to read: any copy to the host raises. The code is the one that a GPU takes.
    optimizer = _quiet(path, torch.float32, "meta", form, skip_nonfinite)
    for _ in range(2):
        optimizer.step()
    with pytest.raises(NotImplementedError, match="meta"):
        optimizer.rates().rate  # noqa: B018
    # With a dampening a first step that may be skipped is looked at, once.
    assert len(optimizer.rates()) == len(SHAPES)


@pytest.mark.filterwarnings("ignore")  # Dynamo's own
@pytest.mark.parametrize("lr_in_momentum", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_compiled_step(path, lr_in_momentum):
    torch._dynamo.reset()
    named = network(shapes=((4, 3), (4, 3), (5,)))
    optimizer = LARS(named, **SETTINGS, lr_in_momentum=lr_in_momentum, skip_nonfinite=True, **PATHS[path])
    step = torch.compile(optimizer.step, backend="aot_eager")
    for i in range(3):
        set_gradients(named, i)
        expected = expect(optimizer)
        step()
        for param, layer in expected:
            assert_close(to_numpy(param), layer.p, "float32")
            assert_close(to_numpy(optimizer.state[param]["momentum_buffer"]), layer.v, "float32")
        assert_close(optimizer.rates().rate.numpy(), [layer.rate for _, layer in expected], "float32")
    named[1][1].grad[0, 0] = float("inf")
    before = [param.detach().clone() for _, param in named]
    step()
    assert all(torch.equal(param, values) for (_, param), values in zip(named, before, strict=True))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr_in_momentum": False, "dampening": 0.25},
        {"nesterov": True, "maximize": True},
        {"momentum": 0.0},
        {"threshold": 10.0},
        {"trust_clip": True},
        {"skip_nonfinite": True},
    ],
    ids=str,
)
def test_gradient_through_the_step_is_that_of_finite_differences(settings):
    def after(weights, grad, lr):
        param = weights.clone()
        optimizer = LARS([param], **{**SETTINGS, **settings, "lr": lr}, differentiable=True)
        param.grad = grad
        optimizer.step()
        # The second step sees weights and momentum that depend on everything before.
        param.grad = grad.cos()
        optimizer.step()
        rates = optimizer.rates()
        assert not rates.rate.requires_grad
        return [param, *(v for v in optimizer.state[param].values())]

    generator = torch.Generator().manual_seed(8)
    inputs = [torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(after, (*inputs, lr))


def test_otherwise_the_step_is_no_part_of_the_graph():
    named = network()
    optimizer = train(named, 2, **SETTINGS)
    assert all(param.grad_fn is None for _, param in named)
    assert not any(optimizer.state[param]["momentum_buffer"].requires_grad for _, param in named)
