"""Train scikit-learn's digits with Equinox, optax and GradientLARS.

Here LARS is a part of a chain, before momentum SGD; train_flax.py has it as an optimizer.

    pip install "gradient-lars[optax]" equinox scikit-learn
    python examples/integrations/train_equinox.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from gradient_lars.optax import scale_by_gradient_lars

EPOCHS, BATCH_SIZE, TRAIN = 10, 128, 1437


def loss_of(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()


def matrices(params: eqx.nn.MLP) -> eqx.nn.MLP:
    """Return which parameters are adapted and decayed: not biases."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def main() -> None:
    """Train, and print loss, accuracy and the rates of the last step."""
    x, y = (jnp.asarray(array) for array in load_digits(return_X_y=True))
    x = x / 16
    model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
    schedule = optax.cosine_decay_schedule(0.03, EPOCHS * (TRAIN // BATCH_SIZE))
    # The hook on momentum SGD, as a chain; `gradient_lars.optax.lars` is the optimizer.
    optimizer = optax.chain(scale_by_gradient_lars(weight_decay=1e-4, mask=matrices), optax.sgd(schedule, momentum=0.9))
    # Only arrays have a state: an Equinox module also holds functions.
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x, y):
        loss, grads = eqx.filter_value_and_grad(loss_of)(model, x, y)
        # LARS needs the weights: the third argument, filtered as above.
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    for epoch in range(1, EPOCHS + 1):
        order = jax.random.permutation(jax.random.key(epoch), TRAIN)
        batches, total = order[: TRAIN // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE), 0.0
        for batch in batches:
            model, state, loss = step(model, state, x[batch], y[batch])
            total += loss / len(batches)
        accuracy = (jax.vmap(model)(x[TRAIN:]).argmax(1) == y[TRAIN:]).mean()
        print(f"epoch {epoch}: loss {total:.4f}, test accuracy {accuracy:.1%}")
    rates = optax.tree_utils.tree_get(state, "rate")
    print("rates of the weights:", *(layer.weight for layer in rates.layers))


if __name__ == "__main__":
    main()
