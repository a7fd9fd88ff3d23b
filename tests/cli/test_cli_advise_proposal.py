"""What `gradient-lars advise` proposes and prints, from noise scales that are given."""

import math
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch.utils.data import TensorDataset

from gradient_lars.cli.advise_measure import SIMPLE, WITH_HESSIAN, Estimate, Measured
from gradient_lars.cli.advise_noise import noise_scale
from gradient_lars.cli.advise_proposal import counted, propose
from gradient_lars.cli.advise_report import print_report
from gradient_lars.cli.advise_settings import AdviseSettings
from gradient_lars.cli.advise_task import Task
from gradient_lars.torch import LARS, warmup_polynomial

STEADY = (0.9, 1.1)  # the signal's share, step by step: a narrow interval
DOUBTFUL = (-3.0, 5.0)  # mean 1 too, but hidden in some draws


def settings_of(**changed):
    values = {"steps": None, "micro_batch": 32, "micro_batches": 8, "epochs": 20, "base_lr": 10.5, "base_batch": 3264}
    fixed = {"task": None, "data": "digits", "data_dir": None, "hessian": True, "device": "cpu", "seed": 0, "out": None}
    return AdviseSettings(**{**fixed, **values, **changed})


def task_of(n):
    return Task("t", torch.nn.Linear(1, 1), TensorDataset(torch.ones(n, 1)), lambda model, batch: batch)


def scale_of(signal, noise, shares=STEADY, steps=40):
    """A noise scale whose steps have `signal` times one of two shares in turn."""
    factors = torch.tensor(shares, dtype=torch.float64).repeat(steps // 2)
    return noise_scale(signal * factors, torch.full((steps,), float(noise), dtype=torch.float64))


def estimates_of(*scales, estimator=SIMPLE):
    names = ("start", "middle", "end")
    bounds = [sum(len(scale.steps) for scale in scales[:i]) for i in range(4)]
    return [
        Estimate(name, first + 1, last, estimator, scale, 1.0)
        for name, scale, first, last in zip(names, scales, bounds[:-1], bounds[1:], strict=True)
    ]


def constant(value, shares=STEADY):
    return estimates_of(*[scale_of(1.0, value, shares)] * 3)


def proposed(found, n=4096, **changed):
    return propose(found, task_of(n), settings_of(**changed))


def report_of(found, n=4096, **changed):
    task, settings, text = task_of(n), settings_of(**changed), StringIO()
    nothing = torch.zeros(0)
    no_hessian = "" if any(estimate.estimator == WITH_HESSIAN for estimate in found) else "left out, as asked"
    measured = Measured(nothing, nothing, nothing, nothing, nothing, no_hessian)
    console = Console(file=text, width=80)
    print_report(console, task, settings, measured, found, propose(found, task, settings))
    return " ".join(text.getvalue().split())


def test_the_sums_over_all_the_steps_decide():
    """Scales of 10, 100 and 1,000: the sums give (1000 + 1000 + 1000) / (100 + 10 + 1) = 27, the end 1,000."""
    found = estimates_of(scale_of(100, 1000), scale_of(10, 1000), scale_of(1, 1000))
    proposal = proposed(found)
    assert proposal.batch == 32
    assert "near the noise scale of all the steps, 27," in proposal.reasons[0]
    assert "B_simple 27" in report_of(found)


@pytest.mark.parametrize(
    ("value", "batch", "match", "absent"),
    [
        (731, 512, "near the noise scale of all the steps, 731,", "whole data set"),
        (1023, 512, "near the noise scale of all the steps, 1023,", "whole data set"),
        (1024, 1024, "all 1024 samples are no more than the noise scale of all the steps, 1024:", "near"),
        (5000, 1024, "all 1024 samples are no more than the noise scale of all the steps, 5000:", "near"),
    ],
)
def test_all_the_samples_in_one_batch_only_where_the_scale_reaches_them(value, batch, match, absent):
    proposal = proposed(constant(value), n=1024)
    assert proposal.batch == batch
    assert match in proposal.reasons[0]
    assert absent not in proposal.reasons[0]


def test_the_interval_stands_beside_the_batch():
    found = constant(100)
    text = proposed(found).reasons[0]
    scale = [word for word in text.split() if word.replace(".", "").isdigit()][-2:]
    assert text.endswith(f"Anything from {scale[0]} to {scale[1]} fits its interval.")
    assert 95 < float(scale[0]) < 100 < float(scale[1]) < 105
    assert "to all 101 fits" in proposed(found, n=101).reasons[0]
    assert proposed(constant(5000), n=1024).reasons[0].endswith("Its interval says so too.")


def test_an_interval_without_an_end_makes_the_batch_a_guess():
    found = estimates_of(*[scale_of(1.0, 144, (-9.0, 11.0), 20)] * 3)
    text = proposed(found).reasons[0]
    assert "up fits its interval: the noise may hide the gradient, so this batch is a guess." in text
    assert "Give more --micro-batches or --steps." in text


def test_the_lower_end_where_the_noise_hides_the_gradient():
    hidden = constant(144, (-1.0, 0.9))
    assert proposed(hidden) is None
    text = report_of(hidden)
    low = float(text.split("It is above ")[1].split(",")[0])
    assert 144 < low < math.inf
    assert "batches up to that size pay" in text
    assert "no lower end" in report_of(constant(144, (-1.0, -0.9)))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (0, "No proposal: the noise scale is 0, below a single sample:"),
        (0.5, "No proposal: the noise scale is 0.5, below a single sample:"),
    ],
)
def test_a_scale_below_one_sample(value, match):
    text = report_of(constant(value))
    assert match in text
    assert "inf" not in text
    assert "twice the fewest" not in text


