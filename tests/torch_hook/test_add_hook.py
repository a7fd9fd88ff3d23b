"""The protocol: what add_hook accepts, in Chainer's order, with Chainer's errors; names, timing and removal."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import HookHandle, add_hook, remove_hook


def _optimizer(**options):
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.tensor([0.5, 0.0])
    return torch.optim.SGD([("layer", param)], lr=0.1, **options)


def _grad(optimizer):
    return optimizer.param_groups[0]["params"][0].grad.tolist()


class Recorder:
    """A hook that writes down how it is called."""

    def __init__(self, log, name="recorder", timing="pre", per_param=True):
        self.log, self.name, self.timing, self.call_for_each_param = log, name, timing, per_param

    def __call__(self, *args):
        self.log.append((self.name, *args))


def test_optimizer_is_checked_first():
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch.optim.Optimizer, got Linear"):
        add_hook(torch.nn.Linear(1, 1), "not callable", timing="never")


def test_then_whether_the_hook_can_be_called():
    with pytest.raises(TypeError, match="`hook` must be a callable object, got str"):
        add_hook(_optimizer(), "not callable", timing="never")


def test_then_the_timing():
    with pytest.raises(ValueError, match="`timing` must be 'pre', 'post' or 'auto', got 'never'"):
        add_hook(_optimizer(), Recorder([], name=None), timing="never")


def test_then_the_name():
    with pytest.raises(ValueError, match="`name` is missing"):
        add_hook(_optimizer(), Recorder([], name=None))


@pytest.mark.parametrize("timing", ["pre", "post"])
def test_name_in_use(timing):
    optimizer = _optimizer()
    add_hook(optimizer, Recorder([]), timing=timing)
    with pytest.raises(KeyError, match="'recorder' is in use"):
        add_hook(optimizer, GradientLARS(), name="recorder")
    add_hook(optimizer, GradientLARS(), name="another")
    add_hook(_optimizer(), GradientLARS(), name="recorder")


def test_name_falls_back_to_the_function():
    def halve(optimizer):
        optimizer.param_groups[0]["params"][0].grad.mul_(0.5)

    optimizer = _optimizer()
    assert add_hook(optimizer, halve).name == "halve"
    optimizer.step()
    assert _grad(optimizer) == [0.25, 0.0]


def test_timing_of_the_hook_and_an_explicit_one():
    assert add_hook(_optimizer(), Recorder([], timing="post")).timing == "post"
    assert add_hook(_optimizer(), Recorder([], timing="post"), timing="pre").timing == "pre"
    assert add_hook(_optimizer(), lambda optimizer: None).timing == "pre"
    with pytest.warns(UserWarning, match="`hook.timing` must be 'pre' or 'post', got 'later'"):
        assert add_hook(_optimizer(), Recorder([], timing="later")).timing == "pre"


def test_hooks_run_in_order_around_the_update():
    log = []
    optimizer = _optimizer()
    param = optimizer.param_groups[0]["params"][0]
    before = param.detach().clone()
    for name, timing in [("a", "post"), ("b", "pre"), ("c", "pre"), ("d", "post")]:
        hook = Recorder([], name=name, timing=timing)
        hook.log = type(
            "Log", (list,), {"append": lambda self, item: log.append((item[0], torch.equal(param, before)))}
        )()
        add_hook(optimizer, hook)
    optimizer.step()
    assert log == [("b", True), ("c", True), ("a", False), ("d", False)]


def test_calls_per_parameter_or_once():
    log = []
    optimizer = _optimizer()
    param = optimizer.param_groups[0]["params"][0]
    other = torch.nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [("other", other)]})
    add_hook(optimizer, Recorder(log, name="each"))
    add_hook(optimizer, Recorder(log, name="some"), params=[other])
    add_hook(optimizer, Recorder(log, name="once", per_param=False))
    optimizer.step()
    assert [(entry[0], *map(id, entry[1:])) for entry in log] == [
        ("each", id(None), id(param)),
        ("each", id(None), id(other)),
        ("some", id(None), id(other)),
        ("once", id(optimizer)),
    ]


def test_subclass_with_its_own_call_is_called_per_parameter():
    class Louder(GradientLARS):
        def __call__(self, rule, param):
            super().__call__(rule, param)
            param.grad *= 2

    optimizer = _optimizer()
    add_hook(optimizer, Louder())
    optimizer.step()
    assert _grad(optimizer) == pytest.approx([10.0, 0.0])


def test_post_timing_of_gradient_lars_acts_after_the_update():
    optimizer = _optimizer()
    param = optimizer.param_groups[0]["params"][0]
    handle = add_hook(optimizer, GradientLARS(), timing="post")
    optimizer.step()
    assert param.tolist() == pytest.approx([2.95, 4.0])
    assert handle.rates().rate.item() == pytest.approx(torch.tensor([2.95, 4.0]).norm().item() / 0.5)


def test_remove_by_name_by_handle_and_by_context():
    optimizer = _optimizer()
    add_hook(optimizer, GradientLARS())
    remove_hook(optimizer, "GradientLARS")
    handle = add_hook(optimizer, GradientLARS())
    handle.remove()
    handle.remove()
    with add_hook(optimizer, GradientLARS()) as handle:
        assert isinstance(handle, HookHandle)
    optimizer.step()
    assert _grad(optimizer) == [0.5, 0.0]
    assert not optimizer._optimizer_step_pre_hooks
    assert "step" not in optimizer.__dict__


def test_removing_twice_does_not_touch_a_successor():
    optimizer = _optimizer()
    first = add_hook(optimizer, GradientLARS())
    first.remove()
    add_hook(optimizer, GradientLARS())
    first.remove()
    optimizer.step()
    assert _grad(optimizer) == pytest.approx([5.0, 0.0])


def test_remove_unknown_name_lists_the_known():
    optimizer = _optimizer()
    with pytest.raises(KeyError, match="'GradientLARS' is not a hook of this optimizer. Its hooks: none"):
        remove_hook(optimizer, "GradientLARS")
    add_hook(optimizer, GradientLARS(), name="lars")
    with pytest.raises(KeyError, match="Its hooks: 'lars'"):
        remove_hook(optimizer, "GradientLARS")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "fast"}, ValueError, "`path` must be None or one of 'loop', 'foreach', 'fused', got 'fast'"),
        ({"absorb_weight_decay": True, "timing": "post"}, ValueError, "needs `timing` 'pre'"),
    ],
)
def test_wrong_options(options, error, message):
    optimizer = _optimizer()
    with pytest.raises(error, match=message):
        add_hook(optimizer, GradientLARS(), **options)
    assert not optimizer._optimizer_step_pre_hooks
    add_hook(optimizer, GradientLARS())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "loop"}, TypeError, "`path` needs a GradientLARS"),
        ({"absorb_weight_decay": True}, TypeError, "`absorb_weight_decay` needs a GradientLARS"),
        ({"params": lambda name, param: True}, ValueError, "`params` cannot restrict"),
    ],
)
def test_options_that_another_hook_cannot_heed(options, error, message):
    with pytest.raises(error, match=message):
        add_hook(_optimizer(), Recorder([], per_param=False), **options)


def test_rates_before_the_first_step_and_of_another_hook():
    handle = add_hook(_optimizer(), GradientLARS())
    with pytest.raises(RuntimeError, match="Take a step first"):
        handle.rates()
    with pytest.raises(TypeError, match="'recorder' is not one"):
        add_hook(_optimizer(), Recorder([])).rates()


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_start_without_the_hook_and_take_one(way, absorb):
    optimizer = _optimizer(weight_decay=0.5 if absorb else 0.0)
    add_hook(optimizer, GradientLARS(), absorb_weight_decay=absorb)
    if way == "deepcopy":
        twin = copy.deepcopy(optimizer)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(optimizer))
    else:
        buffer = io.BytesIO()
        torch.save(optimizer, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    param = twin.param_groups[0]["params"][0]
    param.grad = torch.tensor([0.5, 0.0])
    twin.step()
    assert _grad(twin) == [0.5, 0.0]
    add_hook(twin, GradientLARS(), absorb_weight_decay=absorb)
    param.grad = torch.tensor([0.5, 0.0])
    twin.step()
    assert _grad(twin) != [0.5, 0.0]
    assert _grad(optimizer) == [0.5, 0.0]


def test_the_hook_does_not_keep_the_optimizer_alive():
    optimizer = _optimizer()
    handle = add_hook(optimizer, GradientLARS(), absorb_weight_decay=True)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    handle.remove()


def _leak_two_absorbing(optimizer):
    a, b = optimizer.param_groups[0]["params"][0], torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("b", b)]})
    add_hook(optimizer, GradientLARS(), name="a", params=[a], absorb_weight_decay=True)
    add_hook(optimizer, GradientLARS(), name="b", params=[b], absorb_weight_decay=True)


def _leak_predicate_of_a_trainer(optimizer):
    class Trainer:
        def pick(self, name, param):
            return True

    trainer = Trainer()
    trainer.optimizer = optimizer
    add_hook(optimizer, GradientLARS(), params=trainer.pick)


def _leak_hook_that_knows_its_optimizer(optimizer):
    hook = Recorder([])
    hook.optimizer = optimizer
    add_hook(optimizer, hook)


@pytest.mark.parametrize(
    "entangle", [_leak_two_absorbing, _leak_predicate_of_a_trainer, _leak_hook_that_knows_its_optimizer]
)
def test_an_optimizer_that_its_own_hooks_refer_to_is_freed(entangle):
    optimizer = _optimizer()
    entangle(optimizer)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None


def test_hooks_may_come_and_go_in_any_order_without_piling_up():
    optimizer = _optimizer(weight_decay=0.1)
    other = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("other", other)]})
    params = [optimizer.param_groups[0]["params"][0], other]
    first = add_hook(optimizer, GradientLARS(), name="0", params=params[:1], absorb_weight_decay=True)
    for i in range(1, 2000):
        chosen = [params[i % 2]]
        second = add_hook(optimizer, GradientLARS(), name=str(i), params=chosen, absorb_weight_decay=True)
        first.remove()
        first = second
    optimizer.step()
    first.remove()
    assert "step" not in optimizer.__dict__
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_removing_absorbing_hooks_in_either_order_leaves_nothing(order):
    optimizer = _optimizer()
    b = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("b", b)], "weight_decay": 0.2})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    wrapped = optimizer.__dict__["step"]
    handles = [
        add_hook(optimizer, GradientLARS(), name="a", params=lambda name, _: name == "layer", absorb_weight_decay=True),
        add_hook(optimizer, GradientLARS(), name="b", params=[b], absorb_weight_decay=True),
    ]
    for i in order:
        handles[i].remove()
    assert optimizer.__dict__["step"] is wrapped
    optimizer.step()
    scheduler.step()


def test_a_stale_handle_does_not_remove_a_successor_of_its_name():
    optimizer = _optimizer()
    stale = add_hook(optimizer, Recorder([]), name="lars")
    remove_hook(optimizer, "lars")
    add_hook(optimizer, GradientLARS(), name="lars")
    stale.remove()
    with pytest.raises(KeyError, match="in use"):
        add_hook(optimizer, GradientLARS(), name="lars")


def test_a_class_is_no_hook():
    with pytest.raises(TypeError, match=r"got the class GradientLARS. Pass GradientLARS\(\)"):
        add_hook(_optimizer(), GradientLARS)


@pytest.mark.parametrize("name", ["", 5])
def test_a_name_is_a_text(name):
    with pytest.raises(TypeError, match="`name` must be a text that is not empty"):
        add_hook(_optimizer(), GradientLARS(), name=name)


def test_an_error_leaves_nothing_registered():
    optimizer = _optimizer(weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay"):
        add_hook(optimizer, GradientLARS(weight_decay=0.1))
    assert not optimizer._optimizer_step_pre_hooks
    add_hook(optimizer, GradientLARS())


def test_repr():
    text = repr(add_hook(_optimizer(), GradientLARS(), name="lars"))
    assert (
        text == "HookHandle(name='lars', timing='pre', hook=GradientLARS(threshold=0.01, weight_decay=0.0, eps=1e-09))"
    )
