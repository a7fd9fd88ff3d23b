"""step(closure): the gradients are made during the step, and LARS acts on them, once per evaluation."""

import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook
from reference import assert_close, lars
from torch_cases import PATHS, to_numpy

TARGET = torch.tensor([10.0, -20.0, 5.0])
WEIGHTS = [1.0, 2.0, 3.0]


def _expected(steps, lr=0.1):
    p = torch.tensor(WEIGHTS, dtype=torch.float64)
    for _ in range(steps):
        p = p - lr * torch.from_numpy(lars(p.numpy(), 2 * (p - TARGET).numpy(), weight_decay=0.1).grad)
    return p.numpy()


def _problem(path, optimizer_class=torch.optim.SGD):
    param = torch.nn.Parameter(torch.tensor(WEIGHTS))
    optimizer = optimizer_class([param], lr=0.1)
    add_hook(optimizer, GradientLARS(weight_decay=0.1), path=path)

    def closure():
        optimizer.zero_grad()
        loss = (param - TARGET).square().sum()
        loss.backward()
        return loss

    return param, optimizer, closure


@pytest.mark.parametrize("style", ["none", "positional", "keyword", "keyword None"])
@pytest.mark.parametrize("path", PATHS)
def test_every_way_to_step_gives_the_same_trajectory(path, style):
    param, optimizer, closure = _problem(path)
    for _ in range(3):
        loss_before = (param.detach() - TARGET).square().sum()
        if style == "positional":
            assert optimizer.step(closure) == loss_before
        elif style == "keyword":
            assert optimizer.step(closure=closure) == loss_before
        else:
            closure()
            optimizer.step(**({"closure": None} if style == "keyword None" else {}))
    assert_close(to_numpy(param), _expected(3), "float32")


def test_once_per_evaluation():
    class Twice(torch.optim.SGD):
        """Evaluates the closure twice, as sharpness-aware optimizers do, and keeps both gradients."""

        def step(self, closure):
            self.seen = []
            for _ in range(2):
                with torch.enable_grad():
                    loss = closure()
                self.seen.append(self.param_groups[0]["params"][0].grad.clone())
            return loss

    param, optimizer, closure = _problem("foreach", Twice)
    expected = lars(to_numpy(param), 2 * to_numpy(param.detach() - TARGET), weight_decay=0.1).grad
    optimizer.step(closure)
    for grad in optimizer.seen:
        assert_close(to_numpy(grad), expected, "float32")


class ClosureLast(torch.optim.SGD):
    def step(self, zero_grad=False, closure=None):
        assert zero_grad is True
        loss = closure()
        torch.optim.SGD.step.__wrapped__(self)
        return loss


class OtherName(torch.optim.SGD):
    def step(self, evaluate=None):
        loss = evaluate()
        torch.optim.SGD.step.__wrapped__(self)
        return loss


class AnyArguments(torch.optim.SGD):
    def step(self, *args, **kwargs):
        return torch.optim.SGD.step.__wrapped__(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [
        (ClosureLast, lambda c: ((True, c), {})),
        (ClosureLast, lambda c: ((True,), {"closure": c})),
        (ClosureLast, lambda c: ((), {"closure": c, "zero_grad": True})),
        (OtherName, lambda c: ((c,), {})),
        (OtherName, lambda c: ((), {"evaluate": c})),
        (AnyArguments, lambda c: ((c,), {})),
        (AnyArguments, lambda c: ((), {"closure": c})),
    ],
)
def test_the_closure_is_found_wherever_the_optimizer_takes_it(optimizer_class, arguments):
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    param, optimizer, closure = _problem("foreach", optimizer_class)

    def with_grad():
        with torch.enable_grad():
            return closure()

    for _ in range(2):
        args, kwargs = arguments(with_grad)
        optimizer.step(*args, **kwargs)
    assert_close(to_numpy(param), _expected(2), "float32")


