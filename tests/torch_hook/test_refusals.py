"""What cannot work is refused in one sentence, before anything has changed; what does not help is warned about."""

import warnings

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook


def _param(*shape):
    param = torch.nn.Parameter(torch.ones(shape or (2, 2)))
    param.grad = torch.ones_like(param)
    return param


def test_lbfgs():
    with pytest.raises(TypeError, match="`optimizer` is LBFGS, which evaluates loss and gradient many times"):
        add_hook(torch.optim.LBFGS([_param()]), GradientLARS())


@pytest.mark.parametrize("name", ["LARS", "Lars", "LARC", "LARSWrapper"])
def test_an_optimizer_that_does_it_already(name):
    optimizer = type("Mine", (type(name, (torch.optim.SGD,), {}),), {})([_param()])
    with pytest.raises(ValueError, match="`optimizer` is Mine, which does layer-wise scaling itself"):
        add_hook(optimizer, GradientLARS())
    add_hook(optimizer, lambda optimizer: None, name="another hook")


def test_a_wrapper_without_step_hooks():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    with pytest.raises(
        TypeError, match="a Wrapper that has no step hooks of its own. Pass the optimizer that it wraps"
    ):
        add_hook(Wrapper(torch.optim.SGD([_param()])), GradientLARS())


@pytest.mark.parametrize(
    "make",
    [
        torch.optim.Adam,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adamax,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.Adagrad,
        torch.optim.Adadelta,
        torch.optim.Adafactor,
        lambda params: torch.optim.AdamW(params, weight_decay=0.0),
        lambda params: type("Lion", (torch.optim.SGD,), {})(params),
        lambda params: type("FusedAdam8bit", (torch.optim.SGD,), {})(params),
        lambda params: type("Mine", (torch.optim.Adam,), {})(params),
    ],
)
def test_optimizers_that_cancel_the_rate_are_warned_about(make):
    with pytest.warns(UserWarning, match="GradientLARS has next to no effect on .*Use SGD with momentum") as caught:
        add_hook(make([_param()]), GradientLARS())
    assert caught[0].filename == __file__


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.ASGD])
def test_others_are_not_warned_about(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_hook(make([_param()]), GradientLARS())


def test_other_hooks_on_adam_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_hook(torch.optim.Adam([_param()]), lambda optimizer: None, name="nothing")


def test_the_warning_is_true_for_adam():
    # Where it warns, the hook changes next to nothing; with SGD it changes a lot.
    ends = {}
    for make in (torch.optim.Adam, torch.optim.SGD):
        for hooked in (False, True):
            param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
            optimizer = make([param], lr=0.01)
            if hooked:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    add_hook(optimizer, GradientLARS())
            param.grad = torch.tensor([30.0, -40.0])
            optimizer.step()
            ends[make, hooked] = param.detach().clone()
    assert torch.allclose(ends[torch.optim.Adam, True], ends[torch.optim.Adam, False], rtol=1e-6)
    assert not torch.allclose(ends[torch.optim.SGD, True], ends[torch.optim.SGD, False], rtol=1e-2)


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")  # FSDP1's own, on the CPU
@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.usefixtures("process_group")
def test_fsdp1(use_orig_params):
    module = FullyShardedDataParallel(
        torch.nn.Linear(4, 4), use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    with pytest.raises(ValueError, match="a parameter that FSDP1 has flattened.*Shard with FSDP2"):
        add_hook(torch.optim.SGD(module.named_parameters(), lr=0.1), GradientLARS())


@pytest.mark.usefixtures("process_group")
def test_partial_dtensor():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    part = DTensor.from_local(torch.ones(3), init_device_mesh("cpu", (1,)), [Partial()])
    with pytest.raises(ValueError, match="'a' in the placement .* still to be summed.*Redistribute it"):
        add_hook(torch.optim.SGD([("a", torch.nn.Parameter(part))], lr=0.1), GradientLARS())


def test_parameters_of_other_types():
    for dtype in (torch.int64, torch.float8_e4m3fn):
        param = torch.nn.Parameter(torch.zeros(2).to(dtype), requires_grad=False)
        optimizer = torch.optim.SGD([("a", param)], lr=0.1)
        with pytest.raises(TypeError, match=f"holds 'a' of type {dtype}. LARS takes float16 and wider"):
            add_hook(optimizer, GradientLARS())


def test_one_gradient_of_two_parameters_is_refused():
    a, b = _param(), _param()
    b.grad = a.grad
    optimizer = torch.optim.SGD([("a", a), ("b", b)], lr=0.1)
    add_hook(optimizer, GradientLARS())
    with pytest.raises(ValueError, match="`param.grad` of 'b' is the same tensor as that of 'a'"):
        optimizer.step()
    assert torch.equal(a.grad, torch.ones(2, 2))


def test_a_parameter_that_was_replaced_is_missed():
    a = _param()
    optimizer = torch.optim.SGD([("a", a)], lr=0.1)
    add_hook(optimizer, GradientLARS(), params=[a])
    optimizer.param_groups[0]["params"][0] = _param()
    with pytest.raises(RuntimeError, match="`params` named 1 parameters, but the optimizer now holds 0 of them"):
        optimizer.step()


def _inference_tensor():
    with torch.inference_mode():
        return torch.ones(2, 2)


@pytest.mark.parametrize(
    ("grad", "weight_decay", "message"),
    [
        (_inference_tensor(), 0.0, "`param.grad` of 'b' is an inference tensor"),
        (torch.ones(3).as_strided((2, 2), (1, 1)), 0.0, "`param.grad` of 'b' is an expanded tensor or overlaps itself"),
        (torch.ones(1, 2).expand(2, 2), 0.0, "`param.grad` of 'b' is an expanded tensor .*grad.clone"),
        (
            torch.sparse_coo_tensor([[0]], [[1.0, 1.0]], (2, 2), check_invariants=True),
            0.1,
            "`param.grad` of 'b' is sparse, and `weight_decay` is 0.1",
        ),
    ],
)
@pytest.mark.parametrize("path", ["loop", "foreach"])
def test_a_gradient_that_cannot_be_rescaled_changes_nothing(path, grad, weight_decay, message):
    a, b = _param(), _param()
    b.grad = grad
    optimizer = torch.optim.SGD([("a", a), ("b", b)], lr=0.1)
    add_hook(optimizer, GradientLARS(weight_decay=weight_decay), path=path)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(a, torch.ones(2, 2))
    assert torch.equal(a.grad, torch.ones(2, 2))
