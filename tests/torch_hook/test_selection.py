"""`params`: a hook on some of the parameters, by iterable or by a predicate on name and parameter."""

import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close, lars
from torch_cases import PATHS, to_numpy


def _model():
    torch.manual_seed(10)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    return model


def _scaled(model, optimizer):
    """Return the names of the parameters whose gradient the hook has changed, after checking each one's value."""
    raw = {name: to_numpy(p.grad) for name, p in model.named_parameters()}
    data = {name: to_numpy(p) for name, p in model.named_parameters()}
    optimizer.step()
    scaled = set()
    for name, param in model.named_parameters():
        if (to_numpy(param.grad) != raw[name]).any():
            scaled.add(name)
            assert_close(to_numpy(param.grad), lars(data[name], raw[name]).grad, "float32")
    return scaled


WEIGHTS = {"0.weight", "2.weight"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["list", "generator", "named", "predicate on name", "predicate on parameter"])
def test_restricted(kind, path):
    model = _model()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.0)
    params = {
        "list": [model[0].weight, model[2].weight],
        "generator": (p for p in model.parameters() if p.ndim > 1),
        "named": [(name, p) for name, p in model.named_parameters() if name in WEIGHTS],
        "predicate on name": lambda name, p: name in WEIGHTS,
        "predicate on parameter": lambda name, p: p.ndim > 1,
    }[kind]
    handle = add_hook(optimizer, GradientLARS(), params=params, path=path)
    assert _scaled(model, optimizer) == WEIGHTS
    assert set(handle.rates().names) == WEIGHTS


def test_a_predicate_is_asked_once_about_each_parameter():
    model = _model()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.0)
    asked = []
    add_hook(optimizer, GradientLARS(), params=lambda name, p: asked.append(name) or True)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    assert asked[:6] == [name for name, _ in model.named_parameters()]
    assert len(asked) == 6


def test_parameters_added_later():
    model = _model()
    for params, expected in [(None, True), (lambda name, p: p.ndim > 1, True), ([model[0].weight], False)]:
        optimizer = torch.optim.SGD(list(model[0].named_parameters()), lr=0.0)
        add_hook(optimizer, GradientLARS(), params=params)
        optimizer.add_param_group({"params": [("late", model[2].weight), ("late bias", model[2].bias)]})
        model[2].weight.grad = torch.ones_like(model[2].weight)
        optimizer.step()
        assert torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight)) is not expected


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (torch.zeros(2), TypeError, "`params` must be an iterable of parameters or a predicate .* got Tensor"),
        (3, TypeError, "got int"),
        (["0.weight"], TypeError, "`params` must hold tensors, got str"),
        ([], ValueError, "`params` selects none"),
        (lambda name, p: False, ValueError, "`params` selects none"),
        ([torch.nn.Parameter(torch.zeros(7))], ValueError, r"shape \(7,\) that `optimizer` does not have"),
    ],
)
def test_refused(params, error, message):
    optimizer = torch.optim.SGD(_model().named_parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        add_hook(optimizer, GradientLARS(), params=params)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_predicate_needs_names():
    optimizer = torch.optim.SGD(_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"does not know its parameters' names. Make it with `model.named_parameters"):
        add_hook(optimizer, GradientLARS(), params=lambda name, p: "bias" not in name)


def test_names_without_named_parameters():
    model = _model()
    optimizer = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    handle = add_hook(optimizer, GradientLARS())
    optimizer.step()
    assert handle.rates().names == ("group0.param0", "group0.param1", "group1.param0", "group1.param1")
