"""Schedules: every step has the learning rate of the closed form, also at the seams, past the end and when resumed."""

import copy
import doctest
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook, scaled_lr, schedules, tvlars, warmup_polynomial
from lars.expected import PATHS, assert_same, checked_step, network, set_gradients, state_of
from reference import assert_close


def polynomial(t, *, warmup_steps, total_steps, power=2.0, start_factor=0.0, end_factor=0.0):
    """Return the factors of the steps `t`, from the two lines that a plot of them has."""
    up = np.interp(t, [0, max(warmup_steps, 1)], [start_factor, 1.0])
    done = np.clip((t - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
    return np.where(t < warmup_steps, up, end_factor + (1 - end_factor) * (1 - done) ** power)


def sigmoid(t, *, delay_steps, decay_coefficient, alpha=1.0, gamma_min=0.0):
    """Return the factors of the steps `t` by the paper's formula."""
    with np.errstate(over="ignore"):
        return 1 / (alpha + np.exp(decay_coefficient * (t - delay_steps))) + gamma_min


# Name: schedule, its closed form, and settings.
SCHEDULES = {
    "polynomial": (warmup_polynomial, polynomial, {"warmup_steps": 3, "total_steps": 9}),
    "polynomial, all settings": (
        warmup_polynomial,
        polynomial,
        {"warmup_steps": 4, "total_steps": 11, "power": 1.5, "start_factor": 0.25, "end_factor": 0.125},
    ),
    "no warm-up": (warmup_polynomial, polynomial, {"warmup_steps": 0, "total_steps": 5}),
    "one step": (warmup_polynomial, polynomial, {"warmup_steps": 0, "total_steps": 1, "start_factor": 0.5}),
    "warm-up to the last step": (warmup_polynomial, polynomial, {"warmup_steps": 4, "total_steps": 5, "power": 1.0}),
    "tvlars": (tvlars, sigmoid, {"delay_steps": 4, "decay_coefficient": 0.75}),
    "tvlars, all settings": (
        tvlars,
        sigmoid,
        {"delay_steps": 3, "decay_coefficient": 1.5, "alpha": 0.1, "gamma_min": 0.01},
    ),
    "tvlars, exp overflows": (tvlars, sigmoid, {"delay_steps": 2, "decay_coefficient": 800.0, "gamma_min": 0.5}),
}
STEPS = 13  # past the end of each
every_schedule = pytest.mark.parametrize(("make", "closed_form", "settings"), SCHEDULES.values(), ids=SCHEDULES)

LARS_SETTINGS = {"momentum": 0.9, "trust_coefficient": 0.25, "weight_decay": 0.01}


def two_groups(named, lrs=(8.0, 0.5)):
    return [{"params": named[:1], "lr": lrs[0]}, {"params": named[1:], "lr": lrs[1]}]


def sgd(groups):
    return torch.optim.SGD(groups, momentum=0.9)


def hooked(groups):
    optimizer = sgd(groups)
    add_hook(optimizer, GradientLARS(weight_decay=0.01))
    return optimizer


def lars(groups):
    return LARS(groups, 1.0, **LARS_SETTINGS)


def run(optimizer, scheduler, named, steps, *, first=0):
    """Take steps from `first` on; return the learning rate of every group in each of them."""
    seen = []
    for step in range(first, first + steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        set_gradients(named, step)
        optimizer.step()
        scheduler.step()
    return np.array(seen)


@every_schedule
@pytest.mark.parametrize("build", [sgd, hooked, lars])
def test_every_step_has_the_closed_form(build, make, closed_form, settings):
    named = network()
    optimizer = build(two_groups(named))
    scheduler = make(optimizer, **settings)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR)
    seen = run(optimizer, scheduler, named, STEPS)
    factors = closed_form(np.arange(STEPS), **settings)
    assert len(set(factors)) > 1
    assert_close(seen, np.outer(factors, [8.0, 0.5]), "float64")
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_the_seams_are_exact():
    named = network()
    optimizer = sgd(two_groups(named))
    scheduler = warmup_polynomial(optimizer, warmup_steps=3, total_steps=7, end_factor=0.125)
    seen = run(optimizer, scheduler, named, 9)[:, 0]
    assert seen[0] == 0.0
    assert seen[2] < seen[3] == 8.0 > seen[4]
    assert seen[6] > seen[7] == seen[8] == 1.0


def test_rounding_does_not_add_up_over_a_long_training():
    # MLPerf's ResNet-50: 37 epochs of 393 steps, 2 of them warm-up, in float32.
    lr = torch.tensor(10.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr)
    steps = {"warmup_steps": 2 * 393, "total_steps": 37 * 393}
    scheduler = warmup_polynomial(optimizer, **steps)
    seen = []
    for _ in range(steps["total_steps"]):
        seen.append(lr.item())
        optimizer.step()
        scheduler.step()
    expected = 10.5 * polynomial(np.arange(steps["total_steps"]), **steps)
    np.testing.assert_allclose(seen, expected, rtol=3e-7)


def test_mlperf_as_the_docstring_has_it():
    """``PolynomialDecayWithWarmup`` of mlcommons/training, transcribed: 1 to `steps` of the decay, ending at 1e-4."""
    lr, warmup, steps = 10.5, 5, 40
    step = np.arange(steps)
    decay = steps - warmup + 1
    down = (lr - 1e-4) * (1 - np.minimum(np.maximum(step - warmup, 1), decay) / decay) ** 2 + 1e-4
    expected = np.where(step <= warmup, lr * step / warmup, down)
    named = network()
    optimizer = sgd(two_groups(named, (lr, lr)))
    scheduler = warmup_polynomial(optimizer, warmup_steps=warmup, total_steps=steps + 1, end_factor=1e-4 / lr)
    assert_close(run(optimizer, scheduler, named, steps)[:, 0], expected, "float64")


@given(
    t=st.integers(0, 10**9),
    delay=st.integers(0, 10**6),
    decay_coefficient=st.floats(1e-9, 1e3),
    alpha=st.floats(1e-3, 1e3),
    gamma_min=st.floats(0.0, 1.0),
)
def test_time_varying_factor(t, delay, decay_coefficient, alpha, gamma_min):
    factor = schedules._TimeVarying(delay, decay_coefficient, alpha, gamma_min)
    settings = {"decay_coefficient": decay_coefficient, "alpha": alpha, "gamma_min": gamma_min}
    assert_close(factor(t), sigmoid(np.float64(t), delay_steps=delay, **settings), "float64")
    assert gamma_min <= factor(t + 1) <= factor(t) <= 1 / alpha + gamma_min


@given(
    steps=st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True).map(sorted),
    t=st.integers(0, 2 * 10**6),
    power=st.floats(0.1, 10.0),
    start_factor=st.floats(0.0, 1.0),
    end_factor=st.floats(0.0, 1.0),
)
def test_warm_up_polynomial_factor(steps, t, power, start_factor, end_factor):
    warmup, total = steps
    factor = schedules._WarmupPolynomial(warmup, total, power, start_factor, end_factor)
    values = [factor(step) for step in (t, t + 1)]
    assert all(min(start_factor, end_factor) - 1e-12 <= value <= 1.0 + 1e-12 for value in values)
    assert values == sorted(values, reverse=t >= warmup)
    assert factor(warmup) == 1.0
    assert factor(total) == factor(2 * total) == end_factor


@every_schedule
@pytest.mark.parametrize("path", PATHS)
def test_tensor_lr_is_changed_in_place(path, make, closed_form, settings):
    named = network()
    lrs = (torch.tensor(8.0), torch.tensor(0.5))
    optimizer = LARS(two_groups(named, lrs), 1.0, capturable=True, **LARS_SETTINGS, **PATHS[path])
    scheduler = make(optimizer, **settings)
    factors = closed_form(np.arange(STEPS), **settings)
    for step in range(STEPS):
        assert [group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs, strict=True)] == [True, True]
        assert_close([lr.item() for lr in lrs], factors[step] * np.array([8.0, 0.5]), "float32")
        set_gradients(named, step)
        checked_step(optimizer)
        scheduler.step()


