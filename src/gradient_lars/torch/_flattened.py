"""Groups whose layers somebody has made into one vector, as DeepSpeed's ZeRO does: noticed, and refused.

ZeRO, and the wrappers that keep float32 copies, put a vector of their own in the place of a group's parameters, after
the optimizer was made: all layers end to end, or this rank's part of that. ZeRO-3 marks both kinds with `ds_id`.
"""

import sys
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

_GONE = (
    "the layers, and so their norms, are gone. Shard with FSDP2 (`torch.distributed.fsdp.fully_shard`), which keeps "
    "every layer."
)


class _Group(NamedTuple):
    """What a group was made with; `of_module` says that it held a module's parameters."""

    shapes: list[torch.Size]
    of_module: bool


class MadeWith:
    """What each group of an optimizer held when it was first seen."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        # Vectors of one's own, by id: one that is gone may have given its own to another one. Of parameters there are
        # no references, with which PyTorch would refuse to swap them.
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def check(self, groups: list[dict[str, Any]]) -> None:
        """Raise ValueError if a group holds vectors in place of the parameters that it was made with.

        Parameters that replace others are ``torch.nn.Parameter`` or have the shapes of those, vectors of layers do not.
        """
        for i, group in enumerate(groups):
            params = group["params"]
            # ZeRO-3 leaves a group empty between two steps.
            if not params:
                continue
            vectors = all(_is_vector(param) and not self._has_seen(param) for param in params)
            shapes = [param.shape for param in params]
            made = self._groups.get(i)
            if made is None:
                if vectors and len(params) == 1 and _deepspeed_runs():
                    raise ValueError(f"`optimizer` holds in group {i} a vector that DeepSpeed has made: {_GONE}")
                self._groups[i] = _Group(shapes, any(isinstance(param, torch.nn.Parameter) for param in params))
                self._seen.update((id(param), weakref.ref(param)) for param in params if _is_vector(param))
            elif vectors and made.of_module and shapes != made.shapes:
                raise ValueError(
                    f"`optimizer` holds in group {i} {_count(params, 'vector')} in place of the "
                    f"{_count(made.shapes, 'parameter')} that it was made with, as DeepSpeed's ZeRO puts there: {_GONE}"
                )

    def _has_seen(self, param: Tensor) -> bool:
        seen = self._seen.get(id(param))
        return seen is not None and seen() is param


def check_not_partitioned(name: str, param: Tensor) -> None:
    """Raise ValueError if `param` is one that ZeRO-3 has partitioned, or such a partition."""
    if hasattr(param, "ds_id") or hasattr(param, "ds_tensor"):
        raise ValueError(f"`optimizer` holds {name!r}, which DeepSpeed's ZeRO-3 has partitioned: {_GONE}")


def _is_vector(param: Tensor) -> bool:
    return type(param) is Tensor and param.dim() == 1


def _deepspeed_runs() -> bool:
    """Return whether DeepSpeed has been initialised; that it is imported says nothing, other packages do so unasked."""
    comm = sys.modules.get("deepspeed.comm")
    return comm is not None and bool(comm.is_initialized())


def _count(items: list[Any], what: str) -> str:
    return f"{len(items)} {what}" + ("s" if len(items) != 1 else "")
