"""Train scikit-learn's digits with Lightning and GradientLARS, stop half-way and go on from the checkpoint.

The network knows nothing of LARS: the callback puts the hook on its optimizer.

    pip install "gradient-lars[torch]" lightning scikit-learn
    python examples/integrations/train_lightning.py [FOLDER OF THE CHECKPOINTS]
"""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradient_lars import GradientLARS
from gradient_lars.integrations.lightning import GradientLARSCallback

LR, EPOCHS = 0.03, 10


class Digits(lightning.LightningModule):
    """A small convolutional network; nothing in it knows of LARS."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        """Return the loss of one batch."""
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        """Log the accuracy."""
        self.log("accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> dict:
        """Return plain SGD; with `named_parameters` the rates have the layers' names."""
        optimizer = torch.optim.SGD(self.named_parameters(), lr=LR, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def main(folder: str = "digits") -> None:
    """Train, and print the accuracy and the rates of the last step."""
    lightning.seed_everything(0, verbose=False)
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    train = DataLoader(TensorDataset(x[:1437], y[:1437]), 64, shuffle=True, drop_last=True)
    test = DataLoader(TensorDataset(x[1437:], y[1437:]), 360)

    module, checkpoint = Digits(), None
    for epochs in (EPOCHS // 2, EPOCHS):
        lars = GradientLARSCallback(GradientLARS(weight_decay=1e-4), params=lambda name, p: p.ndim > 1)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,  # LARS sees a batch of 128
            callbacks=[lars],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, train, test, ckpt_path=checkpoint)
        checkpoint = trainer.checkpoint_callback.best_model_path
        print(f"epoch {epochs}: test accuracy {trainer.callback_metrics['accuracy'].item():.1%}")
    for layer in lars.handles[0].rates():
        print(f"{layer.name:20} weights {layer.p_norm:6.3f}  gradient {layer.g_norm:.4f}  rate {layer.rate:8.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
