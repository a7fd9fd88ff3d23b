"""The batches, the optimizers, and what is measured."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradient_lars.cli.network import build_network, recompute_statistics
from gradient_lars.cli.recipe import Recipe
from gradient_lars.cli.schedule import build_schedule
from gradient_lars.cli.settings import n_steps
from gradient_lars.cli.training import Batch, batch_order, evaluate, fit

RECIPE = Recipe("sgd", 0.1, 16, 2, 3, momentum=0.9, weight_decay=5e-4, threshold=0.01, eps=1e-9)


def recipe(**changes):
    return Recipe(**{**vars(RECIPE), **changes})


@pytest.fixture
def train(arrays):
    x = (arrays["x_train"] - 100) / 20
    return Batch(torch.from_numpy(x)[:, None], torch.from_numpy(arrays["y_train"]))


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


def losses_of(network, train, pieces, smoothing=0.0):
    """The mean loss over the images of all pieces, each with its own batch statistics; one hot labels by hand."""
    total = 0
    for piece in pieces:
        logits = network(train.x[piece])
        target = torch.nn.functional.one_hot(train.y[piece], 3) * (1 - smoothing) + smoothing / 3
        total = total - (target * logits.log_softmax(1)).sum()
    return total / sum(map(len, pieces))


def test_micro_batches_give_the_gradient_of_the_whole_batch_with_their_own_statistics(train):
    one = recipe(batch_size=80, epochs=1, lr=0.5, micro_batch=30, label_smoothing=0.2)
    (batch,) = (indices for epoch in batch_order(96, one) for indices in epoch)
    before = build_network(1, 3, one.seed)
    pieces = [batch[:27], batch[27:54], batch[54:]]
    loss = losses_of(before, train, pieces, smoothing=0.2)
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    fitted = fit(one, train, 3)
    assert fitted.losses == (pytest.approx(loss.item(), rel=1e-5),)
    for (name, p), g in zip(before.named_parameters(), gradients, strict=True):
        expected = (p - 0.5 * (g + 5e-4 * p)).detach()
        found = fitted.network.state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text)
    whole = fit(recipe(**{**vars(one), "micro_batch": 0}), train, 3).network.state_dict()
    assert not torch.allclose(whole["conv1.weight"], fitted.network.state_dict()["conv1.weight"], rtol=1e-4, atol=1e-5)


def test_nesterov_is_the_gradient_and_the_momentum_after_it(train):
    one = recipe(optimizer="nesterov", batch_size=24, epochs=2, lr=0.05, weight_decay=0.01, schedule="polynomial")
    network = build_network(1, 3, one.seed)
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    batches = [indices for epoch in batch_order(96, one) for indices in epoch]
    factors = [(1 - step / 8) ** 2 for step in range(8)]
    for indices, factor in zip(batches, factors, strict=True):
        gradients = torch.autograd.grad(losses_of(network, train, [indices]), list(network.parameters()))
        with torch.no_grad():
            for p, g, v in zip(network.parameters(), gradients, velocity, strict=True):
                decayed = g + 0.01 * p
                v.mul_(0.9).add_(decayed)
                p.sub_(0.05 * factor * (decayed + 0.9 * v))
    fitted = fit(one, train, 3).network
    for (name, ours), expected in zip(fitted.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: n + text)


def test_only_matrices_are_adapted_on_request(train):
    rates = fit(recipe(optimizer="lars", adapt="matrices"), train, 3, record_rates=True).rates
    matrices = [name for name, p in build_network(1, 3, 0).named_parameters() if p.ndim > 1]
    assert list(dict.fromkeys(sample.layer for sample in rates)) == matrices
    one = recipe(optimizer="lars", adapt="matrices", batch_size=96, epochs=1, lr=0.05, weight_decay=0.01)
    before = build_network(1, 3, one.seed)
    gradients = torch.autograd.grad(losses_of(before, train, [range(96)]), list(before.parameters()))
    after = fit(one, train, 3).network.state_dict()
    for (name, p), g in zip(before.named_parameters(), gradients, strict=True):
        p_norm, g_norm = p.detach().double().norm().item(), g.double().norm().item()
        step = p_norm / (1e-9 + g_norm + 0.01 * p_norm) * (g + 0.01 * p) if p.ndim > 1 else g
        torch.testing.assert_close(
            after[name], (p - 0.05 * step).detach(), rtol=1e-4, atol=1e-6, msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("adapt", ["all", "matrices"])
def test_learning_rate_inside_the_momentum_is_that_of_its_gradient(train, adapt):
    one = recipe(optimizer="lars", batch_size=24, epochs=3, lr=0.05, weight_decay=0.01, adapt=adapt)
    one = recipe(**{**vars(one), "lr_in_momentum": True})
    network = build_network(1, 3, one.seed)
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    batches = [indices for epoch in batch_order(96, one) for indices in epoch]
    for step, indices in enumerate(batches):
        gradients = torch.autograd.grad(losses_of(network, train, [indices]), list(network.parameters()))
        with torch.no_grad():
            for p, g, v in zip(network.parameters(), gradients, velocity, strict=True):
                p_norm, g_norm = p.double().norm(), g.double().norm()
                chosen = adapt == "all" or p.ndim > 1
                rate = (p_norm / (1e-9 + g_norm + 0.01 * p_norm)).float() if chosen and p_norm > 0.01 else 1.0
                v.mul_(0.9).add_(0.05 * (1 - step / 12) * rate * (g + 0.01 * p * chosen))
                p.sub_(v)
    fitted = fit(one, train, 3, record_rates=True)
    for (name, ours), expected in zip(fitted.network.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: n + text)
    assert {sample.step for sample in fitted.rates} == set(range(12))


def test_bfloat16_rounds_the_gradients_and_not_the_weights(train):
    one = recipe(batch_size=96, epochs=1, lr=0.1)
    plain, rounded = (fit(recipe(**{**vars(one), "bf16": bf16}), train, 3).network for bf16 in (False, True))
    start = build_network(1, 3, one.seed)
    for (name, p), first, found in zip(plain.named_parameters(), start.parameters(), rounded.parameters(), strict=True):
        assert found.dtype == torch.float32
        moved, expected = (found - first).detach().flatten(), (p - first).detach().flatten()
        assert not torch.equal(moved, expected), name
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.98, name


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3]), (5, [3, 2]), (6, [2, 2, 2]), (7, [3, 2, 2])])
def test_no_piece_of_a_batch_has_a_single_image(train, monkeypatch, batch_size, sizes):
    seen = []
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: seen.append(len(x)) or x)
    fit(recipe(batch_size=batch_size, epochs=1, micro_batch=2), train, 3)
    assert seen[: 3 * len(sizes) : 3] == sizes  # of the three layers, which are called in turn


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # from PyTorch's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("micro_batch", [0, 10])
def test_compiled_training_is_that_without(train, monkeypatch, backend, micro_batch):
    one = recipe(optimizer="lars", lr=0.03, batch_size=20, micro_batch=micro_batch)
    plain = fit(one, train, 3)
    ran = []

    def compiled(model, original=torch.compile):
        module = original(model, backend=backend)
        module.register_forward_hook(lambda *_: ran.append(1))
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    found = fit(recipe(**{**vars(one), "compiled": True}), train, 3)
    assert len(ran) == n_steps(96, 20, 2) * (2 if micro_batch else 1)
    assert found.losses == pytest.approx(plain.losses, rel=1e-4)
    for (name, p), expected in zip(found.network.named_parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: n + text)


def test_augmented_images_are_trained_on_and_the_run_repeats(train):
    runs = [fit(recipe(augment=kind), train, 3).network[0].weight for kind in ("shift-flip", "shift-flip", "none")]
    assert torch.equal(runs[0], runs[1])
    assert not torch.allclose(runs[0], runs[2], rtol=1e-3)


def test_statistics_are_left_as_training_made_them_on_request(train):
    plain, kept = (fit(recipe(recompute_norm=value), train, 3).network for value in (True, False))
    assert torch.equal(plain[0].weight, kept[0].weight)
    assert kept[1].num_batches_tracked == n_steps(96, 16, 2)
    assert plain[1].num_batches_tracked == 1
    assert not torch.allclose(plain[1].running_mean, kept[1].running_mean, rtol=1e-2)


@pytest.mark.parametrize(("kind", "convolutions"), [("small", 3), ("medium", 3), ("vgg", 6)])
def test_networks_take_small_and_large_images(kind, convolutions):
    network = build_network(3, 7, seed=0, kind=kind)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network) == convolutions
    for size in (8, 28):
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 7)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
