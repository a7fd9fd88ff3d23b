"""Train a model with an optimizer from timm's registry: LARS, by its name.

    pip install "gradient-lars[torch]" timm scikit-learn
    python examples/integrations/train_timm.py --opt gradientlars --lr 0.03 --opt-kwargs trust_coefficient=1.0

timm's own training script needs no change. It is started through the module that registers the name:

    python -m gradient_lars.integrations.timm train.py DATA --opt gradientlars --lr 4.8 --weight-decay 1e-4
    torchrun --nproc-per-node 8 -m gradient_lars.integrations.timm train.py DATA --opt gradientlars --lr 4.8
"""

import argparse
import ast

import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from torch import nn

from gradient_lars.integrations.timm import register


def main() -> None:
    """Train, and print the accuracy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--opt", default="gradientlars")
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--opt-kwargs", nargs="*", default=["trust_coefficient=1.0"])
    args = parser.parse_args()
    settings = {name: ast.literal_eval(value) for name, value in (pair.split("=") for pair in args.opt_kwargs)}

    torch.manual_seed(0)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    register()
    # timm makes the groups: tensors of one dimension get no decay, and `adapt=None` leaves them out of LARS as well.
    optimizer = create_optimizer_v2(model, args.opt, lr=args.lr, weight_decay=args.weight_decay, **settings)
    epochs = 10
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(1437).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
    print(f"{type(optimizer).__name__}: test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
