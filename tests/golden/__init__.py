"""Golden trajectories: five steps of the real Chainer 7.8.1 with Chainer's own ``GradientLARS``, for any framework.

``load()`` reads ``chainer.npz``, which ``make_chainer.py`` has written. A trajectory is replayed by setting the initial
parameters, then, before each step, the gradients of that step; the parameters after it are to be the stored ones.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("chainer.npz")


@dataclass(frozen=True)
class Trajectory:
    """One run: what was set, what went in and what came out.

    `optimizer` is the class of ``chainer.optimizers``; `momentum` is 0 for SGD, which has none. `level` says whether
    the hook was registered on the optimizer or on every update rule: without loss scaling the result is the same.
    `layers` names the entries of `initial`, of each ``grads[step]`` and of each ``params[step]``.
    """

    name: str
    optimizer: str
    lr: float
    momentum: float
    hook: dict[str, float]
    level: str
    dtype: str
    layers: list[str]
    initial: list[np.ndarray]
    grads: list[list[np.ndarray]]
    params: list[list[np.ndarray]]

    def __str__(self):
        """Return the name, which pytest shows for a parameter made of ``ids=str``."""
        return self.name


def load(path=PATH):
    """Return the stored trajectories."""
    with np.load(path) as stored:
        settings = json.loads(stored["settings"].item())
        shapes = settings["shapes"]
        trajectories = []
        for run in settings["runs"]:
            dtype = run["dtype"]
            trajectories.append(
                Trajectory(
                    **run,
                    layers=list(shapes),
                    initial=_split(stored[f"initial-{dtype}"], shapes),
                    grads=[_split(step, shapes) for step in stored[f"grads-{dtype}"]],
                    params=[_split(step, shapes) for step in stored[run["name"]]],
                )
            )
    return trajectories


def save(trajectories, path=PATH):
    """Write trajectories that share their layers and, per type, their initial parameters and gradients."""
    shapes = {
        name: list(array.shape) for name, array in zip(trajectories[0].layers, trajectories[0].initial, strict=True)
    }
    arrays, runs = {}, []
    for run in trajectories:
        arrays[f"initial-{run.dtype}"] = _join(run.initial)
        arrays[f"grads-{run.dtype}"] = np.stack([_join(step) for step in run.grads])
        arrays[run.name] = np.stack([_join(step) for step in run.params])
        runs.append(
            {key: getattr(run, key) for key in ("name", "optimizer", "lr", "momentum", "hook", "level", "dtype")}
        )
    np.savez_compressed(path, settings=json.dumps({"shapes": shapes, "runs": runs}), **arrays)


def _join(arrays):
    return np.concatenate([array.ravel() for array in arrays])


def _split(vector, shapes):
    parts, start = [], 0
    for shape in shapes.values():
        size = int(np.prod(shape, dtype=int))
        parts.append(vector[start : start + size].reshape(shape))
        start += size
    return parts
