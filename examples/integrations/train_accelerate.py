"""Train scikit-learn's digits with Hugging Face's Accelerate and GradientLARS.

    pip install "gradient-lars[torch]" accelerate scikit-learn
    accelerate launch examples/integrations/train_accelerate.py

On a GPU ``--mixed_precision fp16`` or ``bf16`` of ``accelerate launch`` changes nothing in the script.
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook

LR, EPOCHS = 0.03, 10


def main() -> None:
    """Train, and print loss and accuracy on the first process."""
    set_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    train = DataLoader(TensorDataset(x[:1437], y[:1437]), 64, shuffle=True, drop_last=True)

    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.SGD(model.named_parameters(), lr=LR, momentum=0.9)
    # On the optimizer itself, before `prepare` wraps it. For LARS: `optimizer = LARS(param_groups(model, 1e-4), LR)`.
    handle = add_hook(optimizer, GradientLARS(weight_decay=1e-4), params=lambda name, p: p.ndim > 1)
    # In steps of the optimizer: Accelerate leaves the schedule where it is while gradients are accumulated.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(train) // 2)
    model, optimizer, train, schedule = accelerator.prepare(model, optimizer, train, schedule)

    for epoch in range(1, EPOCHS + 1):
        total = torch.zeros((), device=accelerator.device)
        for inputs, targets in train:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                optimizer.step()  # the hook acts in every second one, on the gradients of both batches
                schedule.step()
                optimizer.zero_grad()
            total += loss.detach() / len(train)
        total = accelerator.reduce(total, "mean")
        with torch.no_grad():
            test = accelerator.unwrap_model(model)(x[1437:].to(accelerator.device)).argmax(1).cpu()
        accelerator.print(f"epoch {epoch}: loss {total:.4f}, test accuracy {(test == y[1437:]).float().mean():.1%}")
    for layer in handle.rates():
        accelerator.print(f"{layer.name:10} rate {layer.rate:.2f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
