"""Train scikit-learn's digits with Flax (nnx), optax and LARS.

Here LARS is the whole optimizer; train_equinox.py has it as a part of a chain.

    pip install "gradient-lars[optax]" flax scikit-learn
    python examples/integrations/train_flax.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from gradient_lars.optax import lars

EPOCHS, BATCH_SIZE, TRAIN = 10, 128, 1437


class Network(nnx.Module):
    """A perceptron with one hidden layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        return self.out(nnx.relu(self.norm(self.hidden(x))))


def loss_of(model: Network, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    """Change the model in place, and return the loss."""
    loss, grads = nnx.value_and_grad(loss_of)(model, x, y)
    optimizer.update(model, grads)
    return loss


def matrices(params: nnx.State) -> nnx.State:
    """Return which parameters are adapted and decayed: not biases and norms."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def main() -> None:
    """Train, and print loss, accuracy and the rates of the last step."""
    x, y = (jnp.asarray(array) for array in load_digits(return_X_y=True))
    x = x / 16
    model = Network(nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(0.03, EPOCHS * (TRAIN // BATCH_SIZE))
    transformation = lars(
        schedule, weight_decay=1e-4, trust_coefficient=1.0, trust_ratio_mask=matrices, weight_decay_mask=matrices
    )
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    for epoch in range(1, EPOCHS + 1):
        order = jax.random.permutation(jax.random.key(epoch), TRAIN)
        batches = order[: TRAIN // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
        total = sum(step(model, optimizer, x[batch], y[batch]) for batch in batches) / len(batches)
        accuracy = (model(x[TRAIN:]).argmax(1) == y[TRAIN:]).mean()
        print(f"epoch {epoch}: loss {total:.4f}, test accuracy {accuracy:.1%}")
    rates = optax.tree_utils.tree_get(optimizer.opt_state, "rate")
    print("rate of hidden", rates["hidden"]["kernel"][...], "and of out", rates["out"]["kernel"][...])


if __name__ == "__main__":
    main()
