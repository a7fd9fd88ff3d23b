"""`LARS` in timm's registry of optimizers, by name: in your own script, or in timm's training script as it is.

``python -m gradient_lars.integrations.timm train.py --opt gradientlars ...`` runs a script with the name registered.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import torch

from gradient_lars.torch import LARS

__all__ = ["main", "register"]

NAME = "gradientlars"
_USAGE = "usage: python -m gradient_lars.integrations.timm SCRIPT [its arguments, such as --opt gradientlars]"


def register(name: str = NAME, **settings: Any) -> str:
    """Make `LARS` known to timm's ``create_optimizer_v2``, and so to ``--opt`` of its training script.

    timm sorts a model's parameters into groups itself and gives tensors of one dimension, such as biases and norms, no
    decay; ``adapt=None``, the default here, does not adapt those either. What timm is asked for (lr, weight decay,
    momentum, eps, ``opt_kwargs``) comes before `settings`.

    Args:
        name: what to call it; without an underscore.
        settings: of `LARS`, as defaults for this name: ``register("larslarc", trust_clip=True)``.

    Returns:
        The name, in lower case, as timm has it.

    Raises:
        ImportError: timm is not installed, or is older than its registry (1.0.12).
        TypeError: a setting is unknown, or not of its type.
        ValueError: `name` cannot be found by timm or is that of another optimizer; a setting is out of its range.

    Example::

        import timm.optim
        from gradient_lars.integrations.timm import register

        register()
        optimizer = timm.optim.create_optimizer_v2(model, "gradientlars", lr=4.8, weight_decay=1e-4)

    timm has a ``lars`` of its own; it is plain SGD where ``weight_decay=0``, which this one is not.
    """
    if not isinstance(name, str):
        raise TypeError(f"`name` must be a text, got {name!r}.")
    name = name.lower()
    if not name or "_" in name:
        raise ValueError(
            f"`name` must be a text without underscores, got {name!r}. timm looks up only what follows the last one: "
            "it would take its own 'lars' for 'gradient_lars'."
        )
    LARS([torch.nn.Parameter(torch.zeros(1))], **{"lr": 1.0, **settings})  # raises for a wrong setting now
    factory = _factory()
    registry = factory.default_registry
    defaults = {"adapt": None, **settings}
    if name in registry.list_optimizers():
        known = registry.get_optimizer_info(name)
        if known.opt_class is not LARS:
            raise ValueError(f"`name` {name!r} is another optimizer of timm's. Choose a name that is free.")
        if known.defaults == defaults:
            return name
    info = factory.OptimInfo(
        name=name,
        opt_class=LARS,
        description="LARS of gradient-lars: layer-wise adaptive rates in one fused step",
        has_eps=True,
        has_momentum=True,
        defaults=defaults,
    )
    registry.register(info)
    return name


def main(arguments: list[str] | None = None) -> int:
    """Run a script of timm's with `LARS` registered; ``python -m gradient_lars.integrations.timm``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"gradient_lars.integrations.timm: there is no file {arguments[0]!r}. {_USAGE}", file=sys.stderr)
        return 2
    try:
        register()
    except ImportError as error:
        print(f"gradient_lars.integrations.timm: {error}", file=sys.stderr)
        return 1
    # As Python itself does for a script.
    sys.argv = list(arguments)
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


def _factory() -> Any:
    """Return timm's module of the registry, which ``timm.optim`` itself does not offer."""
    try:
        from timm.optim import _optim_factory
    except ImportError as error:
        raise ImportError(
            f'timm\'s registry of optimizers cannot be loaded: {error}. `pip install "timm>=1.0.12"`.'
        ) from error
    return _optim_factory


if __name__ == "__main__":
    sys.exit(main())
