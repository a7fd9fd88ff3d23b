"""Train scikit-learn's digits with a compiled model and a compiled step of LARS.

    pip install "gradient-lars[torch]" scikit-learn
    python examples/integrations/train_compile.py [BACKEND OF TORCH.COMPILE]

The default backend, inductor, needs a C++ compiler on a CPU. "aot_eager" needs none, and shows that all can be traced.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from gradient_lars.torch import LARS, param_groups

LR, EPOCHS = 0.03, 10


def main(backend: str = "inductor") -> None:
    """Train, and print loss and accuracy."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    x, y = (torch.tensor(array, device=device) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ).to(device)
    # An lr in a tensor: as a number it would be part of the compiled code, which each new value would make anew.
    lr = torch.tensor(LR, device=device)
    optimizer = LARS(param_groups(model, weight_decay=1e-4), lr=lr, momentum=0.9, trust_coefficient=1.0)
    # Before the step is compiled, so that the schedule notices the steps.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    compiled = torch.compile(model, backend=backend)
    step = torch.compile(optimizer.step, backend=backend)

    for epoch in range(1, EPOCHS + 1):
        total = torch.zeros((), device=device)
        batches = torch.randperm(1437, device=device)[:1408].split(128)
        for batch in batches:
            loss = nn.functional.cross_entropy(compiled(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            step()
            total += loss.detach() / len(batches)
        schedule.step()
        with torch.no_grad():
            accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
        print(f"epoch {epoch}: loss {total:.4f}, test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