def test_no_gradient_at_all():
    found = estimates_of(*[scale_of(0, 0)] * 3)
    text = report_of(found)
    assert "B_simple 0 / 0 none" in text
    assert "No proposal: the gradient is 0 in every step, and so is its noise" in text


def test_no_curvature_is_told_of():
    found = constant(100) + estimates_of(*[scale_of(0, 0)] * 3, estimator=WITH_HESSIAN)
    text = report_of(found)
    assert "B_noise is 0 / 0: the loss has no curvature along the gradients." in text
    assert "B_noise inf" not in text
    assert "0 / 0" not in report_of(constant(100) + estimates_of(*[scale_of(1, 9)] * 3, estimator=WITH_HESSIAN))


@pytest.mark.parametrize(
    ("start", "end", "share", "match"),
    [
        (scale_of(1, 50), scale_of(1, 1000), 0.1, "The noise scale grew from 50 at the start to 1000 at the end: at"),
        (scale_of(1, 50), scale_of(1, 100), 2 / 37, "The noise scale grew from 50 at the start to 100 at the end."),
        (scale_of(1, 100), scale_of(1, 50), 2 / 37, "The noise scale fell from 100 at the start to 50 at the end."),
        (
            scale_of(1, 50),
            scale_of(1, 50.5),
            2 / 37,
            "went from 50 at the start to 50.5 at the end, no more than their",
        ),
        (scale_of(1, 50), scale_of(1, 300, DOUBTFUL), 2 / 37, "The noise scale"),
        (scale_of(1, 50, (-1, 0.9)), scale_of(1, 50), 2 / 37, "not known: noise hides the gradient at the start."),
        (scale_of(1, 50), scale_of(1, 10, (-1, 0.9)), 2 / 37, "not known: noise hides the gradient at the end."),
        (scale_of(1, 50), scale_of(1, 1000, (-1, 0.9)), 0.1, "grew from 50 at the start to more than"),
        (scale_of(1, 0), scale_of(1, 50), 0.1, "The noise scale grew from 0 at the start to 50 at the end"),
    ],
)
def test_the_warm_up_and_what_the_noise_scale_did(start, end, share, match):
    proposal = proposed(estimates_of(start, scale_of(3, 300), end))
    assert proposal.warm_up == max(1, round(share * proposal.steps))
    assert match in proposal.reasons[2]
    assert "-fold" not in proposal.reasons[2]


@pytest.mark.parametrize("epochs", [1, 2, 20])
@pytest.mark.parametrize("value", [300, 5000])
def test_the_printed_code_runs(value, epochs):
    found = constant(value)
    proposal = proposed(found, n=1024, epochs=epochs)
    text = report_of(found, n=1024, epochs=epochs)
    names = {"LARS": LARS, "warmup_polynomial": warmup_polynomial, "params": torch.nn.Linear(2, 2).parameters()}
    exec("from gradient_lars import presets", names)
    lines = [
        f"lr = {proposal.lr:.3g}",
        f"optimizer = LARS(params, lr=lr, **presets.{proposal.preset})",
        f"warmup_polynomial(optimizer, warmup_steps={proposal.warm_up}, total_steps={proposal.steps})",
    ]
    assert lines[0] in text
    assert f"{lines[1]} {lines[2]}" in text
    exec("\n".join(lines), names)


def test_the_text_and_the_code_name_the_same_rates():
    found = constant(300)
    lr = proposed(found).lr
    text = report_of(found)
    assert f"(try {3 * lr:.3g}, {10 * lr:.3g})" in text
    assert f"lr = {lr:.3g} # and {3 * lr:.3g} and {10 * lr:.3g}, keeping the best" in text
    own = report_of(found, base_lr=2.0, base_batch=1024)
    assert "square-root rule from your 2 at 1024." in own
    assert "try" not in own
    assert " # and" not in own
    assert "try" not in report_of(found, epochs=2000)


def test_singular_and_plural():
    assert (counted(1, "epoch"), counted(2, "epoch"), counted(0, "step")) == ("1 epoch", "2 epochs", "0 steps")
    assert "Proposal, for 1 epoch:" in report_of(constant(5000), epochs=1)
    assert "the training is a single step." in report_of(constant(5000), epochs=1)


def test_few_steps_are_said_to_be_approximate():
    match = "The intervals of start, middle and end are approximate and too narrow: 28 steps of each, and 30 are"
    assert match in report_of(estimates_of(*[scale_of(1, 100, steps=28)] * 3))
    assert "too narrow" not in report_of(estimates_of(*[scale_of(1, 100, steps=30)] * 3))
    assert "is for this one training: another seed may lie outside it." in report_of(constant(100))
