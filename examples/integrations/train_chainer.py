"""Train scikit-learn's digits with Chainer's own Trainer and GradientLARS.

Chainer is no longer maintained; what it needs to run on today's NumPy is at the top.

    pip install "setuptools<82" wheel numpy scikit-learn gradient-lars
    pip install --no-build-isolation chainer==7.8.1
    python examples/integrations/train_chainer.py [FOLDER OF THE RESULTS]
"""

import sys
import warnings

import numpy as np
from sklearn.datasets import load_digits

from gradient_lars import GradientLARS

np.sctypes = {"int": [np.int8, np.int16, np.int32, np.int64], "float": [np.float16, np.float32, np.float64]}
warnings.filterwarnings("ignore")  # Chainer is older than the Python and the NumPy that it runs on here
import chainer  # noqa: E402  (it reads np.sctypes, which NumPy 2 no longer has)
from chainer import training  # noqa: E402
from chainer.training import extensions  # noqa: E402

LR, EPOCHS, BATCH_SIZE, TRAIN = 0.03, 10, 128, 1437


class Network(chainer.Chain):
    """A perceptron with one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        with self.init_scope():
            self.hidden = chainer.links.Linear(64, 128)
            self.out = chainer.links.Linear(128, 10)

    def forward(self, x: chainer.Variable) -> chainer.Variable:
        """Return the logits."""
        return self.out(chainer.functions.relu(self.hidden(x)))


def main(folder: str = "digits") -> None:
    """Train, and print loss and accuracy."""
    np.random.seed(0)
    x, y = load_digits(return_X_y=True)
    data = chainer.datasets.TupleDataset((x / 16).astype(np.float32), y.astype(np.int32))
    train, test = data[:TRAIN], data[TRAIN:]
    model = chainer.links.Classifier(Network())
    optimizer = chainer.optimizers.MomentumSGD(lr=LR).setup(model)
    # On all layers, as here, or on single ones: `model.predictor.hidden.W.update_rule.add_hook(GradientLARS())`.
    optimizer.add_hook(GradientLARS(weight_decay=1e-4))

    updater = training.updaters.StandardUpdater(chainer.iterators.SerialIterator(train, BATCH_SIZE), optimizer)
    trainer = training.Trainer(updater, (EPOCHS, "epoch"), out=folder)
    trainer.extend(extensions.ExponentialShift("lr", 0.6), trigger=(1, "epoch"))
    trainer.extend(extensions.Evaluator(chainer.iterators.SerialIterator(test, 360, repeat=False), model))
    trainer.extend(extensions.LogReport())
    trainer.extend(extensions.PrintReport(["epoch", "main/loss", "validation/main/accuracy"]))
    trainer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
