"""The norms that are carried from step to step, and everything that must not make them wrong."""

import warnings

import pytest
import torch

from fused.common import advance, copied, fused, network, set_gradients, took_the_kernels
from gradient_lars.torch import _fused
from gradient_lars.torch._fused_bucket import LOOK_EVERY
from gradient_lars.torch._fused_tables import RECOMPUTE, Column
from lars.expected import checked_step
from torch_cases import to_numpy

SHAPES = ((3, 7000), (40, 30), (5,))
WAYS = {"carried": None, "strict": False}


def _started(device, steps=2, **settings):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named, **settings)
    advance(optimizer, named, steps)
    set_gradients(named, steps)
    return named, optimizer


def _recomputed(optimizer):
    """Return the places of the layers whose sums the last step has computed anew."""
    (bucket,) = optimizer._last.fused._buckets
    count = len(bucket.layers)
    flags = bucket.table.on_device(capturing=False)[Column.FLAGS * count :][:count]
    return [i for i, flag in enumerate(flags.tolist()) if flag & RECOMPUTE]


def _checked_steps(optimizer, named, steps):
    for step in range(4, 4 + steps):
        set_gradients(named, step)
        checked_step(optimizer)


def _true_norm(param):
    return float(param.detach().double().norm())


def test_weights_are_read_for_their_norm_in_the_first_step_only(device):
    named = network(device, shapes=SHAPES)
    optimizer = fused(named)
    advance(optimizer, named, 1)
    assert _recomputed(optimizer) == [0, 1, 2]
    for step in (1, 2):
        advance(optimizer, named, 1, first=step)
        assert _recomputed(optimizer) == []
    checked_step(optimizer)


@pytest.mark.parametrize("carry_norms", WAYS.values(), ids=WAYS)
def test_an_edit_in_place_is_exact(carry_norms, device):
    named, optimizer = _started(device, carry_norms=carry_norms)
    with torch.no_grad():
        named[1][1].mul_(3.0)
    checked_step(optimizer)
    assert _recomputed(optimizer) == ([1] if carry_norms is None else [])
    set_gradients(named, 3)
    checked_step(optimizer)
    assert _recomputed(optimizer) == []


def test_an_edit_in_place_of_one_entry_through_a_view_is_exact(device):
    named, optimizer = _started(device)
    with torch.no_grad():
        named[0][1].view(-1)[-1] = 500.0
    checked_step(optimizer)


def test_an_edit_through_data_costs_one_step_and_is_told(device):
    named, optimizer = _started(device)
    before = _true_norm(named[1][1])
    named[1][1].data.mul_(3.0)
    optimizer.step()
    assert list(optimizer.rates())[1].p_norm == pytest.approx(before, rel=1e-5)
    set_gradients(named, 3)
    checked_step(optimizer)
    with pytest.warns(RuntimeWarning, match=r"the weights of 'layer1' were changed between steps") as told:
        _checked_steps(optimizer, named, 2 * LOOK_EVERY)
    assert len(told) == 1


