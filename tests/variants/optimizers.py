"""One step of one layer as complete LARS optimizers take it, in PyTorch and elsewhere, transcribed in float64.

Arguments and results are those of the functions in `variants.wrappers`.
"""

import re

import numpy as np

from variants.momentum import classic, norm, sgd


def chainer(name, p, g, v, lr, *, momentum=0.9, threshold=0.01, weight_decay=0.0, eps=1e-9):
    """Chainer's hook GradientLARS on MomentumSGD: `lr` is the paper's rate times its coefficient.

    Source: chainer 7.8.1, ``optimizer_hooks/gradient_lars.py`` and ``optimizers/momentum_sgd.py``.
    """
    p_norm = norm(p)
    rate = p_norm / (eps + norm(g) + weight_decay * p_norm) if p_norm > threshold else 1.0
    v = momentum * (0.0 if v is None else v) - lr * (rate * (g + weight_decay * p))
    return p + v, v


def paper(name, p, g, v, lr, *, momentum=0.9, weight_decay=5e-4, eta=0.001):
    """Algorithm 1 of the paper, which says nothing of zero norms: rate 1 where it would divide by 0 or stay at 0.

    Source: arXiv 1708.03888. Every layer is adapted; there is no epsilon.
    """
    p_norm = norm(p)
    below = norm(g) + weight_decay * p_norm
    rate = eta * p_norm / below if p_norm > 0 and below > 0 else 1.0
    return classic(p, lr * rate * (g + weight_decay * p), v, momentum, nesterov=False)


def open_lars(name, p, g, v, lr, *, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001, eps=1e-8):
    """open-lars: fewer than two dimensions lose the ratio and keep the decay.

    Source: open-lars 0.1.1, ``open_lars/lars.py`` and ``open_lars/functional.py``.
    """
    p_norm, g_norm = norm(p), norm(g)
    rate = 1.0
    if np.ndim(p) > 1 and p_norm > 0 and g_norm > 0:
        rate = trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + eps)
    return classic(p, lr * rate * (g + weight_decay * p), v, momentum, nesterov=False)


def pytorch_optimizer(
    name,
    p,
    g,
    v,
    lr,
    *,
    weight_decay=0.0,
    momentum=0.9,
    dampening=0.0,
    trust_coefficient=0.001,
    nesterov=False,
    maximize=False,
):
    """pytorch-optimizer's LARS: no epsilon, and a zero gradient follows the formula; the first step is dampened too.

    Source: pytorch-optimizer 4.1.0, ``pytorch_optimizer/optimizer/lars.py``. Fewer than two dimensions lose ratio and
    decay. `maximize` turns the gradient round before the decay is added.
    """
    s = -g if maximize else g
    if np.ndim(p) > 1:
        p_norm = norm(p)
        below = norm(g) + weight_decay * p_norm
        rate = trust_coefficient * p_norm / below if p_norm > 0 and below > 0 else 1.0
        s = rate * (s + weight_decay * p)
    if momentum > 0:
        v = momentum * (0.0 if v is None else v) + (1 - dampening) * s
        s = s + momentum * v if nesterov else v
    return p - lr * s, v


def optax(name, p, g, v, lr, *, weight_decay=0.0, trust_coefficient=0.001, eps=0.0, momentum=0.9, nesterov=False):
    """optax.lars without masks: the norm below is that of gradient and decay together.

    Source: google-deepmind/optax 0.2.8, ``optax/_src/alias.py`` (lars) and ``optax/_src/transform.py`` (the parts).
    """
    u = g + weight_decay * p
    p_norm, u_norm = norm(p), norm(u)
    rate = 1.0 if p_norm == 0 or u_norm == 0 else trust_coefficient * p_norm / (u_norm + eps)
    return classic(p, lr * rate * u, v, momentum, nesterov)


