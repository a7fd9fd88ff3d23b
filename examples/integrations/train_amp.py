"""Train scikit-learn's digits in mixed precision, with GradScaler and GradientLARS in a plain loop.

    pip install "gradient-lars[torch]" scikit-learn
    python examples/integrations/train_amp.py

On a GPU it runs in float16. On a CPU autocast is to bfloat16, which needs no scaler; it is there to be seen at work.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from gradient_lars import GradientLARS
from gradient_lars.torch import add_hook

LR, EPOCHS = 0.03, 10


def main() -> None:
    """Train, and print loss, scale and accuracy."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    torch.manual_seed(0)
    x, y = (torch.tensor(array, device=device) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ).to(device)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=LR, momentum=0.9, fused=True)
    handle = add_hook(optimizer, GradientLARS(weight_decay=1e-4), params=lambda name, p: p.ndim > 1)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**16)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)

    for epoch in range(1, EPOCHS + 1):
        total = torch.zeros((), device=device)
        batches = torch.randperm(1437, device=device)[:1408].split(128)
        for batch in batches:
            with torch.autocast(device, dtype):
                loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            # To clip, call scaler.unscale_(optimizer) and torch.nn.utils.clip_grad_norm_ here: it comes before LARS.
            scaler.step(optimizer)  # unscaled norms; a step that overflows changes nothing
            scaler.update()
            total += loss.detach() / len(batches)
        schedule.step()
        with torch.no_grad():
            accuracy = (model(x[1437:]).argmax(1) == y[1437:]).float().mean()
        print(f"epoch {epoch}: loss {total:.4f}, scale {scaler.get_scale():.0f}, test accuracy {accuracy:.1%}")
    for layer in handle.rates():
        print(f"{layer.name:10} gradient {layer.g_norm:.4f}  rate {layer.rate:.2f}")


if __name__ == "__main__":
    main()