def test_without_an_edit_nothing_is_told(device):
    named, optimizer = _started(device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(optimizer, named, 3 * LOOK_EVERY)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_any_more_are_not_told_as_edited(value, device):
    named, optimizer = _started(device)
    named[1][1].grad.fill_(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * LOOK_EVERY + 2):
            optimizer.step()
    assert not named[1][1].isfinite().all()


def test_sums_that_overflow_are_not_told_as_edited(device):
    named, optimizer = _started(device, adapt=False)
    with torch.no_grad():
        named[1][1].fill_(1e25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advance(optimizer, named, 2 * LOOK_EVERY + 2)
    assert list(optimizer.rates())[1].p_norm == float("inf")
    assert named[1][1].isfinite().all()


def test_strict_an_edit_through_data_is_exact(device):
    named, optimizer = _started(device, carry_norms=False)
    named[1][1].data.mul_(3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(2, 4 + 2 * LOOK_EVERY):
            set_gradients(named, step)
            checked_step(optimizer)


def test_load_state_dict(device):
    named, optimizer = _started(device)
    state = optimizer.state_dict()
    for _, param in named:
        param.data.mul_(2.0)
    optimizer.load_state_dict(state)
    checked_step(optimizer)
    assert _recomputed(optimizer) == [0, 1, 2]


@pytest.mark.parametrize("what", ["weights", "momentum", "momentum data", "state"])
def test_replaced_storage(what, device):
    named, optimizer = _started(device)
    param = named[1][1]
    state = optimizer.state[param]
    if what == "weights":
        param.data = param.detach() * 3.0
    elif what == "momentum":
        state["momentum_buffer"] = state["momentum_buffer"] * 3.0
    elif what == "momentum data":
        state["momentum_buffer"].data = state["momentum_buffer"] * 3.0
    else:
        optimizer.state[param] = {"momentum_buffer": state["momentum_buffer"] * 3.0}
    checked_step(optimizer)
    set_gradients(named, 3)
    checked_step(optimizer)
    assert took_the_kernels(optimizer)


def test_momentum_that_was_deleted_is_made_anew(device):
    named, optimizer = _started(device, dampening=0.25)
    del optimizer.state[named[1][1]]["momentum_buffer"]
    checked_step(optimizer)


@pytest.mark.parametrize("edited", [False, True])
def test_a_skipped_step(edited, device):
    named, optimizer = _started(device)
    optimizer.grad_scale = torch.tensor(1.0, device=device)
    optimizer.found_inf = torch.tensor(1.0, device=device)
    before = [to_numpy(param) for _, param in named]
    optimizer.step()
    assert all((to_numpy(param) == old).all() for (_, param), old in zip(named, before, strict=True))
    if edited:
        with torch.no_grad():
            named[0][1].mul_(3.0)
        # Skipped as well: the norms of the edited weights are computed, and must not be lost.
        optimizer.step()
    optimizer.found_inf.zero_()
    for step in (3, 4):
        set_gradients(named, step)
        checked_step(optimizer)
        assert _recomputed(optimizer) == []


def test_an_edit_after_a_step_that_was_broken_off(device, monkeypatch):
    """As where the ranks of sharded layers disagree: weights were looked at, and nothing was changed."""
    named, optimizer = _started(device)

    def broken(*args, **options):
        raise RuntimeError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(optimizer._last.fused, "_launch", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            optimizer.step()
    with torch.no_grad():
        named[1][1].mul_(3.0)
    checked_step(optimizer)
    assert _recomputed(optimizer) == [1]


def test_a_step_skipped_for_its_gradients(device):
    named, optimizer = _started(device, skip_nonfinite=True)
    named[0][1].grad[0, 0] = float("nan")
    optimizer.step()
    assert optimizer.skipped_steps == 1
    set_gradients(named, 3)
    checked_step(optimizer)
    assert _recomputed(optimizer) == []


def test_a_layer_without_gradient_that_is_edited(device):
    named, optimizer = _started(device)
    _, param = named[1]
    param.grad = None
    with torch.no_grad():
        param.mul_(3.0)
    version = param._version
    for _ in range(2):
        checked_step(optimizer)
    assert param._version == version
    set_gradients(named, 3)
    checked_step(optimizer)
    # And one that is not edited keeps what it carries.
    param.grad = None
    checked_step(optimizer)
    set_gradients(named, 4)
    checked_step(optimizer)
    assert _recomputed(optimizer) == []


def test_changed_groups(device):
    named, optimizer = _started(device)
    optimizer.param_groups[0]["adapt"] = False
    checked_step(optimizer)
    optimizer.param_groups[0]["adapt"] = True
    set_gradients(named, 3)
    checked_step(optimizer)
    assert _recomputed(optimizer) == []
    more = network(device, shapes=((9,), (4, 4)), seed=7)
    named[0][1].data.mul_(2.0)
    optimizer.add_param_group({"params": [(f"more.{name}", param) for name, param in more], "lr": 0.25})
    for step in (4, 5):
        set_gradients([*named, *more], step)
        checked_step(optimizer)
    assert took_the_kernels(optimizer)


def test_a_group_that_lost_a_parameter_and_one_in_another_place(device):
    named, optimizer = _started(device)
    params = optimizer.param_groups[0]["params"]
    params[0], params[1] = params[1], params[0]
    named[0][1].data.mul_(2.0)
    checked_step(optimizer)
    del params[0], optimizer.param_groups[0]["param_names"]
    set_gradients(named, 3)
    checked_step(optimizer)
    assert len(optimizer.rates()) == 2


def test_weights_of_another_type(device):
    named, optimizer = _started(device)
    _, param = named[1]
    param.data = param.data.double() * 2.0
    set_gradients(named, 3)
    checked_step(optimizer, factor=1e6)
    assert took_the_kernels(optimizer)


def test_weights_transposed_where_they_are(device):
    named = network(device, shapes=((6, 6), (4, 3)))
    optimizer = fused(named)
    advance(optimizer, named, 2)
    _, param = named[0]
    param.data = param.detach().t()
    for step in (2, 3):
        set_gradients(named, step)
        checked_step(optimizer)
    assert took_the_kernels(optimizer)


@pytest.mark.parametrize("attribute", ["skip_nonfinite", "master_weights", "carry_norms"])
def test_options_that_change(attribute, device):
    named, optimizer = _started(device)
    named[1][1].data.mul_(2.0)
    setattr(optimizer, attribute, not getattr(optimizer, attribute))
    checked_step(optimizer)


def test_another_path_in_between(device):
    named, optimizer = _started(device)
    optimizer.param_groups[0].update(fused=False)
    checked_step(optimizer)
    assert not took_the_kernels(optimizer)
    optimizer.param_groups[0].update(fused=True)
    named[1][1].data.mul_(2.0)
    set_gradients(named, 3)
    checked_step(optimizer)
    assert took_the_kernels(optimizer)


def test_parameters_that_share_a_version(device):
    flat = torch.randn(60, generator=torch.Generator().manual_seed(3)).to(device)
    named = [(f"part{i}", torch.nn.Parameter(part)) for i, part in enumerate(flat.split([12, 8, 40]))]
    optimizer = fused(named)
    for step in range(4):
        set_gradients(named, step)
        checked_step(optimizer)
        assert _recomputed(optimizer) == ([] if step else [0, 1, 2])
    with torch.no_grad():
        named[1][1].mul_(2.0)
    checked_step(optimizer)
    assert _recomputed(optimizer) == [0, 1, 2]


def test_the_step_counts_as_a_change_in_place(device):
    named, optimizer = _started(device)
    (_, param) = named[1]
    version = param._version
    loss = (param**2).sum()
    optimizer.step()
    assert param._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_master_weights_that_are_edited(device):
    named = network(device, shapes=SHAPES, dtype=torch.float16)
    optimizer = fused(named, master_weights=True)
    advance(optimizer, named, 2)
    optimizer.state[named[1][1]]["master"].mul_(3.0)
    checked_step(optimizer)
    assert _recomputed(optimizer) == [1]
    version = named[1][1]._version
    checked_step(optimizer)
    assert _recomputed(optimizer) == []
    assert named[1][1]._version == version + 1


def test_a_captured_step_leaves_the_sums_where_a_replay_reads_them(device, monkeypatch):
    if device != "cpu":
        pytest.skip("a pretended capture; test_fused_gpu.py has the real one")
    named, optimizer = _started(device, capturable=True)
    (bucket,) = optimizer._last.fused._buckets
    address = bucket._p_sums[0].data_ptr()
    monkeypatch.setattr(_fused, "is_capturing", lambda device: True)
    optimizer.step()
    assert bucket._p_sums[0].data_ptr() == address
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for step in (3, 4):
        set_gradients(named, step)
        checked_step(optimizer)
        # Outside the graph as well from now on.
        assert bucket._p_sums[0].data_ptr() == address
        assert torch.equal(bucket._p_sums[0], bucket._p_sums[1])


def test_capture_needs_capturable(device, monkeypatch):
    named, optimizer = _started(device)
    before = [param.detach().clone() for _, param in named]
    monkeypatch.setattr(_fused, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="`capturable` is False"):
        optimizer.step()
    assert all(torch.equal(param, old) for (_, param), old in zip(named, before, strict=True))


def test_a_copy_of_the_optimizer_starts_anew(device):
    import copy

    _, optimizer = _started(device)
    twin = copy.deepcopy(optimizer)
    assert twin._last.fused is None
    assert twin.carry_norms is optimizer.carry_norms
    params = twin.param_groups[0]["params"]
    params[1].data.mul_(2.0)
    set_gradients([("", param) for param in params], 3)
    checked_step(twin)


def test_copied_keeps_values():
    named = network("cpu", shapes=SHAPES)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named, copied(named), strict=True))


def test_carry_norms_is_one_choice_for_the_whole_optimizer(device):
    named = network(device, shapes=SHAPES)
    with pytest.raises(TypeError, match="`carry_norms` must be True or False, got 'yes'"):
        fused(named, carry_norms="yes")
    with pytest.raises(ValueError, match="`carry_norms` cannot differ per group"):
        fused([{"params": named, "carry_norms": False}])
