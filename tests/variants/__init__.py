"""Golden trajectories of every published LARS variant: twenty steps in float64, for any framework to replay.

``load()`` reads ``variants.npz``, which ``make_goldens.py`` has written from the transcriptions beside it. A trajectory
is replayed by setting the initial weights, then, before each step, the learning rate and the gradients of that step;
after the steps in ``CHECKPOINTS``, counted from 1, the weights are to be the stored ones. All goldens share their
layers, initial weights and gradients.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PATH = Path(__file__).with_name("variants.npz")
STEPS = 20
# After the first steps, about the steps in which a layer has no gradient, and at the end.
CHECKPOINTS = (1, 2, 4, 7, 8, 14, 20)

# The layers: initial values (None: random), shape, and the steps, counted from 0, in which the gradient is 0.
LAYERS = {
    "conv.kernel": (None, (2, 1, 2, 2), ()),
    "dense.kernel": (None, (2, 3), ()),
    "dense.bias": (None, (2,), (6,)),
    "norm.scale": (1.0, (2,), ()),
    "zero.kernel": (0.0, (2, 2), ()),
    "zero.bias": (0.0, (2,), ()),
    "quiet.kernel": (None, (1, 3), (0, 6, 13)),
    "temperature": (0.7, (), ()),
}


@dataclass(frozen=True)
class Golden:
    """One run: what was set, what went in and what came out.

    `variant` names the preset and the transcription, `settings` are those of the peer under the peer's own names (what
    is not among them has the peer's default), `lrs` the learning rate of each step. `excluded` are the layers that the
    rule of the variant leaves without ratio by their names or shapes, not those it leaves out for a norm or for a
    weight decay of 0.
    """

    variant: str
    label: str
    settings: dict
    lrs: list[float]
    excluded: list[str]
    initial: dict[str, np.ndarray]
    grads: list[dict[str, np.ndarray]]
    weights: dict[int, dict[str, np.ndarray]]

    def __str__(self):
        """Return the name, which pytest shows for a parameter made of ``ids=str``."""
        return f"{self.variant}-{self.label}"


def load(path=PATH):
    """Return the stored goldens."""
    with np.load(path) as stored:
        initial, grads = _split(stored["initial"]), [_split(row) for row in stored["grads"]]
        return [
            Golden(
                **run,
                initial=initial,
                grads=grads,
                weights={
                    step: _split(row)
                    for step, row in zip(CHECKPOINTS, stored[f"{run['variant']}-{run['label']}"], strict=True)
                },
            )
            for run in json.loads(stored["runs"].item())
        ]


def save(goldens, path=PATH):
    """Write goldens that share their layers, initial weights and gradients."""
    runs = [{key: getattr(run, key) for key in ("variant", "label", "settings", "lrs", "excluded")} for run in goldens]
    arrays = {str(run): np.stack([_join(run.weights[step]) for step in CHECKPOINTS]) for run in goldens}
    grads = np.stack([_join(step) for step in goldens[0].grads])
    np.savez_compressed(path, runs=json.dumps(runs), initial=_join(goldens[0].initial), grads=grads, **arrays)


def assert_follows(golden, trajectory, tolerance=1e-12):
    """Assert that each layer of a trajectory, one entry a step, is the golden one to `tolerance` of its scale."""
    assert len(trajectory) == STEPS
    for step, expected in golden.weights.items():
        actual = trajectory[step - 1]
        assert list(actual) == list(expected), f"the layers are {list(actual)}"
        for name, weights in expected.items():
            values = np.asarray(actual[name])
            assert values.dtype == np.float64, f"{name} is {values.dtype}"
            assert values.shape == weights.shape, f"{name} has shape {values.shape}"
            scale, error = np.max(np.abs(weights)), np.max(np.abs(values - weights))
            assert np.isfinite(scale), f"{name} cannot be compared at scale {scale}"
            # Weights that are still 0 must be 0. NaN compares as false, so that a NaN fails too.
            assert error <= tolerance * scale, f"{name} differs after step {step} by {error:.3e} at scale {scale:.3e}"


def _join(arrays):
    return np.concatenate([np.ravel(arrays[name]) for name in LAYERS])


def _split(vector):
    arrays, start = {}, 0
    for name, (_, shape, _) in LAYERS.items():
        size = int(np.prod(shape, dtype=int))
        arrays[name] = vector[start : start + size].reshape(shape)
        start += size
    return arrays