def simclr(
    name,
    p,
    g,
    v,
    lr,
    *,
    momentum=0.9,
    use_nesterov=False,
    weight_decay=0.0,
    exclude_from_weight_decay=(),
    exclude_from_layer_adaptation=(),
    classic_momentum=True,
    eeta=0.001,
):
    """SimCLR's LARSOptimizer (arXiv 2002.05709), also TensorFlow models' LARS, in both places of the momentum.

    Source: google-research/simclr, ``lars_optimizer.py``; tensorflow/models,
    ``official/modeling/optimization/lars_optimizer.py``. With the "popular" momentum the ratio is that of the update
    after momentum, and the momentum holds plain gradients.
    """
    unadapted = exclude_from_layer_adaptation or exclude_from_weight_decay
    u = g if any(re.search(part, name) for part in exclude_from_weight_decay) else g + weight_decay * p
    if not classic_momentum:
        v = u if v is None else momentum * v + u
        u = u + momentum * v if use_nesterov else v
    p_norm, u_norm = norm(p), norm(u)
    rate = 1.0
    if p_norm > 0 and u_norm > 0 and not any(re.search(part, name) for part in unadapted):
        rate = eeta * p_norm / u_norm
    if classic_momentum:
        return classic(p, lr * rate * u, v, momentum, use_nesterov)
    return p - lr * rate * u, v


def barlow_twins(name, p, g, v, lr, *, weight_decay=0.0, momentum=0.9, eta=0.001, filtered=True, bias_lr_ratio=1.0):
    """LARS of Barlow Twins (arXiv 2103.03230): with its filters one dimension exactly loses ratio and decay.

    Source: facebookresearch/barlowtwins, ``main.py``. `bias_lr_ratio`: what the learning rate of its second parameter
    group, all with one dimension, is of that of the first.
    """
    one_dimension = np.ndim(p) == 1
    s = g
    if not (filtered and one_dimension):
        s = g + weight_decay * p
        if norm(p) > 0 and norm(s) > 0:
            s = s * (eta * norm(p) / norm(s))
    return sgd(p, s, v, lr * bias_lr_ratio if one_dimension else lr, momentum, 0.0, False)


def vicreg(name, p, g, v, lr, *, weight_decay=0.0, momentum=0.9, eta=0.001, filtered=True):
    """VICReg (arXiv 2105.04906): the optimizer of Barlow Twins with one learning rate for all.

    Source: facebookresearch/vicreg, ``main_vicreg.py``.
    """
    return barlow_twins(name, p, g, v, lr, weight_decay=weight_decay, momentum=momentum, eta=eta, filtered=filtered)


def byol(name, p, g, v, lr, *, weight_decay=0.0, momentum=0.9, eta=0.001, filtered=True):
    """LARS of BYOL (arXiv 2006.07733): with its filters biases and whole normalisation modules lose ratio and decay.

    Source: google-deepmind/deepmind-research, ``byol/utils/optimizers.py``. Haiku calls a bias "b"; here it is "bias".
    """
    *module, leaf = name.split(".")
    u = g
    if not (filtered and (leaf == "bias" or (module and "norm" in module[-1]))):
        u = g + weight_decay * p
        p_norm, u_norm = norm(p), norm(u)
        u = u * (eta * p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0)
    v = u if v is None else momentum * v + u
    return p - lr * v, v


def mlperf_resnet(
    name, p, g, v, lr, *, momentum=0.9, weight_decay=0.0001, eeta=0.001, epsilon=0.0, skip_list=(), use_nesterov=False
):
    """LARSOptimizer of MLPerf's ResNet: skipped layers lose ratio and decay; a zero norm keeps the decay.

    Source: mlcommons/training, ``image_classification/tensorflow/official/resnet/mlperf_lars_optimizer.py``, and
    ``tensorflow2/lars_optimizer.py``, where an epsilon of 0 becomes Keras's 1e-7: give that for TensorFlow 2.
    """
    if any(part in name for part in skip_list):
        return classic(p, lr * g, v, momentum, use_nesterov)
    p_norm, g_norm = norm(p), norm(g)
    degenerate = p_norm == 0 or g_norm == 0
    rate = 1.0 if degenerate else eeta * p_norm / (g_norm + weight_decay * p_norm + epsilon)
    return classic(p, lr * rate * (g + weight_decay * p), v, momentum, use_nesterov)
