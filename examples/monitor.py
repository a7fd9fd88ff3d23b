"""Train scikit-learn's digits with LARS, record what LARS does to each layer, and look at it.

    python examples/monitor.py FOLDER
    gradient-lars inspect FOLDER/run.csv --html FOLDER/run.html

Writes run.csv while it trains, and rates.png. `python examples/monitor.py FOLDER --lr 1e-5` shows what a warning looks
like: the learning rate is far below that of any recipe.
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from gradient_lars.monitor import Monitor, plot_rates
from gradient_lars.torch import LARS, param_groups

BATCH_SIZE, EPOCHS = 128, 10


def main() -> None:
    """Train with a monitor, print its summary and save its plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lr", type=float, default=0.1)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    optimizer = LARS(param_groups(model, weight_decay=1e-4), lr=arguments.lr, trust_coefficient=0.1)
    steps = EPOCHS * (1437 // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, steps, cycle_momentum=False)

    # Whatever ends the block, the file holds every step up to there.
    with Monitor(optimizer, csv=arguments.folder / "run.csv") as monitor:
        for _ in range(EPOCHS):
            for batch in torch.randperm(1437).split(BATCH_SIZE)[:-1]:
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    with torch.no_grad():
        accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
    print(f"test accuracy {accuracy.item():.1%}\n")
    print(monitor.summary())
    plot_rates(monitor).savefig(arguments.folder / "rates.png", dpi=150)


if __name__ == "__main__":
    main()
