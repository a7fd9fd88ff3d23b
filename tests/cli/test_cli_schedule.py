"""The learning rate of every step, against its formula."""

import math

import pytest
import torch

from gradient_lars.cli.recipe import SCHEDULES
from gradient_lars.cli.schedule import build_schedule, warm_up_steps


def factors(steps, *arguments):
    """The learning rate of each step as a share of the optimizer's own, and after the last one."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, steps, *arguments)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    return found, optimizer.param_groups[0]["lr"] / 2


@pytest.mark.parametrize("steps", [1, 2, 14, 20, 47, 320])
def test_schedule_warms_up_and_decays_linearly(steps):
    first = max(1, round(steps / 10))
    assert warm_up_steps(steps) == first
    if first == 1:
        expected = [1 - step / steps for step in range(steps)]
    else:
        expected = [(step + 1) / first for step in range(first)]
        expected += [1 - step / (steps - first) for step in range(steps - first)]
    assert factors(steps) == (pytest.approx(expected, rel=1e-9), pytest.approx(0, abs=1e-9))


@pytest.mark.parametrize(("steps", "share", "first"), [(1, 0.1, 1), (20, 0.1, 2), (20, 0.3, 6), (47, 0, 1)])
@pytest.mark.parametrize(
    ("kind", "decay"),
    [("polynomial", lambda s: (1 - s) ** 2), ("cosine", lambda s: (1 + math.cos(math.pi * s)) / 2)],
)
def test_other_decays_begin_at_the_first_full_step_and_end_at_zero(kind, decay, steps, share, first):
    expected = [(step + 1) / first for step in range(first)]
    expected += [decay(step / (steps - first + 1)) for step in range(1, steps - first + 1)]
    assert factors(steps, kind, share) == (pytest.approx(expected, rel=1e-9), pytest.approx(0, abs=1e-9))


def test_tvlars_starts_high_without_a_warm_up_and_ends_at_a_hundredth():
    found, end = factors(100, "tvlars", 0.2)
    assert found[20] == pytest.approx(0.5)
    assert found[0] == pytest.approx(1 / (1 + math.exp(-20 * math.log(99) / 80)))
    assert end == pytest.approx(0.01)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_every_schedule_fits_into_the_fewest_steps(kind, share):
    for steps in (1, 2, 3):
        found, _ = factors(steps, kind, share)
        assert all(0 < factor <= 1 for factor in found)
