"""``LARS.from_peer``: the same steps as the peer would have taken, from any point of its training on."""

import copy
import doctest
import inspect

import numpy as np
import pytest
import torch

from gradient_lars.torch import LARS
from lars.expected import PATHS
from reference import assert_close
from torch_cases import to_numpy
from variants import load
from variants.ours import start
from variants.peers import INSTALLED, LARC, STAND_INS, BarlowLARS, TorchLARS, make
from variants.test_peers import peer_module

(GOLDEN,) = [golden for golden in load() if str(golden) == "paper-decay"]
STEPS = 12


def _take(optimizer, params, steps):
    for i in steps:
        for group in optimizer.param_groups:
            group["lr"] = GOLDEN.lrs[i]
        for name, param in params.items():
            param.grad = torch.tensor(GOLDEN.grads[i][name])
        optimizer.step()


def _same_end(make_peer, at, *, lr_in_momentum=None, **options):
    """Assert that `STEPS` steps end alike, taken by the peer alone and by LARS from step `at` on."""
    stayed, moved = start(GOLDEN), start(GOLDEN)
    _take(make_peer(list(stayed.values())), stayed, range(STEPS))
    peer = make_peer(list(moved.values()))
    _take(peer, moved, range(at))
    for group in peer.param_groups:
        group["lr"] = GOLDEN.lrs[at]
    optimizer = LARS.from_peer(peer, lr_in_momentum=lr_in_momentum, **options)
    last = STEPS if lr_in_momentum is None else at + 1
    _take(optimizer, moved, range(at, last))
    if lr_in_momentum is not None:
        stayed = start(GOLDEN)
        _take(make_peer(list(stayed.values())), stayed, range(last))
    for name, param in moved.items():
        assert_close(to_numpy(param), to_numpy(stayed[name]), "float64", factor=100)
    return optimizer


@pytest.mark.parametrize("path", ["loop", "foreach", "chosen"])
@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("name", [*INSTALLED, *STAND_INS])
def test_training_goes_on_as_before(name, at, path):
    _same_end(lambda params: make(name, params), at, **PATHS[path])


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("name", ["open_lars", "larc without clip", "barlow_twins"])
def test_the_momentum_is_converted_between_the_two_places_of_lr(name, wanted):
    # The two forms differ whenever the learning rate changes: the next step alone is the same.
    optimizer = _same_end(lambda params: make(name, params), 7, lr_in_momentum=wanted)
    assert all(group["lr_in_momentum"] is wanted for group in optimizer.param_groups)


@pytest.mark.parametrize("at", [0, 5])
def test_timm(at, monkeypatch):
    lars = peer_module(monkeypatch, "timm", "timm.optim.lars").Lars
    _same_end(lambda params: lars(params, momentum=0.9, weight_decay=0.05, trust_coeff=0.1), at)
    _same_end(lambda params: lars(params, momentum=0.9, weight_decay=0.0, trust_coeff=0.1), at)
    _same_end(lambda params: lars(params, momentum=0.9, nesterov=True, trust_coeff=0.1, always_adapt=True), at)


@pytest.mark.parametrize("at", [0, 5])
def test_lightly(at, monkeypatch):
    lars = peer_module(monkeypatch, "lightly", "lightly.utils.lars").LARS
    settings = {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.05, "trust_coefficient": 0.1, "dampening": 0.3}
    _same_end(lambda params: lars(params, **settings), at)


