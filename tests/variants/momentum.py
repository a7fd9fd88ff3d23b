"""Norm and the two ways to add momentum that several transcriptions share, in float64 and NumPy alone."""

import math

import numpy as np


def norm(x):
    """Return the Euclidean norm of all entries."""
    return math.sqrt(float(np.sum(np.square(x))))


def sgd(p, s, v, lr, momentum, dampening, nesterov):
    """Let a step `s` through momentum and `lr` as ``torch.optim.SGD`` does: `lr` outside, `v` starts as the step.

    The first step is not dampened. Without momentum there is no `v`.
    """
    if not momentum:
        return p - lr * s, None
    v = s if v is None else momentum * v + (1 - dampening) * s
    return p - lr * (s + momentum * v if nesterov else v), v


def classic(p, s, v, momentum, nesterov):
    """Let a step `s`, which holds the learning rate, through the paper's momentum; `v` starts as zeros."""
    v = s if v is None else momentum * v + s
    return p - (s + momentum * v if nesterov else v), v
