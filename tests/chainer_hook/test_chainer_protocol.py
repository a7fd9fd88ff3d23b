"""Our hook where Chainer's protocol has corners: who is called when, with what."""

import chainer
import numpy as np
import pytest

from chainer_hook.models import HOOKS, LEVELS, hook_ids, link_of, loss_of, register, set_grads
from gradient_lars import GradientLARS
from reference import assert_close, lars

P, G = np.array([3.0, 4.0]), np.array([5.0, -12.0])
SETTINGS = {"threshold": 0.25, "weight_decay": 0.5, "eps": 0.25}
ONCE = lars(P, G, **SETTINGS).grad


def sgd(link, lr=0.125):
    return chainer.optimizers.SGD(lr=lr).setup(link)


@pytest.mark.parametrize("hook", HOOKS, **hook_ids)
def test_a_shared_parameter_is_hooked_and_updated_twice(hook):
    first = link_of(w=P)
    second = chainer.Link()
    with second.init_scope():
        second.w = first.w
    optimizer = sgd(chainer.ChainList(first, second))
    optimizer.add_hook(hook(**SETTINGS))
    set_grads(first, w=G)
    optimizer.update()
    assert_close(first.w.array, P - 2 * 0.125 * lars(P, ONCE, **SETTINGS).grad, "float64")


@pytest.mark.parametrize("hook", HOOKS, **hook_ids)
@pytest.mark.parametrize(("level", "expected"), [("optimizer", ONCE), ("rule", G)])
def test_a_disabled_rule(hook, level, expected):
    link = link_of(w=P)
    optimizer = sgd(link)
    register(optimizer, hook(**SETTINGS), level)
    link.w.update_rule.enabled = False
    set_grads(link, w=G)
    optimizer.update()
    assert_close(link.w.array, P, "float64")
    assert_close(link.w.grad, expected, "float64")


@pytest.mark.parametrize("hook", HOOKS, **hook_ids)
def test_a_parameter_added_after_setup_comes_without_a_rule(hook):
    link = link_of(w=P)
    optimizer = sgd(link)
    optimizer.add_hook(hook(**SETTINGS))
    with link.init_scope():
        link.late = chainer.Parameter(P.copy())
    set_grads(link, w=G, late=G)
    optimizer.update()
    assert link.late.update_rule is None
    assert_close(link.late.grad, ONCE, "float64")
    assert_close(link.late.array, P, "float64")
    assert_close(link.w.array, P - 0.125 * ONCE, "float64")


def test_no_gradient():
    link = link_of(w=P)
    link.cleargrads()
    GradientLARS(**SETTINGS)(None, link.w)
    assert link.w.grad is None
    assert_close(link.w.array, P, "float64")


@pytest.mark.parametrize("level", LEVELS)
def test_no_gradient_in_an_update_leaves_the_decay(level):
    link = link_of(w=P)
    optimizer = sgd(link)
    register(optimizer, GradientLARS(**SETTINGS), level)
    link.cleargrads()
    optimizer.update()
    assert_close(link.w.array, P - 0.125 * lars(P, 0 * G, **SETTINGS).grad, "float64")


@pytest.mark.parametrize("cleared", [True, False])
def test_an_uninitialised_parameter_is_left_alone(cleared):
    param = chainer.Parameter()
    if cleared:
        param.cleargrad()
    GradientLARS(**SETTINGS)(None, param)
    assert param.array is None


@pytest.mark.parametrize("level", LEVELS)
def test_an_update_before_the_sizes_are_known(level):
    model = chainer.links.Linear(None, 2, initial_bias=P)
    optimizer = sgd(model)
    register(optimizer, GradientLARS(**SETTINGS), level)
    model.cleargrads()
    model.b.grad = G.astype(np.float32)
    optimizer.update()
    assert model.W.array is None
    assert_close(model.b.array, P - 0.125 * ONCE, "float32")


@pytest.mark.parametrize("level", LEVELS)
def test_a_read_only_gradient_is_refused_and_nothing_is_changed(level):
    link = link_of(w=P)
    optimizer = sgd(link)
    register(optimizer, GradientLARS(**SETTINGS), level)
    with pytest.raises(ValueError, match=r"`param\.grad` of 'w' is read-only .*`param\.grad = numpy\.array\("):
        optimizer.update(lambda: chainer.functions.sum(link.w))
    assert_close(link.w.array, P, "float64")
    assert_close(link.w.grad, np.ones(2), "float64")
    # The remedy of the message.
    link.w.grad = np.array(link.w.grad)
    optimizer.update()
    assert_close(link.w.array, P - 0.125 * lars(P, np.ones(2), **SETTINGS).grad, "float64")


