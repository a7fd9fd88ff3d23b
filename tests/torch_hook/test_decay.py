"""Weight decay in one place: refused in two, or absorbed into the rate and given back whatever happens."""

import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close, lars
from torch_cases import PATHS, to_numpy


def _two_groups(**options):
    generator = torch.Generator().manual_seed(8)
    a, b = (torch.nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2))
    groups = [{"params": [("a", a)], "weight_decay": 0.3}, {"params": [("b", b)], "weight_decay": 0.0}]
    return a, b, torch.optim.SGD(groups, lr=0.1, **options)


def _fill(*params, seed=9):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def _decays(optimizer):
    return [group["weight_decay"] for group in optimizer.param_groups]


def test_decay_in_both_places_is_refused_with_both_figures_and_the_remedy():
    _, _, optimizer = _two_groups()
    with pytest.raises(ValueError, match=r"`weight_decay` is 0.1 in the hook and 0.3 in .*absorb_weight_decay=True"):
        add_hook(optimizer, GradientLARS(weight_decay=0.1))
    with pytest.raises(ValueError, match="would act twice"):
        add_hook(optimizer, GradientLARS(weight_decay=0.1), absorb_weight_decay=True)


def test_decay_in_both_places_of_parameters_not_selected_is_fine():
    _, b, optimizer = _two_groups()
    add_hook(optimizer, GradientLARS(weight_decay=0.1), params=[b])


def test_a_decay_that_appears_later_is_refused_before_anything_changes():
    a, b, optimizer = _two_groups()
    hook = GradientLARS()
    add_hook(optimizer, hook)
    _fill(a, b)
    before = [p.detach().clone() for p in (a, b, a.grad, b.grad)]
    hook.weight_decay = 0.1
    with pytest.raises(ValueError, match="would act twice"):
        optimizer.step()
    for now, then in zip((a, b, a.grad, b.grad), before, strict=True):
        assert torch.equal(now, then)


def test_without_absorbing_the_group_decays_unscaled():
    a, b, optimizer = _two_groups()
    add_hook(optimizer, GradientLARS())
    _fill(a, b)
    expected = to_numpy(a) - 0.1 * (lars(to_numpy(a), to_numpy(a.grad)).grad + 0.3 * to_numpy(a))
    optimizer.step()
    assert_close(to_numpy(a), expected, "float32")


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_absorbed_decay_enters_the_rate_and_is_not_applied_again(path, maximize, closure):
    a, b, optimizer = _two_groups(maximize=maximize)
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=True, path=path)
    sign = -1 if maximize else 1
    for step in range(3):
        _fill(a, b, seed=step)
        expected = [
            to_numpy(p) - 0.1 * lars(to_numpy(p), sign * to_numpy(p.grad), weight_decay=decay).grad
            for p, decay in [(a, 0.3), (b, 0.0)]
        ]
        if closure:
            optimizer.step(lambda step=step: _fill(a, b, seed=step))
        else:
            optimizer.step()
        assert _decays(optimizer) == [0.3, 0.0]
        for p, e in zip((a, b), expected, strict=True):
            assert_close(to_numpy(p), e, "float32")


def test_the_hooks_decay_serves_groups_that_have_none():
    a, b, optimizer = _two_groups()
    optimizer.param_groups[0]["weight_decay"] = 0
    add_hook(optimizer, GradientLARS(weight_decay=0.2), absorb_weight_decay=True)
    _fill(a, b)
    expected = to_numpy(b) - 0.1 * lars(to_numpy(b), to_numpy(b.grad), weight_decay=0.2).grad
    optimizer.step()
    assert_close(to_numpy(b), expected, "float32")


def test_a_group_without_decay_of_its_own_is_fine():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        def step(self):
            self.ran = True

    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = Plain([param])
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    optimizer.step()
    assert optimizer.ran
    assert "weight_decay" not in optimizer.param_groups[0]


def test_a_group_whose_decay_is_none_has_none():
    a, _, optimizer = _two_groups()
    optimizer.param_groups[0]["weight_decay"] = None
    add_hook(optimizer, GradientLARS(weight_decay=0.1), params=[a])


def test_a_decay_set_within_the_step_stays():
    a, b, optimizer = _two_groups()
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)

    def closure():
        _fill(a, b)
        optimizer.param_groups[0]["weight_decay"] = 0.7

    optimizer.step(closure)
    assert _decays(optimizer) == [0.7, 0.0]


