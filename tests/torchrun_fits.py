"""Trains on synthetic images with all processes of ``torchrun``, in float64; each saves what it ends with.

    torchrun --nproc-per-node 4 torchrun_fits.py FOLDER

The tests import `CASES` and `trained` from here and train alone.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from gradient_lars.cli.cluster import ALONE, joined
from gradient_lars.cli.recipe import Recipe
from gradient_lars.cli.training import Batch, evaluate, fit

# Four processes have parts of 4 images each at batch 16, of 5, 5, 4 and 4 at batch 18; of the micro-batches 3, 2, 2, 2.
CASES = [
    ("sgd", 16, "none"),
    ("lars", 16, "none"),
    ("lars", 18, "none"),
    ("lars", 18, "fsdp2"),
    ("sgd", 96, "fsdp2"),
    ("nesterov", 36, "none"),
    ("lars", 36, "none"),
    ("lars", 36, "fsdp2"),
]
# What every case with a batch of 36 has besides.
CHOICES = {"micro_batch": 9, "augment": "shift-flip", "label_smoothing": 0.1, "schedule": "cosine", "network": "vgg"}


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def images():
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(96) % 3
    return Batch(torch.randn(96, 1, 8, 8, generator=generator) + y[:, None, None, None], y)


def trained(optimizer, batch_size, cluster=ALONE):
    """Losses, final weights and statistics, what is measured, and the rates of a run, by name."""
    choices = CHOICES if batch_size == 36 else {}
    recipe = Recipe(optimizer, 0.05, batch_size, 2, 3, 0.9, weight_decay=5e-4, threshold=0.01, eps=1e-9, **choices)
    train = images()
    fitted = fit(recipe, train, 3, record_rates=True, cluster=cluster)
    part = Batch(train.x[:31], train.y[:31])  # which does not divide evenly either
    found = {"losses": fitted.losses, "measured": evaluate(fitted.network, part, cluster)}
    for name, value in fitted.network.state_dict().items():
        found[name] = (value.full_tensor() if isinstance(value, DTensor) else value).numpy()
    if fitted.rates:
        found["rates"] = [(row.step, row.p_norm, row.g_norm, row.rate, row.adapted) for row in fitted.rates]
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def main(folder):
    torch.set_num_threads(1)
    with float64(), joined("none") as cluster:
        cluster.use(cluster.own_device(torch.device("cpu")))
        for optimizer, batch_size, cluster.shard in CASES:
            found = trained(optimizer, batch_size, cluster)
            np.savez(folder / f"{optimizer}-{batch_size}-{cluster.shard}-{cluster.rank}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