@pytest.mark.parametrize("level", LEVELS)
def test_a_float16_gradient_beyond_65504_does_not_freeze_the_layer(level):
    p, g = np.full(4, 0.5, np.float16), np.full(4, 60000, np.float16)
    link = link_of(w=p)
    optimizer = sgd(link)
    register(optimizer, GradientLARS(), level)
    set_grads(link, w=g)
    optimizer.update()
    layer = lars(p, g)
    assert layer.g_norm > 65504
    assert_close(link.w.array, p - 0.125 * layer.grad, "float16")


@pytest.mark.parametrize("level", LEVELS)
def test_registered_and_removed_by_name(level):
    link = link_of(w=P)
    optimizer = sgd(link)
    owner = optimizer if level == "optimizer" else link.w.update_rule
    owner.add_hook(GradientLARS(**SETTINGS))
    with pytest.raises(KeyError, match="GradientLARS"):
        owner.add_hook(GradientLARS())
    owner.remove_hook("GradientLARS")
    owner.add_hook(GradientLARS(**SETTINGS), name="layers")
    owner.add_hook(chainer.optimizer_hooks.GradientClipping(1e9) if owner is optimizer else print_nothing, name="other")
    set_grads(link, w=G)
    optimizer.update()
    assert_close(link.w.array, P - 0.125 * ONCE, "float64")
    owner.remove_hook("layers")
    before = link.w.array.copy()
    set_grads(link, w=G)
    optimizer.update()
    assert_close(link.w.array, before - 0.125 * G, "float64")
    with pytest.raises(KeyError):
        owner.remove_hook("layers")


def print_nothing(rule, param):
    """A hook of the rule that does nothing."""


def test_timing_is_pre_and_post_can_be_forced():
    link = link_of(w=P)
    optimizer = sgd(link)
    optimizer.add_hook(GradientLARS(**SETTINGS), timing="post")
    set_grads(link, w=G)
    optimizer.update()
    after = P - 0.125 * G
    assert_close(link.w.array, after, "float64")
    assert_close(link.w.grad, lars(after, G, **SETTINGS).grad, "float64")


@pytest.mark.parametrize("level", LEVELS)
def test_attributes_changed_between_steps(level):
    link = link_of(w=P)
    optimizer = sgd(link)
    hook = GradientLARS(**SETTINGS)
    register(optimizer, hook, level)
    expected = P
    for changed in ({}, {"threshold": 100.0}, {"weight_decay": 0.0}, {"threshold": 0.0, "eps": 2.0}):
        for name, value in changed.items():
            setattr(hook, name, value)
        set_grads(link, w=G)
        optimizer.update()
        settings = {name: getattr(hook, name) for name in SETTINGS}
        expected = expected - 0.125 * lars(expected, G, **settings).grad
        assert_close(link.w.array, expected, "float64")


def test_after_a_hook_that_clips():
    link = link_of(w=P)
    optimizer = sgd(link)
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(1.0))
    optimizer.add_hook(GradientLARS(**SETTINGS))
    optimizer.update(loss_of, link, {"w": G})
    assert_close(link.w.array, P - 0.125 * lars(P, G / 13.0, **SETTINGS).grad, "float64")


class Network(chainer.Chain):
    """Convolution, batch normalisation and a linear layer, whose sizes are known at the first call."""

    def __init__(self):
        super().__init__()
        seed = np.random.default_rng(7)

        def initial(array):
            array[...] = 0.5 * seed.standard_normal(array.shape)

        with self.init_scope():
            self.conv = chainer.links.Convolution2D(None, 3, 3, nobias=True, initialW=initial)
            self.norm = chainer.links.BatchNormalization(3)
            self.linear = chainer.links.Linear(None, 2, initialW=initial)

    def forward(self, x):
        return self.linear(chainer.functions.relu(self.norm(self.conv(x))))


def trained(hook, level, data):
    model = chainer.links.Classifier(Network())
    optimizer = chainer.optimizers.MomentumSGD(lr=0.05).setup(model)
    register(optimizer, hook, level)
    updater = chainer.training.StandardUpdater(chainer.iterators.SerialIterator(data, 4, shuffle=False), optimizer)
    for _ in range(6):
        updater.update()
    return {name: param.array for name, param in model.namedparams()}


@pytest.mark.parametrize("level", LEVELS)
def test_training_with_an_updater_equals_chainers_hook(level, rng):
    images = rng.standard_normal((12, 1, 6, 6)).astype(np.float32)
    data = [(image, np.int32(i % 2)) for i, image in enumerate(images)]
    settings = {"threshold": 0.125, "weight_decay": 0.01}
    theirs = trained(chainer.optimizer_hooks.GradientLARS(**settings), level, data)
    ours = trained(GradientLARS(**settings), level, data)
    without = trained(GradientLARS(threshold=1e9), level, data)
    for name, expected in theirs.items():
        assert_close(ours[name], expected, "float32", factor=10)
        with pytest.raises(AssertionError):
            assert_close(without[name], expected, "float32", factor=1000)
