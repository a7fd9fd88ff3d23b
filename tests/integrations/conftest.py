"""What the frameworks keep in globals, and timm's registry.

The registry is the real one where timm is installed, else one that does the same with names and settings.
"""

import importlib.machinery
import importlib.util
import sys
import types
from dataclasses import dataclass
from typing import Any

import pytest
import torch


@dataclass(frozen=True)
class OptimInfo:
    name: str
    opt_class: Any
    description: str = ""
    has_eps: bool = True
    has_momentum: bool = False
    has_betas: bool = False
    defaults: dict | None = None


class Registry:
    """What timm 1.0.31 does of which `gradient_lars.integrations.timm` makes use."""

    def __init__(self):
        self.infos = {}

    def register(self, info):
        self.infos[info.name.lower()] = info

    def list_optimizers(self):
        return sorted(self.infos)

    def get_optimizer_info(self, name):
        return self.infos[name]

    def create_optimizer(self, model, opt, lr=None, weight_decay=0.0, momentum=0.9, **kwargs):
        # Only what follows the last underscore is looked up; what comes before may be "lookahead".
        info = self.infos[opt.lower().split("_")[-1]]
        trained = [param for param in model.parameters() if param.requires_grad]
        flat, other = [p for p in trained if p.ndim <= 1], [p for p in trained if p.ndim > 1]
        groups = [{"params": flat, "weight_decay": 0.0}, {"params": other, "weight_decay": weight_decay}]
        settings = {"weight_decay": 0.0, "lr": lr, **(info.defaults or {}), **kwargs}
        if info.has_momentum:
            settings.setdefault("momentum", momentum)
        if not info.has_eps:
            settings.pop("eps", None)
        if not info.has_betas:
            settings.pop("betas", None)
        return info.opt_class(groups, **settings)


def _stand_in():
    factory = types.ModuleType("timm.optim._optim_factory")
    factory.OptimInfo, factory.default_registry = OptimInfo, Registry()
    factory.default_registry.register(OptimInfo("lars", torch.optim.SGD, has_eps=False, has_momentum=True))
    optim = types.ModuleType("timm.optim")
    optim._optim_factory = factory
    optim.create_optimizer_v2 = factory.default_registry.create_optimizer
    return {"timm": types.ModuleType("timm"), "timm.optim": optim, "timm.optim._optim_factory": factory}


def _real():
    """Return timm's own modules; without torchvision, which only its models need, those of ``timm.optim`` alone."""
    spec = importlib.util.find_spec("timm")
    if importlib.util.find_spec("torchvision") is None:
        package = types.ModuleType("timm")
        package.__path__ = list(spec.submodule_search_locations)
        models = types.ModuleType("timm.models")
        models.group_parameters = None
        sys.modules.update({"timm": package, "timm.models": models})
    importlib.import_module("timm.optim")
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "timm"}


@pytest.fixture
def timm_optim(monkeypatch):
    """``timm.optim``, with a registry that is as it was before each test."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "timm"}
    modules = _stand_in() if importlib.util.find_spec("timm") is None else _real()
    for name in set(sys.modules) & set(modules) - set(kept):
        del sys.modules[name]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    registry = modules["timm.optim._optim_factory"].default_registry
    attribute = "infos" if isinstance(registry, Registry) else "_optimizers"
    monkeypatch.setattr(registry, attribute, dict(getattr(registry, attribute)))
    return modules["timm.optim"]


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate, which the Trainer uses as well, keeps the settings of its first Accelerator; dynamo its code."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState, PartialState

        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    torch.compiler.reset()
