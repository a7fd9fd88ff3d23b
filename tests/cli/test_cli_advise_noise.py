"""The estimator of the noise scale against a case where it is known exactly."""

import math

import pytest
import torch

from gradient_lars.cli.advise_noise import (
    noise_scale,
    pooled,
    samples_factor,
    split_curvature,
    split_signal,
    steps_factor,
)

SMALL, NUMBER, STEPS = 4, 4, 100
BIG = SMALL * NUMBER


class Quadratic:
    """A loss ``(w - x)^T H (w - x) / 2`` of samples x with known mean and covariance: G, Sigma and H are exact."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.hessian = torch.diag(torch.linspace(0.5, 3.0, 6, dtype=torch.float64))
        self.offset = 0.4 * torch.randn(6, generator=generator, dtype=torch.float64)
        self.root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.mean = self.hessian @ self.offset
        factor = self.hessian @ self.root
        self.covariance = factor @ factor.T

    @property
    def simple(self):
        return (self.covariance.trace() / self.mean.square().sum()).item()

    @property
    def noise(self):
        return ((self.hessian @ self.covariance).trace() / (self.mean @ self.hessian @ self.mean)).item()

    def gradients(self, seed, steps=STEPS):
        """Gradients of the small batches, (steps, number, 6)."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(steps, NUMBER, SMALL, 6, generator=generator, dtype=torch.float64) @ self.root.T
        return ((self.offset + x) @ self.hessian).mean(2)

    def simple_parts(self, seed, steps=STEPS):
        gradients = self.gradients(seed, steps)
        small, big = gradients.square().sum(2).mean(1), gradients.mean(1).square().sum(1)
        return split_signal(small, big, SMALL, BIG)

    def curved_parts(self, seed):
        gradients = self.gradients(seed)
        mean = gradients.mean(1)
        forms = [torch.einsum("si,ij,sj->s", v, self.hessian, v) for v in (mean, gradients[:, 0] - mean)]
        return split_curvature(*forms, SMALL, NUMBER)


@pytest.fixture(scope="module")
def quadratic():
    return Quadratic()


def assert_within_errors(values, expected):
    """The mean of independent, unbiased `values` is within 4 standard errors of `expected`."""
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean().item() - expected) < 4 * error.item()


def test_the_assertion_can_fail(quadratic):
    signal, _ = quadratic.simple_parts(0)
    with pytest.raises(AssertionError):
        assert_within_errors(signal, 2 * quadratic.mean.square().sum().item() + 10)


def test_both_pairs_are_without_bias(quadratic):
    signal, noise = (torch.cat(parts) for parts in zip(*map(quadratic.simple_parts, range(40)), strict=True))
    assert_within_errors(signal, quadratic.mean.square().sum().item())
    assert_within_errors(noise, quadratic.covariance.trace().item())
    signal, noise = (torch.cat(parts) for parts in zip(*map(quadratic.curved_parts, range(40)), strict=True))
    assert_within_errors(signal, (quadratic.mean @ quadratic.hessian @ quadratic.mean).item())
    assert_within_errors(noise, (quadratic.hessian @ quadratic.covariance).trace().item())


@pytest.mark.parametrize(("parts", "truth"), [("simple_parts", "simple"), ("curved_parts", "noise")])
def test_error_bars_cover_the_truth(quadratic, parts, truth):
    expected = getattr(quadratic, truth)
    scales = [noise_scale(*getattr(quadratic, parts)(seed)) for seed in range(100)]
    covered = sum(scale.low <= expected <= scale.high for scale in scales)
    assert covered >= 87  # of 100 draws with a chance of 0.95 each, 3.7 standard deviations below the mean
    assert all(scale.low < scale.value < scale.high for scale in scales)


def test_half_the_interval_covers_less(quadratic):
    """The check of the coverage can fail: intervals of half the width miss the truth too often."""
    scales = [noise_scale(*quadratic.simple_parts(seed)) for seed in range(100)]
    halves = [((s.low + s.value) / 2, (s.value + s.high) / 2) for s in scales]
    assert sum(low <= quadratic.simple <= high for low, high in halves) < 87


