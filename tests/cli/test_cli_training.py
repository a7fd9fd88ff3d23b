"""The schedule, the batches, the two optimizers, and what is measured."""

import math

import numpy as np
import pytest
import torch

from gradient_lars.cli.network import build_network, recompute_statistics
from gradient_lars.cli.settings import n_steps
from gradient_lars.cli.training import Batch, Recipe, batch_order, build_schedule, evaluate, fit, warm_up_steps

RECIPE = Recipe("sgd", 0.1, 16, 2, 3, momentum=0.9, weight_decay=5e-4, threshold=0.01, eps=1e-9)


def recipe(**changes):
    return Recipe(**{**vars(RECIPE), **changes})


@pytest.fixture
def train(arrays):
    x = (arrays["x_train"] - 100) / 20
    return Batch(torch.from_numpy(x)[:, None], torch.from_numpy(arrays["y_train"]))


@pytest.mark.parametrize("steps", [1, 2, 14, 20, 47, 320])
def test_schedule_warms_up_and_decays_linearly(steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = build_schedule(optimizer, steps)
    warm_up = max(1, round(steps / 10))
    assert warm_up_steps(steps) == warm_up
    for step in range(steps):
        if warm_up == 1:
            expected = 1 - step / steps
        elif step < warm_up:
            expected = (step + 1) / warm_up
        else:
            expected = 1 - (step - warm_up) / (steps - warm_up)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * expected, rel=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("batch", "expected"), [(16, 12), (50, 2), (96, 2), (17, 10)])
def test_steps_leave_out_the_rest_of_an_epoch(batch, expected):
    assert n_steps(96, batch, 2) == expected
    epochs = [list(epoch) for epoch in batch_order(96, recipe(batch_size=batch))]
    assert sum(map(len, epochs)) == expected
    assert all(len(indices) == batch for epoch in epochs for indices in epoch)
    assert all(len(set(torch.cat(epoch).tolist())) == len(epoch) * batch for epoch in epochs)


