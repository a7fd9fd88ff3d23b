"""The peers for `LARS.from_peer`: the real ones, and stand-ins with the attributes of those that do not install.

A stand-in has class, module, groups and state as its peer's source has them. What it computes is the transcription.
"""

import numpy as np
import torch

from variants.transcriptions import VARIANTS


class StandIn(torch.optim.Optimizer):
    """Takes the transcription's steps and keeps the momentum as the peer does."""

    variant = ""
    buffer = "momentum_buffer"

    def settings(self, group, param):
        """Return the transcription's settings for a parameter."""
        raise NotImplementedError

    def step(self):
        for group in self.param_groups:
            for i, param in enumerate(group["params"]):
                state = self.state[param]
                v = state.get(self.buffer)
                p, v = VARIANTS[self.variant](
                    # Which layers are excluded goes by dimensions here, and not by names.
                    f"layer{i}",
                    param.detach().numpy().copy(),
                    param.grad.numpy(),
                    None if v is None else v.numpy(),
                    group["lr"],
                    **self.settings(group, param),
                )
                with torch.no_grad():
                    param.copy_(torch.as_tensor(np.asarray(p)))
                if v is not None and group["momentum"]:
                    state[self.buffer] = torch.as_tensor(np.asarray(v)).clone()


COMMON = ("momentum", "dampening", "nesterov", "weight_decay")


def _common(group):
    return {name: group[name] for name in COMMON}


class _Solo(StandIn):
    variant = "solo_learn"

    def __init__(self, params, lr, *, clip_lr=False, exclude_bias_n_norm=False, **settings):
        usual = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "eta": 1e-3, "eps": 1e-8}
        own = {"clip_lr": clip_lr, "exclude_bias_n_norm": exclude_bias_n_norm}
        super().__init__(params, {"lr": lr, **usual, **own, **settings})

    def settings(self, group, param):
        own = {"clip_lars_lr": group["clip_lr"], "exclude_bias_n_norm_lars": group["exclude_bias_n_norm"]}
        return {**_common(group), "eta": group["eta"], "eps": group["eps"], **own}


class _Barlow(StandIn):
    variant = "barlow_twins"
    buffer = "mu"

    def __init__(self, params, lr, *, weight_decay=0.0, momentum=0.9, eta=1e-3, filters=True):
        own = {"weight_decay_filter": filters, "lars_adaptation_filter": filters}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta, **own})

    def settings(self, group, param):
        own = {name: group[name] for name in ("weight_decay", "momentum", "eta")}
        return {**own, "filtered": bool(group["weight_decay_filter"])}


class _Wrapper:
    """What wraps an SGD: its state and groups are the inner one's."""

    def __init__(self, optim, **settings):
        self.optim = optim
        vars(self).update(settings)

    @property
    def param_groups(self):
        return self.optim.param_groups

    def step(self):
        # The inner optimizer adds no decay while it is stepped; that of the wrapper is in the gradient.
        for group in self.optim.param_groups:
            for param in group["params"]:
                wanted = _direction(self, group, param)
                param.grad = wanted
        decays = [group["weight_decay"] for group in self.optim.param_groups]
        for group in self.optim.param_groups:
            group["weight_decay"] = 0.0
        self.optim.step()
        for group, decay in zip(self.optim.param_groups, decays, strict=True):
            group["weight_decay"] = decay


def _direction(wrapper, group, param):
    """Return what the wrapper puts into the gradient: a step from 0 at a learning rate of 1."""
    p, g, lr = param.detach().numpy().copy(), param.grad.numpy().copy(), group["lr"]
    settings = {**wrapper.peer_settings(), "weight_decay": group["weight_decay"]}
    if wrapper.variant == "larc" and settings["clip"]:
        # At the real learning rate, for the clip.
        after, _ = VARIANTS["larc"]("layer", p, g, None, lr, **settings)
        return torch.as_tensor(np.asarray((p - after) / lr))
    after, _ = VARIANTS[wrapper.variant]("layer", p, g, None, 1.0, **settings)
    return torch.as_tensor(np.asarray(p - after))


class _TorchLARS(_Wrapper):
    variant = "torchlars"

    def __init__(self, optim, eps=1e-8, trust_coef=1e-3):
        super().__init__(optim, eps=eps, trust_coef=trust_coef)

    def peer_settings(self):
        return {"eps": self.eps, "trust_coef": self.trust_coef}


class _LARC(_Wrapper):
    variant = "larc"

    def __init__(self, optim, trust_coefficient=0.02, clip=True, eps=1e-8):
        super().__init__(optim, trust_coefficient=trust_coefficient, clip=clip, eps=eps)

    def peer_settings(self):
        return {"trust_coefficient": self.trust_coefficient, "clip": self.clip, "eps": self.eps}


def _named(kind, module, name):
    return type(name, (kind,), {"__module__": module, "__qualname__": name})


TorchLARS = _named(_TorchLARS, "torchlars.lars", "LARS")
LARC = _named(_LARC, "apex.parallel.LARC", "LARC")
SoloLARS = _named(_Solo, "solo.utils.lars", "LARS")
BarlowLARS = _named(_Barlow, "__main__", "LARS")


def _vectors(param):
    return param.ndim == 1


def _sgd(params, **settings):
    return torch.optim.SGD(params, lr=1.0, **settings)


def make(name, params):
    """Return the peer of this name over `params`, with settings far from its defaults."""
    strong = {"momentum": 0.9, "weight_decay": 0.05}
    if name == "open_lars":
        from open_lars import LARS

        return LARS(params, lr=1.0, trust_coefficient=0.1, **strong)
    if name.startswith("pytorch_optimizer"):
        from pytorch_optimizer import LARS

        own = {"maximize": True} if name.endswith("maximize") else {"dampening": 0.3}
        return LARS(params, lr=1.0, trust_coefficient=0.1, **strong, **own)
    makers = {
        "torchlars": lambda: TorchLARS(_sgd(params, nesterov=True, **strong), trust_coef=0.1),
        "larc": lambda: LARC(_sgd(params, dampening=0.3, **strong), trust_coefficient=0.5),
        "larc without clip": lambda: LARC(_sgd(params, **strong), trust_coefficient=0.1, clip=False),
        "solo_learn": lambda: SoloLARS(params, 1.0, eta=0.5, clip_lr=True, exclude_bias_n_norm=True, **strong),
        "solo_learn for all": lambda: SoloLARS(params, 1.0, eta=0.1, **strong),
        "barlow_twins": lambda: BarlowLARS(params, 1.0, eta=0.1, **strong),
        "vicreg": lambda: BarlowLARS(params, 1.0, eta=0.1, filters=_vectors, **strong),
        "unfiltered": lambda: BarlowLARS(params, 1.0, eta=0.1, filters=None, **strong),
    }
    return makers[name]()


INSTALLED = ("open_lars", "pytorch_optimizer", "pytorch_optimizer maximize")
STAND_INS = (
    "torchlars",
    "larc",
    "larc without clip",
    "solo_learn",
    "solo_learn for all",
    "barlow_twins",
    "vicreg",
    "unfiltered",
)