@pytest.mark.parametrize("per_param", [False, True])
@pytest.mark.parametrize("with_closure", [False, True])
def test_other_hooks_run_without_autograd_with_and_without_a_closure(with_closure, per_param):
    param = torch.nn.Parameter(torch.tensor(WEIGHTS))
    optimizer = torch.optim.SGD([param], lr=0.1)

    class Decay:
        name, call_for_each_param = "decay", per_param

        def __call__(self, *args):
            param.grad.add_(param, alpha=0.5)
            param.mul_(2.0)

    add_hook(optimizer, Decay())

    def closure():
        param.grad = torch.ones(3)

    if not with_closure:
        closure()
    optimizer.step(closure if with_closure else None)
    assert param.grad.grad_fn is None
    assert param.tolist() == pytest.approx([2 * w - 0.1 * (1 + 0.5 * w) for w in WEIGHTS])


def test_stale_gradients_before_the_closure_are_left_alone():
    param, optimizer, closure = _problem("foreach")
    param.grad = torch.full((3,), 7.0)
    seen = []

    def watching():
        seen.append(param.grad.clone())
        return closure()

    optimizer.step(watching)
    assert seen[0].tolist() == [7.0, 7.0, 7.0]


def test_two_hooks_act_in_order_inside_the_closure():
    param, optimizer, closure = _problem("foreach")

    def double(optimizer):
        param.grad.mul_(2)

    add_hook(optimizer, double)
    start = to_numpy(param)
    optimizer.step(closure)
    once = _expected(1) - start
    assert_close(to_numpy(param), start + 2 * once, "float32")


def test_an_error_in_the_closure_changes_nothing():
    param, optimizer, _ = _problem("foreach")

    def broken():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(broken)
    assert param.tolist() == WEIGHTS


class Outer(torch.optim.SGD):
    """Calls its parent's step, whose hooks PyTorch runs as well."""

    def step(self, closure=None, fail=False):
        loss = super().step(closure)
        if fail:
            raise RuntimeError("after the update")
        return loss


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("timing", ["pre", "post"])
def test_a_step_that_calls_its_parents_step_acts_once(timing, with_closure):
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])  # from now on SGD.step has hooks of its own
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Outer([param], lr=0.0)
    handle = add_hook(optimizer, GradientLARS(weight_decay=0.1), timing=timing)

    def closure():
        param.grad = torch.tensor([0.5, 0.0])
        return 1.0

    for _ in range(2):
        if not with_closure:
            closure()
        assert optimizer.step(closure if with_closure else None) == (1.0 if with_closure else None)
        assert param.grad.tolist() == pytest.approx([5.0 * 0.8, 5.0 * 0.4])
    with pytest.raises(RuntimeError, match="after the update"):
        optimizer.step(closure, fail=True)
    closure()
    optimizer.step()
    assert param.grad.tolist() == pytest.approx([5.0 * 0.8, 5.0 * 0.4])
    handle.remove()
    assert "step" not in optimizer.__dict__


def test_a_step_function_taken_before_the_hook_acts_again_after_a_step_that_raised():
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Outer([param], lr=0.0)
    plain_step = optimizer.step
    add_hook(optimizer, GradientLARS())
    param.grad = torch.tensor([0.5, 0.0])
    with pytest.raises(RuntimeError, match="after the update"):
        optimizer.step(fail=True)
    param.grad = torch.tensor([0.5, 0.0])
    plain_step()
    assert param.grad.tolist() == pytest.approx([5.0, 0.0])


def test_an_argument_that_is_no_closure_passes_through():
    class WithLoss(torch.optim.SGD):
        def step(self, loss):
            self.loss = loss
            return super().step()

    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    param.grad = torch.tensor([0.5, 0.0])
    optimizer = WithLoss([param], lr=0.0)
    add_hook(optimizer, GradientLARS())
    optimizer.step(1.5)
    assert optimizer.loss == 1.5
    assert param.grad.tolist() == pytest.approx([5.0, 0.0])