def test_the_decay_stays_absorbed_until_a_step_around_the_parents_step_ends():
    class Around(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.seen = _decays(self)

    a, _, _ = _two_groups()
    torch.optim.SGD([a])
    optimizer = Around([a], lr=0.1, weight_decay=0.3)
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    _fill(a)
    optimizer.step()
    assert optimizer.seen == [0.0]
    assert _decays(optimizer) == [0.3]


class Failing(torch.optim.SGD):
    """Raises after its parent's step, or before it."""

    fail = ""

    def step(self, closure=None):
        if self.fail == "before":
            raise RuntimeError("out of memory")
        loss = super().step(closure)
        if self.fail == "after":
            raise RuntimeError("out of memory")
        return loss


@pytest.mark.parametrize("fail", ["before", "after", "closure", "gradient", "later hook"])
def test_decay_comes_back_when_the_step_raises_and_the_next_step_is_right(fail):
    a, b, _ = _two_groups()
    optimizer = Failing([{"params": [a], "weight_decay": 0.3}, {"params": [b]}], lr=0.1)
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    _fill(a, b)

    def broken(*_):
        raise RuntimeError("out of memory")

    match = "out of memory"
    if fail == "gradient":
        a.grad = torch.ones(1, 1).expand(4, 3)
        match = "expanded"
    elif fail == "later hook":
        add_hook(optimizer, broken)
    else:
        optimizer.fail = fail
    with pytest.raises((RuntimeError, ValueError), match=match):
        optimizer.step(broken if fail == "closure" else None)
    assert _decays(optimizer) == [0.3, 0]
    if fail == "later hook":
        return
    optimizer.fail = ""
    _fill(a, b)
    expected = to_numpy(a) - 0.1 * lars(to_numpy(a), to_numpy(a.grad), weight_decay=0.3).grad
    optimizer.step()
    assert_close(to_numpy(a), expected, "float32")
    assert _decays(optimizer) == [0.3, 0]


def test_a_step_function_taken_before_the_hook_heals_at_the_next_step():
    # Such a function goes round the wrapper that restores; the decay is back at the next step at the latest.
    a, b, optimizer = _two_groups()
    old_step = optimizer.step
    handle = add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    _fill(a, b)
    broken = optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        old_step()
    broken.remove()
    _fill(a, b)
    expected = to_numpy(a) - 0.1 * lars(to_numpy(a), to_numpy(a.grad), weight_decay=0.3).grad
    old_step()
    assert_close(to_numpy(a), expected, "float32")
    assert _decays(optimizer) == [0.3, 0.0]
    handle.remove()


def test_absorbing_needs_whole_groups():
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([("a", a), ("b", b)], lr=0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="leaves out 'b' of a group.*groups of their own"):
        add_hook(optimizer, GradientLARS(), params=[a], absorb_weight_decay=True)


@pytest.mark.parametrize("order", ["scheduler first", "hook first"])
def test_absorbing_lives_with_a_scheduler_in_either_order(order):
    a, b, optimizer = _two_groups()
    if order == "hook first":
        handle = add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    if order == "scheduler first":
        handle = add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    for step in range(2):
        _fill(a, b, seed=step)
        expected = to_numpy(a) - 0.1 * 0.5**step * lars(to_numpy(a), to_numpy(a.grad), weight_decay=0.3).grad
        optimizer.step()
        scheduler.step()
        assert_close(to_numpy(a), expected, "float32")
    handle.remove()
    _fill(a, b)
    expected = to_numpy(a) - 0.025 * (to_numpy(a.grad) + 0.3 * to_numpy(a))
    optimizer.step()
    scheduler.step()
    assert_close(to_numpy(a), expected, "float32")


def test_two_absorbing_hooks_on_groups_of_their_own():
    a, b, optimizer = _two_groups()
    optimizer.param_groups[1]["weight_decay"] = 0.2
    first = add_hook(optimizer, GradientLARS(), name="a", params=[a], absorb_weight_decay=True)
    second = add_hook(optimizer, GradientLARS(threshold=100.0), name="b", params=[b], absorb_weight_decay=True)
    _fill(a, b)
    expected = [
        to_numpy(a) - 0.1 * lars(to_numpy(a), to_numpy(a.grad), weight_decay=0.3).grad,
        to_numpy(b) - 0.1 * (to_numpy(b.grad) + 0.2 * to_numpy(b)),
    ]
    optimizer.step()
    for p, e in zip((a, b), expected, strict=True):
        assert_close(to_numpy(p), e, "float32")
    assert _decays(optimizer) == [0.3, 0.2]
    first.remove()
    second.remove()
    _fill(a, b)
    optimizer.step()
    assert _decays(optimizer) == [0.3, 0.2]
