"""Our hook in the real Chainer gives the parameters that Chainer's own hook gave."""

import pytest

from chainer_hook.models import LEVELS
from golden import load
from golden.make_chainer import run as run_chainer
from gradient_lars import GradientLARS
from reference import assert_close


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("run", load(), ids=str)
def test_golden_trajectory(run, level):
    hook = GradientLARS(**run.hook)
    params = run_chainer(run.optimizer, run.momentum, hook, level, run.initial, run.grads, lr=run.lr)
    for step, expected in enumerate(run.params):
        for name, actual, wanted in zip(run.layers, params[step], expected, strict=True):
            assert actual.dtype == wanted.dtype, (name, step)
            assert_close(actual, wanted, run.dtype)
