"""State: resumed bit for bit, taken from SGD, kept in float32, copied and pickled; groups added later."""

import copy
import io
import pickle

import pytest
import torch

from gradient_lars.torch import LARS, _dispatch, warmup_polynomial
from lars.expected import PATHS, advance, assert_same, checked_step, network, set_gradients, state_of, train
from reference import assert_close
from torch_cases import to_numpy

SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125, "dampening": 0.25}


def _saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _copied(named):
    return [(name, torch.nn.Parameter(param.detach().clone())) for name, param in named]


@pytest.mark.parametrize("through", [copy.deepcopy, _saved_and_loaded])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("path", PATHS)
def test_resumes_bit_for_bit(path, dtype, through):
    named = network(dtype)
    optimizer = train(named, 3, **SETTINGS, **PATHS[path])
    # Made with other settings: those of the checkpoint count.
    twin = _copied(named)
    resumed = LARS(twin, 7.0, momentum=0.5, lr_in_momentum=False)
    resumed.load_state_dict(through(optimizer.state_dict()))
    for o, n in ((optimizer, named), (resumed, twin)):
        advance(o, n, 3, first=3)
    assert_same(state_of(optimizer), state_of(resumed))
    assert len(state_of(resumed)) == 2 * len(named)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("path", ["loop", "foreach", "chosen"])
def test_master_weights_resume_bit_for_bit(path, dtype):
    named = network(dtype)
    optimizer = train(named, 3, **SETTINGS, master_weights=True, **PATHS[path])
    twin = _copied(named)
    resumed = LARS(twin, 1.0, master_weights=True)
    resumed.load_state_dict(_saved_and_loaded(optimizer.state_dict()))
    for _, param in twin:
        assert {key: value.dtype for key, value in resumed.state[param].items()} == {
            "master": torch.float32,
            "momentum_buffer": torch.float32,
        }
    assert_same(state_of(optimizer), state_of(resumed))
    for o, n in ((optimizer, named), (resumed, twin)):
        advance(o, n, 3, first=3)
    assert_same(state_of(optimizer), state_of(resumed))


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("lr_in_momentum", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_takes_the_momentum_of_sgd(path, lr_in_momentum, tensor_lr):
    # With adapt=False LARS is SGD: training goes on as if nothing had been exchanged.
    twins = network(torch.float64), network(torch.float64)
    lr = torch.full((1,), 0.125, dtype=torch.float64) if tensor_lr else 0.125
    sgd = torch.optim.SGD(twins[0], lr=lr, momentum=0.9, weight_decay=0.25, foreach=False)
    advance(sgd, twins[0], 3)
    twin = _copied(twins[0])
    settings = {"adapt": False, "lr_in_momentum": lr_in_momentum, "trust_coefficient": 0.5, "threshold": 0.25}
    optimizer = LARS(twin, 3.0, **settings, **PATHS[path])
    momentum = [sgd.state[param]["momentum_buffer"].clone() for _, param in twins[0]]
    optimizer.load_state_dict(sgd.state_dict())
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in settings} == settings
    assert {name: group[name] for name in ("foreach", "fused")} == {"foreach": None, "fused": None} | PATHS[path]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.125, 0.9, 0.25)
    assert_same([sgd.state[param]["momentum_buffer"] for _, param in twins[0]], momentum)
    for step in range(3, 6):
        set_gradients(twins[0], step)
        sgd.step()
        set_gradients(twin, step)
        checked_step(optimizer)
    for (_, a), (_, b) in zip(twins[0], twin, strict=True):
        assert_close(to_numpy(b), to_numpy(a), "float64")


def test_sgd_without_momentum_leaves_none():
    named = network()
    sgd = torch.optim.SGD(named, lr=0.1)
    advance(sgd, named, 1)
    optimizer = LARS(named, 1.0)
    optimizer.load_state_dict(sgd.state_dict())
    optimizer.param_groups[0]["momentum"] = 0.9
    set_gradients(named, 1)
    checked_step(optimizer)


def test_a_schedule_made_after_taking_over_sgd_starts_from_the_new_lr():
    named = network(torch.float32)
    sgd = torch.optim.SGD(named, lr=0.5, momentum=0.9)
    torch.optim.lr_scheduler.ConstantLR(sgd)
    advance(sgd, named, 1)
    optimizer = LARS(_copied(named), 8.0)
    optimizer.load_state_dict(sgd.state_dict())
    optimizer.param_groups[0]["lr"] = 8.0
    assert warmup_polynomial(optimizer, warmup_steps=0, total_steps=4).base_lrs == [8.0]


def test_momentum_of_low_precision_sgd_becomes_float32_beside_masters():
    named = network(torch.bfloat16)
    sgd = torch.optim.SGD(named, lr=0.125, momentum=0.9)
    advance(sgd, named, 2)
    optimizer = LARS(named, 1.0, master_weights=True)
    optimizer.load_state_dict(sgd.state_dict())
    for _, param in named:
        momentum = optimizer.state[param]["momentum_buffer"]
        assert momentum.dtype == torch.float32
        assert torch.equal(momentum, sgd.state[param]["momentum_buffer"].float() * 0.125)
    set_gradients(named, 2)
    checked_step(optimizer)


def test_groups_of_another_number_are_refused():
    optimizer = train(network(), 1, **SETTINGS)
    named = network()
    other = LARS([{"params": named[:1]}, {"params": named[1:]}], 1.0)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("path", PATHS)
