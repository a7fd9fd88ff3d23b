"""The hook called on PyTorch parameters directly, without an optimizer: the same table."""

import importlib.util
import types

import numpy as np
import pytest

from core.cases import CASES
from gradient_lars import GradientLARS
from reference import assert_close, lars

if importlib.util.find_spec("torch") is None:
    pytest.skip("PyTorch is not installed", allow_module_level=True)

import torch


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_table(case, dtype):
    param = torch.nn.Parameter(torch.tensor(case.p, dtype=getattr(torch, dtype)))
    param.grad = grad = torch.tensor(case.g, dtype=param.dtype)
    data = param.detach().double().numpy()
    expected = lars(data, grad.double().numpy(), **case.settings).grad
    GradientLARS(**case.settings)(None, param)
    assert param.grad is grad
    assert grad.dtype is param.dtype
    np.testing.assert_array_equal(param.detach().double().numpy(), data)
    assert_close(grad.double().numpy(), expected, dtype)


ERRORS = [
    (
        TypeError,
        r"`param\.data` must be a tensor of floating point, got torch\.int64",
        torch.ones(3).long(),
        torch.ones(3),
    ),
    (
        TypeError,
        r"`param\.grad` must be a tensor of floating point, got torch\.int64",
        torch.ones(3),
        torch.ones(3).long(),
    ),
    (ValueError, r"must have the shape of `param\.data`, \(3,\), got \(2, 3\)", torch.ones(3), torch.ones(2, 3)),
    (TypeError, r"must be complex as `param\.data` is, got torch\.float32", torch.ones(3) * 1j, torch.ones(3)),
    (
        ValueError,
        r"is an expanded tensor .*`param\.grad = param\.grad\.clone\(\)`",
        torch.ones(3),
        torch.ones(1).expand(3),
    ),
    (ValueError, r"is sparse, and `weight_decay` is 0\.25", torch.ones(3), torch.ones(3).to_sparse()),
    (ValueError, r"has the layout torch\.sparse_csr", torch.ones(3, 3), "csr"),
]


@pytest.mark.parametrize(("error", "match", "data", "grad"), ERRORS)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_errors_change_nothing(error, match, data, grad):
    grad = torch.ones(3, 3).to_sparse_csr() if isinstance(grad, str) else grad
    before = grad.clone()
    with pytest.raises(error, match=match):
        GradientLARS(weight_decay=0.25)(None, types.SimpleNamespace(data=data, grad=grad))
    assert torch.equal(grad.to_dense(), before.to_dense())
