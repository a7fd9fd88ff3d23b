"""Every path on every case against the float64 reference: the gradients it leaves and the figures it reports."""

import numpy as np
import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close, lars
from torch_cases import CASES, PATHS, PYTORCH_PATHS, SETTINGS, parameter, to_numpy


def _step(params, settings, path, **options):
    """Run only the hook: a learning rate of 0 leaves the parameters as they are."""
    optimizer = torch.optim.SGD(params, lr=0.0, **options)
    handle = add_hook(optimizer, GradientLARS(**settings), path=path)
    optimizer.step()
    return handle


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_layer(case, path, settings):
    param = parameter(*case.make(torch.Generator().manual_seed(1)))
    grad = param.grad
    expected = lars(to_numpy(param), to_numpy(grad), **settings)
    rates = _step([param], settings, path).rates()
    assert param.grad is grad
    assert_close(to_numpy(grad), expected.grad, param.dtype)
    wide = "float64" if param.dtype in (torch.float64, torch.complex128) else "float32"
    assert_close(rates.p_norm.numpy(), [expected.p_norm], wide)
    assert_close(rates.g_norm.numpy(), [expected.g_norm], wide)
    assert_close(rates.rate.numpy(), [expected.rate], wide)
    assert rates.adapted.tolist() == [expected.p_norm > settings["threshold"]]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_all_layers_in_one_optimizer(path, settings):
    # Mixed types, layouts and sizes together: each must come out as it does alone, in the optimizer's order.
    generator = torch.Generator().manual_seed(2)
    params = [parameter(*case.make(generator)) for case in CASES]
    params[3].grad = None
    expected = [p.grad is not None and lars(to_numpy(p), to_numpy(p.grad), **settings) for p in params]
    names = [(case.name, param) for case, param in zip(CASES, params, strict=True)]
    rates = _step(names, settings, path).rates()
    present = [i for i, e in enumerate(expected) if e]
    assert rates.names == tuple(CASES[i].name for i in present)
    assert params[3].grad is None
    for i, rate in zip(present, rates, strict=True):
        assert_close(to_numpy(params[i].grad), expected[i].grad, params[i].dtype)
        assert_close(
            [rate.p_norm, rate.g_norm, rate.rate],
            [expected[i].p_norm, expected[i].g_norm, expected[i].rate],
            "float32",
            factor=10,
        )
        assert rate.adapted == (expected[i].p_norm > settings["threshold"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("param_type", "grad_type"), [("float64", "float32"), ("float32", "float64")])
def test_gradient_of_another_type(path, param_type, grad_type):
    param = torch.nn.Parameter(torch.randn(4, 3, dtype=getattr(torch, param_type)))
    try:
        param.grad_dtype = getattr(torch, grad_type)
    except (AttributeError, RuntimeError):
        pytest.skip("needs a PyTorch whose parameters have grad_dtype")
    param.grad = torch.randn(4, 3, dtype=getattr(torch, grad_type))
    settings = {"threshold": 0.01, "weight_decay": 0.1, "eps": 1e-9}
    expected = lars(to_numpy(param), to_numpy(param.grad), **settings)
    _step([param], settings, path)
    assert_close(to_numpy(param.grad), expected.grad, "float32")


@pytest.mark.parametrize("path", PATHS)
def test_shared_parameter_is_scaled_once(path):
    first = torch.nn.Linear(4, 4, bias=False)
    second = torch.nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    first.weight.grad = torch.randn(4, 4)
    expected = lars(to_numpy(first.weight), to_numpy(first.weight.grad), weight_decay=0.1)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = torch.optim.SGD([first.weight, second.weight], lr=0.0)
    handle = add_hook(optimizer, GradientLARS(weight_decay=0.1), path=path)
    optimizer.step()
    assert_close(to_numpy(first.weight.grad), expected.grad, "float32")
    assert len(handle.rates()) == 1


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_sparse_gradient(path, coalesced):
    param = torch.nn.Parameter(torch.randn(6, 2, generator=torch.Generator().manual_seed(3)))
    # Row 1 comes twice: the norm is that of the sum, not of the pieces.
    grad = torch.sparse_coo_tensor([[1, 4, 1]], [[3.0, 1.0], [2.0, -1.0], [-1.0, 5.0]], (6, 2), check_invariants=True)
    param.grad = grad.coalesce() if coalesced else grad
    expected = lars(to_numpy(param), to_numpy(grad.to_dense()))
    handle = _step([param], {}, path)
    assert_close(to_numpy(param.grad.to_dense()), expected.grad, "float32")
    assert_close(handle.rates().g_norm.numpy(), [expected.g_norm], "float32")


@pytest.mark.parametrize("path", PATHS)
def test_embedding_with_sparse_gradient_beside_dense_layers(path):
    torch.manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 3))
    model(torch.tensor([1, 7, 1])).square().sum().backward()
    expected = [lars(to_numpy(p), to_numpy(p.grad.to_dense())) for p in model.parameters()]
    _step(model.parameters(), {}, path)
    for param, layer in zip(model.parameters(), expected, strict=True):
        assert_close(to_numpy(param.grad.to_dense()), layer.grad, "float32")


