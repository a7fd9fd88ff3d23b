"""Train a small vision transformer on scikit-learn's digits, with the Trainer of transformers and LARS.

The Trainer is given LARS in both ways: as a callback that puts the hook on SGD, and as its optimizer.

    pip install "gradient-lars[torch]" "transformers[torch]" scikit-learn
    python examples/integrations/train_transformers.py [FOLDER OF THE CHECKPOINTS]
"""

import sys

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from gradient_lars import GradientLARS
from gradient_lars.integrations.transformers import GradientLARSCallback, optimizer_cls_and_kwargs


def network() -> ViTForImageClassification:
    """Return a transformer for images of 8 x 8, with random weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return ViTForImageClassification(
        ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes, **no_dropout)
    )


def accuracy(prediction: tuple) -> dict[str, float]:
    """Return the share of right answers."""
    logits, labels = prediction
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def main(folder: str = "digits") -> None:
    """Train once with the hook on SGD and once with LARS, and print both accuracies."""
    x, y = (torch.tensor(array) for array in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 8 - 1
    data = [{"pixel_values": image, "labels": label} for image, label in zip(x, y, strict=True)]
    common = {
        "num_train_epochs": 12,
        "per_device_train_batch_size": 64,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "max_grad_norm": 0,  # the Trainer's default clips the gradient before LARS sees it
        "weight_decay": 1e-4,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }

    set_seed(0)
    # The Trainer's weight_decay goes to SGD; `absorb_weight_decay` takes it from there into the rate.
    hook = GradientLARSCallback(GradientLARS(), absorb_weight_decay=True, params=lambda name, p: p.ndim > 1)
    args = TrainingArguments(folder, optim="sgd", optim_args="momentum=0.9", learning_rate=0.03, **common)
    trainer = Trainer(network(), args, train_dataset=data[:1437], compute_metrics=accuracy, callbacks=[hook])
    trainer.train()
    print(f"hook on SGD: test accuracy {trainer.evaluate(data[1437:])['eval_accuracy']:.1%}")

    set_seed(0)
    args = TrainingArguments(folder, learning_rate=0.03, **common)
    lars = optimizer_cls_and_kwargs(args, momentum=0.9, trust_coefficient=1.0)
    trainer = Trainer(
        network(), args, train_dataset=data[:1437], compute_metrics=accuracy, optimizer_cls_and_kwargs=lars
    )
    trainer.train()
    print(f"LARS: test accuracy {trainer.evaluate(data[1437:])['eval_accuracy']:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
