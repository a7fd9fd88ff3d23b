"""Each finding, on a network that has the fault, and none of its kind on one that has not."""

import pytest
import torch

from gradient_lars import GradientLARS, presets
from gradient_lars.monitor import Monitor, Record, Records, Summary
from gradient_lars.monitor._findings import RECIPES
from gradient_lars.torch import LARS, add_hook
from monitor.networks import layers, recipe, set_gradients, train

ALL = ("dense.weight", "dense.bias", "conv.weight")


def summary_after(optimizer, named, steps=20, scale=0.1, source=None, each=lambda step: None):
    with Monitor(source or optimizer) as monitor:
        for step in range(steps):
            set_gradients(named, step, scale)
            each(step)
            optimizer.step()
    return monitor.summary()


def only(summary, kind):
    """Return the one finding there is, which must be of `kind`."""
    (finding,) = summary.findings
    assert finding.kind == kind
    assert all(name in finding.text for name in finding.layers)
    return finding


def test_a_healthy_training_has_none():
    named = layers()
    assert summary_after(recipe(named), named).findings == []
    named = layers()
    optimizer = torch.optim.SGD(named, lr=0.01, momentum=0.9)
    assert summary_after(optimizer, named, source=add_hook(optimizer, GradientLARS(weight_decay=1e-4))).findings == []


@pytest.mark.parametrize(("norm", "found"), [(0.0101, False), (0.0099, True)])
def test_below_the_threshold(norm, found):
    named = layers()
    with torch.no_grad():
        named[1][1].mul_(norm / named[1][1].norm())
    summary = summary_after(recipe(named), named, steps=1)
    if not found:
        return assert_nothing(summary)
    finding = only(summary, "threshold")
    assert finding.layers == ("dense.bias",)
    assert "the weight norm (0.0099 in dense.bias) is not above the threshold 0.01 in 1 of 1 record," in finding.text
    assert (
        "Lower `threshold`; or, if that is meant, say so by `adapt=False` (LARS) or `params` (add_hook)" in finding.text
    )
    return None


def assert_nothing(summary):
    assert summary.findings == []


def test_layers_left_out_are_not_below_the_threshold():
    named = layers()
    with torch.no_grad():
        named[1][1].mul_(1e-3)
    assert_nothing(summary_after(recipe(named, adapt=None), named, scale=1e-7))


BOUNDS = {
    "min_rate": (
        {"min_rate": 0.5, "lr": 0.02},
        {"min_rate": 1e-6},
        "the rate is held at 0.5 by `min_rate` in 20 of 20",
    ),
    "max_rate": ({"max_rate": 1e-4}, {"max_rate": 1.0}, "the rate is held at 0.0001 by `max_rate` in 20 of 20 records"),
    "trust_clip": (
        {"lr": 0.0005},
        {"lr": 0.5, "trust_coefficient": 0.01},
        "the rate is held at 1 by `trust_clip` in 20",
    ),
}
REMEDIES = {
    "min_rate": "Lower `min_rate`",
    "max_rate": "Raise `max_rate`",
    "trust_clip": "Raise `lr` above the trust ratios",
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_rates_at_a_bound(bound):
    bad, good, text = BOUNDS[bound]
    clip = {"trust_clip": True} if bound == "trust_clip" else {}
    named = layers()
    finding = only(summary_after(recipe(named, **bad, **clip), named), "bound")
    assert finding.layers == ALL
    assert text in finding.text
    assert REMEDIES[bound] in finding.text
    named = layers()
    assert_nothing(summary_after(recipe(named, **good, **clip), named))


def test_gradient_of_zero():
    named = layers()

    def dead(step):
        if step != 3:
            named[2][1].grad.zero_()

    summary = summary_after(recipe(named), named, each=dead)
    finding = only(summary, "zero_norm")
    assert finding.layers == ("conv.weight",)
    assert "the norm of the gradient is 0 in 19 of 20 records. See that the loss depends on them" in finding.text
    named = layers()
    assert_nothing(summary_after(recipe(named), named, each=lambda step: step == 3 and named[2][1].grad.zero_()))


def test_weights_of_zero():
    named = layers()
    with torch.no_grad():
        named[1][1].zero_()
    # Something sets them back to zero in every step.
    summary = summary_after(recipe(named), named, each=lambda step: named[1][1].data.zero_())
    finding = only(summary, "zero_norm")
    assert finding.layers == ("dense.bias",)
    assert "the norm of the weights is 0 in 20 of 20 records. Initialise them" in finding.text


def test_zeros_that_start_are_fine():
    named = layers()
    with torch.no_grad():
        named[1][1].zero_()
    assert_nothing(summary_after(recipe(named), named))


@pytest.mark.parametrize(("value", "word"), [(float("inf"), "inf"), (float("nan"), "nan")])
def test_not_finite(value, word):
    named = layers()

    def burst(step):
        if step in (7, 9):
            named[0][1].grad[0, 0] = value

    summary = summary_after(recipe(named, skip_nonfinite=True), named, each=burst)
    finding = only(summary, "not_finite")
    assert finding.layers == ("dense.weight",)
    assert (
        f"the norm of the gradient is {word} first in step 7 (dense.weight), and not finite in 2 of 20" in finding.text
    )
    assert "lower `lr`" in finding.text


@pytest.mark.parametrize(("bad", "found"), [((7, 9), False), ((7, 8, 9), True), ((39,), True)])
def test_a_few_overflows_that_changed_nothing_are_no_finding(bad, found):
    """Two of 40 are as many as GradScaler may need; a third is more, and after the last step nothing shows."""
    named = layers()

    def burst(step):
        if step in bad:
            named[0][1].grad[0, 0] = float("inf")

    summary = summary_after(recipe(named, skip_nonfinite=True), named, steps=40, each=burst)
    assert [finding.kind for finding in summary.findings] == ["not_finite"] * found


def test_weights_that_are_not_finite():
    named = layers()
    with torch.no_grad():
        named[2][1][0, 0, 0, 0] = float("nan")
    finding = only(summary_after(recipe(named), named), "not_finite")
    assert "conv.weight: the norm of the weights is nan first in step 0 (conv.weight)" in finding.text


def test_layer_without_gradient():
    named = [*layers(), ("unused", torch.nn.Parameter(torch.ones(3)))]
    summary = summary_after(recipe(named), named[:3])
    finding = only(summary, "never_moves")
    assert finding.text == (
        "unused: there was no gradient in any record, 0 steps taken. See that the loss depends on them, or leave them "
        "out of the optimizer."
    )
    assert summary.layers[-1].records == 0


def test_selected_layers_only():
    """The hook has been told to leave the others alone: they are no layers without gradient."""
    named = layers()
    optimizer = torch.optim.SGD(named, lr=0.01)
    handle = add_hook(optimizer, GradientLARS(), params=lambda name, param: param.dim() > 1)
    summary = summary_after(optimizer, named, source=handle)
    assert_nothing(summary)
    assert [line.layer for line in summary.layers] == ["dense.weight", "conv.weight"]


def test_learning_rate_of_zero():
    named = layers()
    groups = [{"params": named[:1]}, {"params": named[1:], "lr": 0.0}]
    finding = only(summary_after(recipe(groups), named), "never_moves")
    assert finding.layers == ALL[1:]
    assert "`lr` is 0 in 20 of 20 records. Raise `lr` in this group" in finding.text


def test_steps_lost_in_rounding():
    """Bfloat16 weights do not see steps of 0.1 % of their length; with a float32 copy they do."""
    for master in (False, True):
        named = [("lost", torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)))]

        def even(step, named=named):
            named[0][1].grad = torch.ones(64, 64, dtype=torch.bfloat16)

        optimizer = recipe(named, lr=1.0, weight_decay=0.0, momentum=0.0, master_weights=master)
        summary = summary_after(optimizer, [], steps=40, each=even)
        if master:
            assert_nothing(summary)
            continue
        finding = only(summary, "never_moves")
        assert (
            "the weight norm of lost is 64 to the last bit in 40 of 40 records, though its steps add up" in finding.text
        )
        assert "LARS(master_weights=True) keeps them" in finding.text