def test_copies_go_on_alike(path, duplicate):
    named = network()
    optimizer = train(named, 2, **SETTINGS, skip_nonfinite=True, **PATHS[path])
    named[0][1].grad.fill_(float("nan"))
    optimizer.step()
    twin = duplicate(optimizer)
    params = [("", param) for param in twin.param_groups[0]["params"]]
    assert params[0][1] is not named[0][1]
    assert (twin.skip_nonfinite, twin.master_weights, twin.skipped_steps) == (True, False, 1)
    assert twin.param_groups[0]["param_names"] == [name for name, _ in named]
    with pytest.raises(RuntimeError, match="nothing to show yet"):
        twin.rates()
    for o, n in ((optimizer, named), (twin, params)):
        advance(o, n, 2, first=2)
    assert_same(state_of(optimizer), state_of(twin))
    # And under GradScaler, which hands its scale only to an optimizer that says it takes it.
    assert twin._step_supports_amp_scaling


@pytest.mark.parametrize("path", PATHS)
def test_group_added_later(path):
    named = network()
    optimizer = train(named[:1], 2, **SETTINGS, **PATHS[path])
    optimizer.add_param_group({"params": named[1:], "lr": 0.1, "adapt": False, "note": "a key of the user's"})
    assert optimizer.param_groups[1]["trust_coefficient"] == 0.25
    assert optimizer.param_groups[1]["note"] == "a key of the user's"
    for step in range(2, 4):
        set_gradients(named, step)
        checked_step(optimizer)
    assert optimizer.rates().names == ("layer0", "layer1", "layer2")


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"weight_decay": -1.0}, ValueError, "`weight_decay` must be >= 0, got -1.0"),
        ({"adapt": "yes"}, TypeError, "`adapt` must be True, False or None, got 'yes'"),
        ({"nesterov": True, "dampening": 0.5}, ValueError, "`nesterov` needs a `momentum` above 0 and `dampening` 0"),
        ({"foreach": True, "fused": True}, RuntimeError, "`foreach` and `fused` cannot both be True"),
        ({"skip_nonfinite": True}, ValueError, "`skip_nonfinite` cannot differ per group"),
        ({"master_weights": True}, ValueError, "`master_weights` cannot differ per group"),
        ({"carry_norms": True}, ValueError, "`carry_norms` cannot differ per group"),
        ({"differentiable": True}, ValueError, "`differentiable` cannot differ per group"),
    ],
)
def test_a_group_that_is_refused_is_not_added(group, error, message):
    named = network()
    optimizer = LARS(named[:1], 1.0)
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": named[1:], **group})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(error, match=message):
        LARS([{"params": named, **group}], 1.0)


def test_a_group_must_be_a_dict():
    with pytest.raises(TypeError, match="must be a dict"):
        LARS(network(), 1.0).add_param_group([torch.nn.Parameter(torch.ones(2))])


def test_a_flattened_parameter_is_not_added():
    named = network()
    optimizer = LARS(named[:1], 1.0)
    named[1][1]._is_flat_param = True
    with pytest.raises(ValueError, match="'layer1', a parameter that FSDP1 has flattened"):
        optimizer.add_param_group({"params": named[1:]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_first_step_that_is_refused_leaves_no_state(dtype, monkeypatch):
    """As in the capture of a CUDA graph, which would leave momenta that nobody has filled."""
    named = network(dtype)
    optimizer = LARS(named, **SETTINGS, master_weights=True)
    set_gradients(named, 0)

    def refuse(*args):
        raise RuntimeError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(_dispatch, "fused_step", refuse)
        with pytest.raises(RuntimeError, match="refused"):
            optimizer.step()
    assert not any(optimizer.state.values())
    with torch.no_grad():
        named[0][1].mul_(2.0)
    checked_step(optimizer)


def test_a_parameter_of_a_type_that_cannot_be_trained_is_not_added():
    optimizer = LARS(network(), 1.0)
    with pytest.raises(TypeError, match="'whole' of type torch.int64. LARS takes float16 and wider"):
        optimizer.add_param_group({"params": [("whole", torch.ones(2, dtype=torch.int64))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("through", [copy.deepcopy, _saved_and_loaded])
@pytest.mark.parametrize("path", PATHS)
def test_the_count_of_skipped_steps_goes_on(path, through):
    named = network()
    optimizer = LARS(named, **SETTINGS, skip_nonfinite=True, **PATHS[path])
    earlier = through(optimizer.state_dict())
    advance(optimizer, named, 1)
    for _ in range(2):
        named[1][1].grad[0] = float("nan")
        optimizer.step()
    saved = through(optimizer.state_dict())
    twin = _copied(named)
    resumed = LARS(twin, 1.0, skip_nonfinite=True)
    resumed.load_state_dict(saved)
    assert resumed.skipped_steps == 2
    set_gradients(twin, 1, scale=float("inf"))
    resumed.step()
    assert (resumed.skipped_steps, optimizer.skipped_steps, int(saved["skipped_steps"])) == (3, 2, 2)
    # Back to where there was none; and SGD takes the state of a LARS as it takes its own.
    resumed.load_state_dict(earlier)
    assert resumed.skipped_steps == 0
    sgd = torch.optim.SGD([param for _, param in twin], 0.1, momentum=0.9)
    sgd.load_state_dict(saved)
    sgd.step()
    resumed.load_state_dict(sgd.state_dict())
    assert resumed.skipped_steps == 0


def test_a_momentum_with_the_learning_rate_is_not_taken_for_a_rate_after_it():
    old = train(network(), 2, **SETTINGS).state_dict()
    for group in old["param_groups"]:
        del group["norm_of"]
    named = network()
    optimizer = train(named, 1, **SETTINGS, norm_of="update", lr_in_momentum=False)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="`norm_of` 'update' needs `lr_in_momentum=False`"):
        optimizer.load_state_dict(old)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert torch.equal(after["state"][key]["momentum_buffer"], state["momentum_buffer"])
