"""The scenario of Chainer's own test of its hook, on its hook and on ours."""

import chainer
import pytest

from chainer_hook.models import HOOKS, hook_ids, link_of
from reference import assert_close, lars

# One child is above the threshold and one below it; arrays without entries are in both.
ABOVE, BELOW = {"a": (2, 3), "b": (2, 0, 1), "c": (0,)}, {"a": (5, 0, 1), "b": (0,), "c": (7, 3)}
SETTINGS = {"threshold": 1e-2, "weight_decay": 0.2, "eps": 1e-9}


@pytest.mark.parametrize("hook", HOOKS, **hook_ids)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_step_of_sgd(hook, dtype, rng):
    children = [
        link_of(**{name: (size * rng.uniform(-1, 1, shape)).astype(dtype) for name, shape in shapes.items()})
        for size, shapes in ((1.0, ABOVE), (1e-4, BELOW))
    ]
    model = chainer.ChainList(*children)
    optimizer = chainer.optimizers.SGD(lr=1.0).setup(model)
    optimizer.add_hook(hook(**SETTINGS))
    before, expected = [], []
    for param in model.params():
        param.grad = rng.uniform(-1, 1, param.shape).astype(dtype)
        layer = lars(param.array, param.grad, **SETTINGS)
        before.append(param.array.copy())
        expected.append(layer.grad)
        assert (layer.rate != 1.0) == (layer.p_norm > 0.01)

    optimizer.update()

    for param, start, step in zip(model.params(), before, expected, strict=True):
        assert_close(start - param.array, step, dtype)