def test_a_clip_that_differs_is_told():
    kind = type("Lars", (torch.optim.SGD,), {"__module__": "timm.optim.lars"})
    peer = kind([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    peer.param_groups[0] |= {"trust_coeff": 0.1, "eps": 1e-8, "trust_clip": True, "always_adapt": False}
    with pytest.warns(UserWarning, match="timm's `trust_clip` also clips layers whose weights or gradient are zero"):
        assert LARS.from_peer(peer).param_groups[0]["trust_clip"] is True


def test_the_peer_is_left_as_it_is():
    params = start(GOLDEN)
    peer = make("open_lars", list(params.values()))
    _take(peer, params, range(3))
    before = copy.deepcopy(peer.state_dict())
    optimizer = LARS.from_peer(peer)
    _take(optimizer, params, range(3, 5))
    after = peer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for key, state in before["state"].items():
        assert torch.equal(state["momentum_buffer"], after["state"][key]["momentum_buffer"])


def test_names_groups_and_the_start_of_a_schedule_are_kept():
    params = start(GOLDEN)
    named = list(params.items())
    inner = torch.optim.SGD([{"params": named[:3], "lr": 0.5}, {"params": named[3:]}], lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(inner, 1)
    optimizer = LARS.from_peer(TorchLARS(inner))
    assert [group["param_names"] for group in optimizer.param_groups] == [list(params)[:3], list(params)[3:]]
    assert [(group["lr"], group["initial_lr"]) for group in optimizer.param_groups] == [(0.5, 0.5), (0.1, 0.1)]
    torch.optim.lr_scheduler.StepLR(optimizer, 1, last_epoch=0)


def test_layers_of_one_group_that_are_treated_differently_share_its_learning_rate():
    params = start(GOLDEN)
    optimizer = LARS.from_peer(make("barlow_twins", list(params.values())))
    found = [(group["adapt"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(True, 0.05, 5), (False, 0.0, 3)]
    assert {group["lr"] for group in optimizer.param_groups} == {1.0}


def test_options_of_lars_and_narrow_parameters():
    params = {name: torch.nn.Parameter(torch.tensor(value).bfloat16()) for name, value in GOLDEN.initial.items()}
    inner = torch.optim.SGD(params.values(), lr=0.5, momentum=0.9)
    for name, param in params.items():
        param.grad = torch.tensor(GOLDEN.grads[0][name]).bfloat16()
    inner.step()
    optimizer = LARS.from_peer(TorchLARS(inner), master_weights=True, skip_nonfinite=True)
    optimizer.step()
    assert optimizer.skip_nonfinite
    assert {state["momentum_buffer"].dtype for state in optimizer.state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("peer", "error", "message"),
    [
        (
            lambda p: torch.optim.Adam(p),
            TypeError,
            "`peer` must be a LARS that is known, got torch.optim.adam.Adam. Kn",
        ),
        (lambda p: torch.optim.SGD(p, lr=0.1), TypeError, "Make a LARS and give it `load_state_dict"),
        (lambda p: "timm", TypeError, "got builtins.str. Known are apex's LARC, .* choose from gradient_lars.presets"),
        (lambda p: LARC(torch.optim.Adam(p)), ValueError, "`peer` wraps a Adam, and LARS is momentum SGD. Use"),
        (lambda p: LARC(torch.optim.SGD(p, lr=1, maximize=True)), ValueError, "whose decay grows the weights"),
    ],
)
def test_refusals(peer, error, message):
    with pytest.raises(error, match=message):
        LARS.from_peer(peer([torch.nn.Parameter(torch.ones(2))]))


def test_settings_of_the_peer_cannot_be_given():
    peer = make("barlow_twins", [torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="`momentum` is the peer's to say. Known are foreach, fused"):
        LARS.from_peer(peer, momentum=0.5)


def test_a_warm_up_may_begin_at_a_learning_rate_of_zero():
    params = start(GOLDEN)
    peer = make("open_lars", list(params.values()))
    peer.param_groups[0]["lr"] = 0.0
    assert LARS.from_peer(peer, lr_in_momentum=False).param_groups[0]["lr_in_momentum"] is False


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)])
def test_a_momentum_is_not_divided_by_a_learning_rate_of_zero(lr):
    params = start(GOLDEN)
    peer = make("open_lars", list(params.values()))
    _take(peer, params, range(2))
    peer.param_groups[0]["lr"] = lr
    with pytest.raises(ValueError, match="`lr_in_momentum` cannot be False at an `lr` of 0"):
        LARS.from_peer(peer, lr_in_momentum=False)


def test_nesterov_with_dampening_is_refused():
    import pytorch_optimizer

    peer = pytorch_optimizer.LARS([torch.nn.Parameter(torch.ones(2))], nesterov=True, dampening=0.3)
    with pytest.raises(ValueError, match="`nesterov` needs a `momentum` above 0 and `dampening` 0"):
        LARS.from_peer(peer)


def test_example():
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(LARS.from_peer, "from_peer", globs={})
    assert len(example.examples) == 10
    assert doctest.DocTestRunner().run(example).failed == 0
    assert "peer" in inspect.signature(LARS.from_peer).parameters


def test_stand_ins_take_the_transcriptions_steps():
    # Of the wrappers in two parts, rate and momentum: together they are the whole transcription.
    (golden,) = [golden for golden in load() if str(golden) == "larc-decay"]
    params = start(golden)
    inner = torch.optim.SGD(params.values(), lr=1.0, momentum=0.9, weight_decay=0.05)
    peer = LARC(inner, trust_coefficient=0.1)
    for i, lr in enumerate(golden.lrs):
        inner.param_groups[0]["lr"] = lr
        for name, param in params.items():
            param.grad = torch.tensor(golden.grads[i][name])
        peer.step()
    for name, param in params.items():
        np.testing.assert_allclose(to_numpy(param), golden.weights[20][name], rtol=1e-9, atol=1e-14)
    assert isinstance(BarlowLARS.__module__, str)