@pytest.mark.parametrize("lr_in_momentum", [True, False])
def test_where_lr_sits_decides_when_a_change_is_felt(lr_in_momentum):
    """One weight, gradient 1 in step 0 alone, warm-up from 0: only with lr outside does that gradient ever move it."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = LARS([weight], 8.0, momentum=0.5, adapt=False, lr_in_momentum=lr_in_momentum)
    scheduler = warmup_polynomial(optimizer, warmup_steps=2, total_steps=6)
    seen = []
    for step in range(3):
        weight.grad = torch.tensor([1.0 if step == 0 else 0.0])
        optimizer.step()
        scheduler.step()
        seen.append(weight.item())
    # lr is 0, 4, 8 and the momentum 1, 1/2, 1/4.
    assert seen == ([1.0, 1.0, 1.0] if lr_in_momentum else [1.0, -1.0, -3.0])


@every_schedule
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("schedule_first", [True, False], ids=["schedule first", "optimizer first"])
@pytest.mark.parametrize("done", [0, 1, 4, 12])
def test_a_resumed_training_goes_on_identically(done, schedule_first, tensor_lr, make, closed_form, settings):
    def start():
        named = network()
        return named, lars(two_groups(named, tuple(map(torch.tensor, (8.0, 0.5))) if tensor_lr else (8.0, 0.5)))

    named, optimizer = start()
    scheduler = make(optimizer, **settings)
    run(optimizer, scheduler, named, done)
    file = io.BytesIO()
    weights = [param.detach().clone() for _, param in named]
    torch.save((optimizer.state_dict(), scheduler.state_dict(), weights), file)
    left = run(optimizer, scheduler, named, 5, first=done)

    file.seek(0)
    optimizer_state, scheduler_state, weights = torch.load(file, weights_only=True)
    again, restored = start()
    with torch.no_grad():
        for (_, param), weight in zip(again, weights, strict=True):
            param.copy_(weight)
    # The settings come from the state too: this schedule is made with others.
    other = {name: value + 1 for name, value in settings.items() if name.endswith("_steps")}
    if schedule_first:
        resumed = make(restored, **{**settings, **other})
        restored.load_state_dict(optimizer_state)
    else:
        restored.load_state_dict(optimizer_state)
        resumed = make(restored, **{**settings, **other})
    lrs = [group["lr"] for group in restored.param_groups]
    resumed.load_state_dict(scheduler_state)
    if tensor_lr:  # a captured graph reads these very tensors
        assert [group["lr"] is lr for group, lr in zip(restored.param_groups, lrs, strict=True)] == [True, True]
    assert_same_lrs(run(restored, resumed, again, 5, first=done), left)
    assert_same(state_of(restored), state_of(optimizer))
    assert_close(left, np.outer(closed_form(np.arange(done, done + 5), **settings), [8.0, 0.5]), "float32")


def assert_same_lrs(left, right):
    assert left.shape == right.shape
    assert (left == right).all(), f"{left} is not {right}"


def test_the_comparison_of_learning_rates_can_fail():
    with pytest.raises(AssertionError, match="is not"):
        assert_same_lrs(np.ones((1, 2)), np.nextafter(np.ones((1, 2)), 2.0))


def test_copies_and_pickles_go_on_identically():
    named = network()
    optimizer = sgd(two_groups(named))
    scheduler = warmup_polynomial(optimizer, warmup_steps=2, total_steps=9)
    run(optimizer, scheduler, named, 4)
    copies = [copy.deepcopy((named, optimizer, scheduler)), pickle.loads(pickle.dumps((named, optimizer, scheduler)))]
    expected = run(optimizer, scheduler, named, 6, first=4)
    for copied_named, copied, copied_scheduler in copies:
        assert_same_lrs(run(copied, copied_scheduler, copied_named, 6, first=4), expected)


def test_a_state_that_does_not_fit_changes_nothing():
    named = network()
    optimizer = sgd(two_groups(named))
    scheduler = warmup_polynomial(optimizer, warmup_steps=2, total_steps=9)
    run(optimizer, scheduler, named, 3)
    before = copy.deepcopy(scheduler.state_dict())
    others = [
        tvlars(sgd(two_groups(network())), delay_steps=1, decay_coefficient=1.0),
        warmup_polynomial(torch.optim.SGD(network(), 1.0), warmup_steps=2, total_steps=9),
        torch.optim.lr_scheduler.StepLR(sgd(two_groups(network())), 2),
    ]
    for other in others:
        with pytest.raises(
            ValueError, match="`state_dict` must be of this schedule on 2 groups, with .*'warmup_steps'"
        ):
            scheduler.load_state_dict(other.state_dict())
        assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"warmup_steps": -1}, ValueError, "`warmup_steps` must be >= 0, got -1. Count optimizer steps, not epochs"),
        ({"warmup_steps": 2.0}, TypeError, "`warmup_steps` must be a whole number, got 2.0. Count optimizer steps"),
        ({"warmup_steps": True}, TypeError, "`warmup_steps` must be a whole number, got True"),
        ({"warmup_steps": torch.tensor(2)}, TypeError, r"`warmup_steps` must be a whole number, got tensor\(2\)"),
        ({"total_steps": 0}, ValueError, "`total_steps` must be >= 1, got 0. .*warm-up included"),
        ({"warmup_steps": 9}, ValueError, "`warmup_steps` must be below `total_steps`, got 9 and 9"),
        ({"power": 0.0}, ValueError, "`power` must be > 0, got 0.0. 2 is the LARS paper's"),
        ({"power": math.inf}, ValueError, "`power` must be > 0, got inf"),
        ({"power": "2"}, TypeError, "`power` must be a number, got '2'"),
        ({"start_factor": -0.1}, ValueError, "`start_factor` must be >= 0 and <= 1, got -0.1. It is the share of `lr`"),
        ({"start_factor": 1.5}, ValueError, "`start_factor` must be >= 0 and <= 1, got 1.5"),
        ({"end_factor": math.nan}, ValueError, "`end_factor` must be >= 0 and <= 1, got nan"),
        ({"end_factor": torch.tensor(0.1)}, TypeError, "`end_factor` must be a number, got tensor"),
    ],
    ids=str,
)
def test_warm_up_settings_that_are_refused(settings, error, message):
    optimizer = sgd(two_groups(network()))
    with pytest.raises(error, match=message):
        warmup_polynomial(optimizer, **{"warmup_steps": 2, "total_steps": 9, **settings})
    assert [group["lr"] for group in optimizer.param_groups] == [8.0, 0.5]
    assert "initial_lr" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"delay_steps": -1}, ValueError, "`delay_steps` must be >= 0, got -1. Count optimizer steps, not epochs"),
        ({"decay_coefficient": 0.0}, ValueError, "`decay_coefficient` must be > 0, got 0.0. It is the paper's lambda"),
        ({"alpha": 0}, ValueError, "`alpha` must be > 0, got 0. 1 starts near the groups' own `lr`"),
        ({"gamma_min": -0.5}, ValueError, "`gamma_min` must be >= 0, got -0.5. It is the share of `lr`"),
        ({"gamma_min": None}, TypeError, "`gamma_min` must be a number, got None"),
    ],
    ids=str,
)
def test_tvlars_settings_that_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        tvlars(sgd(two_groups(network())), **{"delay_steps": 2, "decay_coefficient": 0.5, **settings})


@pytest.mark.parametrize("make", [warmup_polynomial, tvlars])
def test_what_is_no_optimizer_is_refused(make):
    settings = next(settings for other, _, settings in SCHEDULES.values() if other is make)
    with pytest.raises(TypeError, match="`optimizer` must be a torch.optim.Optimizer, got Linear. Pass the optimizer"):
        make(torch.nn.Linear(2, 2), **settings)


# Not below 1e-6: the square of a very small one has no float64.
@given(
    base_lr=st.just(0.0) | st.floats(1e-6, 100.0),
    batch_size=st.integers(1, 2**20),
    base_batch_size=st.integers(1, 2**20),
)
def test_scaled_lr(base_lr, batch_size, base_batch_size):
    linear = scaled_lr(base_lr, batch_size, base_batch_size=base_batch_size)
    root = scaled_lr(base_lr, batch_size, base_batch_size=base_batch_size, rule="sqrt")
    assert_close(linear * base_batch_size, np.float64(base_lr * batch_size), "float64")
    assert_close(root**2 * base_batch_size, np.float64(base_lr**2 * batch_size), "float64")


def test_scaled_lr_of_the_recipes():
    assert scaled_lr(0.3, 4096) == pytest.approx(4.8, rel=1e-15)  # SimCLR
    assert scaled_lr(0.2, 4096) == pytest.approx(3.2, rel=1e-15)  # BYOL
    assert scaled_lr(0.075, 4096, base_batch_size=1, rule="sqrt") == pytest.approx(4.8, rel=1e-15)
    assert scaled_lr(0.3, 256) == scaled_lr(0.3, 256, rule="sqrt") == 0.3
    assert scaled_lr(0.3, np.int64(1024), rule="sqrt") == 0.6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"base_lr": -1.0}, ValueError, "`base_lr` must be >= 0, got -1.0. It is the learning rate at"),
        ({"base_lr": "0.3"}, TypeError, "`base_lr` must be a number, got '0.3'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be >= 1, got 0. It is the batch of all devices"),
        ({"batch_size": 256.0}, TypeError, "`batch_size` must be a whole number, got 256.0"),
        ({"base_batch_size": 0}, ValueError, "`base_batch_size` must be >= 1, got 0"),
        ({"rule": "cubic"}, ValueError, "`rule` must be one of 'linear', 'sqrt', got 'cubic'"),
    ],
    ids=str,
)
def test_scaled_lr_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        scaled_lr(**{"base_lr": 0.3, "batch_size": 4096, **arguments})


def test_examples_in_docstrings():
    result = doctest.testmod(schedules)
    assert result.attempted > 15
    assert result.failed == 0