def test_batches_and_weights_are_those_of_the_seed_for_both_optimizers():
    def order(one):
        return [indices.tolist() for epoch in batch_order(96, one) for indices in epoch]

    assert order(recipe()) == order(recipe(optimizer="lars", lr=7.0))
    assert order(recipe()) != order(recipe(seed=4))
    state = torch.get_rng_state()
    first, again, other = (build_network(1, 3, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_first_step_is_the_formula(train, optimizer):
    one = recipe(optimizer=optimizer, batch_size=96, epochs=1, lr=0.05, weight_decay=0.01, threshold=0.5)
    before = build_network(1, 3, one.seed)
    loss = torch.nn.functional.cross_entropy(before(train.x), train.y)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    after = fit(one, train, 3).network.state_dict()
    adapted = 0
    for (name, p), g in zip(before.named_parameters(), gradients, strict=True):
        p_norm, g_norm = np.linalg.norm(p.detach().double()), np.linalg.norm(g.double())
        rate = p_norm / (1e-9 + g_norm + 0.01 * p_norm) if optimizer == "lars" and p_norm > 0.5 else 1.0
        adapted += rate != 1
        expected = p - 0.05 * rate * (g + 0.01 * p)
        torch.testing.assert_close(
            after[name], expected.detach(), rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text
        )
    assert adapted == (7 if optimizer == "lars" else 0)


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_same_recipe_twice_gives_the_same_weights(train, optimizer):
    first, second = (fit(recipe(optimizer=optimizer), train, 3).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns(train):
    fitted = fit(recipe(epochs=6), train, 3)
    accuracy, loss = evaluate(fitted.network, train)
    assert (accuracy, fitted.diverged) == (pytest.approx(1.0, abs=0.02), False)
    assert loss < 0.3


def test_rates_are_recorded_evenly_for_lars_only(train, monkeypatch):
    monkeypatch.setattr("gradient_lars.cli.training.RECORDED_STEPS", 5)
    rates = fit(recipe(optimizer="lars"), train, 3, record_rates=True).rates
    assert sorted({sample.step for sample in rates}) == [0, 3, 6, 9]  # of 12 steps
    names = [name for name, _ in build_network(1, 3, 0).named_parameters()]
    assert [sample.layer for sample in rates] == names * 4
    for sample in rates:
        expected = sample.p_norm / (1e-9 + sample.g_norm + 5e-4 * sample.p_norm) if sample.p_norm > 0.01 else 1
        assert sample.rate == pytest.approx(expected, rel=1e-4)
        assert sample.adapted == (sample.p_norm > 0.01)
    assert fit(recipe(optimizer="sgd"), train, 3, record_rates=True).rates == ()
    assert fit(recipe(optimizer="lars"), train, 3).rates == ()


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_trajectory_is_momentum_on_the_schedule(train, optimizer):
    one = recipe(optimizer=optimizer, batch_size=24, epochs=5, lr=0.05, weight_decay=0.01)
    network = build_network(1, 3, one.seed)
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    batches = [indices for epoch in batch_order(96, one) for indices in epoch]
    factors = [0.5, 1.0] + [1 - step / 18 for step in range(18)]
    for indices, factor in zip(batches, factors, strict=True):
        loss = torch.nn.functional.cross_entropy(network(train.x[indices]), train.y[indices])
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for p, g, v in zip(network.parameters(), gradients, velocity, strict=True):
                p_norm, g_norm = p.double().norm(), g.double().norm()
                adapted = optimizer == "lars" and p_norm > 0.01
                rate = (p_norm / (1e-9 + g_norm + 0.01 * p_norm)).float() if adapted else 1.0
                v.mul_(0.9).add_(rate * (g + 0.01 * p))
                p.sub_(0.05 * factor * v)
    fitted = fit(one, train, 3).network
    for (name, ours), expected in zip(fitted.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: n + text)
    with torch.no_grad():
        outputs = fitted[0](train.x)
    torch.testing.assert_close(fitted[1].running_mean, outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_diverged_run_stops_training_but_counts_every_epoch(train, monkeypatch):
    schedules, epochs = [], []

    def build(*arguments):
        schedules.append(build_schedule(*arguments))
        return schedules[0]

    monkeypatch.setattr("gradient_lars.cli.training.build_schedule", build)
    fitted = fit(recipe(lr=1e30, epochs=4), train, 3, on_epoch=lambda: epochs.append(1))
    assert fitted.diverged
    assert len(epochs) == 4
    assert schedules[0].last_epoch == 6  # the steps of one epoch
    accuracy, loss = evaluate(fitted.network, train)
    assert loss == math.inf
    assert accuracy == pytest.approx(1 / 3)


def test_recomputed_statistics_are_those_of_the_data(train, monkeypatch):
    monkeypatch.setattr("gradient_lars.cli.network._CHUNK", 33)  # three equal chunks of 32
    network = build_network(1, 3, 0)
    network[1].running_mean.fill_(99.0)
    recompute_statistics(network, train.x)
    with torch.no_grad():
        outputs = network[0](train.x)
    torch.testing.assert_close(network[1].running_mean, outputs.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    chunks = torch.stack([chunk.var((0, 2, 3)) for chunk in outputs.chunk(3)])
    torch.testing.assert_close(network[1].running_var, chunks.mean(0), rtol=1e-4, atol=1e-5)
    assert network[1].momentum == 0.1


def test_evaluation_is_exact_over_chunks_and_leaves_statistics_alone(train, monkeypatch):
    network = build_network(1, 3, 0)
    recompute_statistics(network, train.x)
    before = network[1].running_mean.clone()
    with torch.no_grad():
        outputs = network.eval()(train.x)
    expected = torch.nn.functional.cross_entropy(outputs, train.y).item()
    correct = (outputs.argmax(1) == train.y).sum().item()
    network.train()
    monkeypatch.setattr("gradient_lars.cli.training._EVALUATION_CHUNK", 40)
    accuracy, loss = evaluate(network, train)
    assert accuracy == correct / 96
    assert loss == pytest.approx(expected, rel=1e-5)
    assert torch.equal(network[1].running_mean, before)
