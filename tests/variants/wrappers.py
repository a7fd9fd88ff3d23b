"""One step of one layer as PyTorch's LARS implementations take it, transcribed from their sources in float64.

Every function takes the layer's name, weights `p`, gradient `g`, momentum `v` (None before the first step) and the
learning rate of this step, and returns the new `p` and `v`. Settings have the names and the defaults of the peer.
"""

import numpy as np

from variants.momentum import norm, sgd


def torchlars(
    name, p, g, v, lr, *, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0, eps=1e-8, trust_coef=0.001
):
    """torchlars around ``torch.optim.SGD``: rate 1, decay included, where one of the norms is 0.

    Source: kakaobrain/torchlars 0.1.2, ``torchlars/lars.py`` and ``torchlars/adaptive_lr_cuda.cu``.
    """
    p_norm, g_norm = norm(p), norm(g)
    degenerate = p_norm == 0 or g_norm == 0
    rate = 1.0 if degenerate else p_norm / (g_norm + weight_decay * p_norm + eps) * trust_coef
    return sgd(p, rate * (g + weight_decay * p), v, lr, momentum, dampening, nesterov)


def larc(
    name,
    p,
    g,
    v,
    lr,
    *,
    momentum=0.0,
    dampening=0.0,
    nesterov=False,
    weight_decay=0.0,
    trust_coefficient=0.02,
    clip=True,
    eps=1e-8,
):
    """Apex's LARC around ``torch.optim.SGD``: where one of the norms is 0 the decay is skipped with the ratio.

    Source: NVIDIA/apex, ``apex/parallel/LARC.py``. A learning rate of 0 divides to infinity there, which the clip
    turns into 1.
    """
    p_norm, g_norm = norm(p), norm(g)
    step = g
    if p_norm != 0 and g_norm != 0:
        rate = trust_coefficient * p_norm / (g_norm + p_norm * weight_decay + eps)
        if clip:
            rate = min(rate / lr, 1.0) if lr else 1.0
        step = rate * (g + weight_decay * p)
    return sgd(p, step, v, lr, momentum, dampening, nesterov)


def swav(name, p, g, v, lr, *, momentum=0.9, weight_decay=1e-6, trust_coefficient=0.001, clip=False):
    """SwAV (arXiv 2006.09882): LARC without the clip around SGD, for every layer, biases too.

    Source: facebookresearch/swav, ``main_swav.py``.
    """
    return larc(
        name,
        p,
        g,
        v,
        lr,
        momentum=momentum,
        weight_decay=weight_decay,
        trust_coefficient=trust_coefficient,
        clip=clip,
    )


def timm(
    name,
    p,
    g,
    v,
    lr,
    *,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    trust_coeff=0.001,
    eps=1e-8,
    trust_clip=False,
    always_adapt=False,
):
    """timm's Lars: no weight decay means plain SGD unless `always_adapt`; the clip acts on the rate 1 of a zero norm.

    Source: huggingface/pytorch-image-models 1.0.31, ``timm/optim/lars.py``.
    """
    step = g
    if weight_decay != 0 or always_adapt:
        p_norm, g_norm = norm(p), norm(g)
        rate = 1.0
        if p_norm > 0 and g_norm > 0:
            rate = trust_coeff * p_norm / (g_norm + p_norm * weight_decay + eps)
        if trust_clip:
            rate = min(rate / lr, 1.0) if lr else 1.0
        step = rate * (g + weight_decay * p)
    return sgd(p, step, v, lr, momentum, dampening, nesterov)


def bolts(
    name,
    p,
    g,
    v,
    lr,
    *,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    trust_coefficient=0.001,
    eps=1e-8,
):
    """Lightning Bolts' LARS, which lightly took over: no weight decay means plain SGD, a zero norm skips the decay.

    Source: Lightning-Universe/lightning-bolts 0.7.0, ``pl_bolts/optimizers/lars.py``; lightly 1.6.0,
    ``lightly/utils/lars.py``.
    """
    p_norm, g_norm = norm(p), norm(g)
    step = g
    if weight_decay != 0 and p_norm != 0 and g_norm != 0:
        step = trust_coefficient * p_norm / (g_norm + p_norm * weight_decay + eps) * (g + weight_decay * p)
    return sgd(p, step, v, lr, momentum, dampening, nesterov)


def solo_learn(
    name,
    p,
    g,
    v,
    lr,
    *,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    nesterov=False,
    eta=0.001,
    eps=1e-8,
    clip_lars_lr=False,
    exclude_bias_n_norm_lars=False,
):
    """solo-learn's LARS: adapts without weight decay as well; an excluded layer has exactly one dimension.

    Source: vturrisi/solo-learn, ``solo/utils/lars.py``. Excluded layers and zero norms lose ratio and decay.
    """
    p_norm, g_norm = norm(p), norm(g)
    step = g
    if not (exclude_bias_n_norm_lars and np.ndim(p) == 1) and p_norm != 0 and g_norm != 0:
        rate = eta * p_norm / (g_norm + p_norm * weight_decay + eps)
        if clip_lars_lr:
            rate = min(rate / lr, 1.0) if lr else 1.0
        step = rate * (g + weight_decay * p)
    return sgd(p, step, v, lr, momentum, dampening, nesterov)