@pytest.mark.parametrize("path", PATHS)
def test_maximize_still_decays_the_weights(path):
    # The optimizer negates the gradient: p <- p + lr * rate * (g - wd * p).
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.tensor([0.5, -0.5])
    p, g = to_numpy(param), to_numpy(param.grad)
    optimizer = torch.optim.SGD([param], lr=0.1, maximize=True)
    add_hook(optimizer, GradientLARS(weight_decay=0.2), path=path)
    optimizer.step()
    rate = 5.0 / (1e-9 + np.sqrt(0.5) + 0.2 * 5.0)
    assert_close(to_numpy(param), p + 0.1 * rate * (g - 0.2 * p), "float32")


@pytest.mark.parametrize("path", PATHS)
def test_groups_that_maximize_and_that_do_not_beside_each_other(path):
    a, b = (parameter(torch.tensor([3.0, 4.0]), torch.tensor([0.5, -0.5])) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "maximize": True}, {"params": [b]}], lr=0.0)
    add_hook(optimizer, GradientLARS(weight_decay=0.2), path=path)
    rate = 5.0 / (1e-9 + np.sqrt(0.5) + 0.2 * 5.0)
    optimizer.step()
    assert_close(to_numpy(a.grad), rate * (np.array([0.5, -0.5]) - 0.2 * np.array([3.0, 4.0])), "float32")
    assert_close(to_numpy(b.grad), rate * (np.array([0.5, -0.5]) + 0.2 * np.array([3.0, 4.0])), "float32")


@pytest.mark.parametrize("path", PATHS)
def test_adapted_is_told_in_the_norms_own_type(path):
    # 0.1 is larger as float32 than as float64, and is not larger than itself.
    param = parameter(torch.tensor([0.1]), torch.tensor([5.0]))
    rates = _step([param], {"threshold": 0.1}, path).rates()
    assert rates.adapted.tolist() == [False]
    assert rates.rate.tolist() == [1.0]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_finite_goes_through_the_formula(path):
    # A NaN gradient: the rate is NaN. An infinite one: 0. NaN weights are not above the threshold: 1.
    nan, inf = float("nan"), float("inf")
    layers = [([3.0, 4.0], [nan, 1.0]), ([3.0, 4.0], [inf, 1.0]), ([nan, 4.0], [2.0, 1.0])]
    params = [parameter(torch.tensor(p), torch.tensor(g)) for p, g in layers]
    rates = _step(params, {}, path).rates()
    assert str(rates.rate.tolist()) == "[nan, 0.0, 1.0]"
    assert rates.adapted.tolist() == [True, True, False]
    assert params[0].grad.isnan().all()
    assert str(params[1].grad.tolist()) == "[nan, 0.0]"
    assert params[2].grad.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("path", PYTORCH_PATHS)
def test_norm_of_millions_of_entries_is_accurate(path):
    # PyTorch's own float32 norm is 3e-5 off here.
    param = parameter(torch.rand(2_000_003), torch.rand(2_000_003))
    expected = lars(to_numpy(param), to_numpy(param.grad))
    rates = _step([param], {}, path).rates()
    assert abs(rates.p_norm.item() / expected.p_norm - 1) < 1e-6
    assert abs(rates.g_norm.item() / expected.g_norm - 1) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_attributes_may_change_between_steps(path):
    param = parameter(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    optimizer = torch.optim.SGD([param], lr=0.0)
    hook = GradientLARS()
    handle = add_hook(optimizer, hook, path=path)
    optimizer.step()
    assert_close(to_numpy(param.grad), [5.0, 0.0], "float32")
    hook.threshold, hook.weight_decay = 100.0, 0.5
    optimizer.step()
    assert_close(to_numpy(param.grad), [6.5, 2.0], "float32")
    assert handle.rates().adapted.tolist() == [False]