@pytest.mark.parametrize(("steps", "percent"), [(10, 88), (30, 93), (100, 94)])
def test_error_bars_of_few_steps_cover_less(quadratic, steps, percent):
    """The figures of docs/advise.md, to a point."""
    scales = [noise_scale(*quadratic.simple_parts(seed, steps)) for seed in range(400)]
    covered = sum(scale.low <= quadratic.simple <= scale.high for scale in scales)
    assert abs(covered / 4 - percent) <= 1


def test_two_batch_sizes_are_the_variance_of_the_small_ones(quadratic):
    gradients = quadratic.gradients(0)
    _, noise = quadratic.simple_parts(0)
    torch.testing.assert_close(noise, SMALL * gradients.var(1).sum(1))


def test_exact_expectations_give_the_exact_parts():
    signal, noise = split_signal(
        torch.tensor([2.0 + 12.0 / 4], dtype=torch.float64), torch.tensor([2.0 + 12.0 / 16], dtype=torch.float64), 4, 16
    )
    torch.testing.assert_close(torch.cat([signal, noise]), torch.tensor([2.0, 12.0], dtype=torch.float64))


def test_the_means_come_before_the_quotient():
    signal = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert noise_scale(signal, torch.tensor([4.0, 4.0], dtype=torch.float64)).value == 2.0


def test_a_hidden_gradient_is_infinite():
    ones = torch.ones(50, dtype=torch.float64)
    hidden = noise_scale(-ones, ones)
    assert (hidden.value, hidden.low, hidden.high) == (math.inf, math.inf, math.inf)
    doubtful = noise_scale(torch.linspace(-1, 1.1, 50, dtype=torch.float64), ones)
    assert math.isfinite(doubtful.low)
    assert doubtful.high == math.inf


def test_stretches_are_pooled_by_their_sums(quadratic):
    parts = [quadratic.simple_parts(seed) for seed in range(3)]
    signal, noise = (torch.cat(side) for side in zip(*parts, strict=True))
    whole = pooled([noise_scale(*part) for part in parts])
    assert whole.value == pytest.approx((noise.sum() / signal.sum()).item(), rel=1e-12)
    assert (whole.signal, whole.noise) == pytest.approx((signal.mean().item(), noise.mean().item()), rel=1e-12)
    assert whole.low < quadratic.simple < whole.high
    assert len(whole.steps) == 3 * STEPS


def test_the_steps_are_drawn_within_their_stretch():
    """What differs between the stretches only is no error."""
    constant = [torch.full((20,), value, dtype=torch.float64) for value in (1.0, 10.0, 100.0)]
    whole = pooled([noise_scale(signal, 0 * signal + 37) for signal in constant])
    assert (whole.value, whole.low, whole.high) == pytest.approx((1.0, 1.0, 1.0))


def test_no_signal_and_no_noise_is_no_number():
    zeros = torch.zeros(20, dtype=torch.float64)
    scale = noise_scale(zeros, zeros)
    assert all(math.isnan(value) for value in (scale.value, scale.low, scale.high))
    once = zeros.clone()
    once[0] = 1.0
    for seed in range(10):  # a third of the draws have neither
        rare = noise_scale(once, 3 * once, seed=seed)
        assert (rare.value, rare.low, rare.high) == pytest.approx((3.0, 3.0, 3.0))


def test_no_noise_is_zero():
    ones = torch.ones(50, dtype=torch.float64)
    scale = noise_scale(ones, 0 * ones)
    assert (scale.value, scale.low, scale.high) == (0.0, 0.0, 0.0)


def test_the_trade_off_at_the_noise_scale():
    assert steps_factor(64, 64) == samples_factor(64, 64) == 2
    assert steps_factor(16, 64) == 5
    assert samples_factor(16, 64) == 1.25
    assert samples_factor(16, 0.0) == math.inf
    assert samples_factor(16, math.inf) == 1


def test_mistakes():
    one = torch.ones(3)
    with pytest.raises(ValueError, match="`big_batch` must be > `small_batch` >= 1, got 4 and 4"):
        split_signal(one, one, 4, 4)
    with pytest.raises(ValueError, match="`number` must be >= 2, got 1"):
        split_curvature(one, one, 4, 1)
    with pytest.raises(ValueError, match="must be of the same two steps or more"):
        noise_scale(one[:1], one[:1])
    with pytest.raises(ValueError, match="must be of the same two steps or more"):
        noise_scale(one, one[:2])