def test_rate_of_zero():
    rows = [Record(step, "stuck", 0.0 if step < 2 else 1.0, 1.0, 0.0, False, 0.0, 1.0) for step in range(5)]
    finding = only(Summary(Records(rows)), "never_moves")
    assert "stuck: the rate is 0 in 5 of 5 records" in finding.text


@pytest.mark.parametrize(
    ("peak", "word"),
    [(0.99 * RECIPES[0] / 10, "Raise"), (1.01 * RECIPES[0] / 10, None), (0.399, None), (0.401, "Lower")],
)
def test_learning_rate_off_the_recipes(peak, word):
    """The product of `lr` and the trust coefficient is the relative step; a warm-up does not count."""
    named = layers()
    optimizer = recipe(named, lr=1000 * peak, weight_decay=0.0, momentum=0.0)

    def schedule(step):
        optimizer.param_groups[0]["lr"] = 1000 * peak * min(1, (step + 1) / 15)

    summary = summary_after(optimizer, named, each=schedule)
    if word is None:
        return assert_nothing(summary)
    finding = only(summary, "lr")
    assert finding.layers == ALL
    assert f"by {peak:.2g} of its norm at most, before momentum, at `lr` {1000 * peak:.3g}" in finding.text
    assert f"{word} `lr`, to about 6, or `trust_coefficient`." in finding.text
    return None


def _held(adapt_without_decay, weight_decay):
    named = layers()
    groups = [{"params": named[:2], "weight_decay": weight_decay}, {"params": named[2:], "weight_decay": 0.0}]
    return summary_after(recipe(groups, adapt_without_decay=adapt_without_decay), named)


def test_without_decay_a_preset_is_plain_sgd():
    finding = only(_held(adapt_without_decay=False, weight_decay=0.0), "no_decay")
    assert finding.layers == ALL
    assert (
        "`weight_decay` is 0 and `adapt_without_decay` False: no layer is adapted, and the rate is 1 in 20 of 20"
        in (finding.text)
    )
    assert "Give a `weight_decay` above 0, or `adapt_without_decay=True`" in finding.text


@pytest.mark.parametrize("name", ["timm", "bolts"])
def test_presets_without_decay(name):
    preset = presets.named(name)
    named = layers()
    assert only(summary_after(LARS(named, lr=1.0, **preset), named), "no_decay").layers == ALL
    named = layers()
    decayed = preset.replace(weight_decay=1e-4)
    assert_nothing(summary_after(LARS(named, lr=1.0, **decayed), named))


@pytest.mark.parametrize(("adapt_without_decay", "weight_decay"), [(False, 1e-4), (True, 0.0)])
def test_with_decay_it_is_not(adapt_without_decay, weight_decay):
    assert_nothing(_held(adapt_without_decay, weight_decay))


def test_many_layers_are_counted():
    named = [(f"layer{i}", torch.nn.Parameter(torch.ones(2))) for i in range(9)]
    optimizer = LARS(named, lr=1e-3)
    with Monitor(optimizer) as monitor:
        train(optimizer, named, 2)
    (finding,) = monitor.summary().findings
    assert finding.text.startswith("layer0, layer1, layer2, layer3 and 5 more: a step moves")
    assert len(finding.layers) == 9
