"""One network, one data set, 50 steps: Chainer, PyTorch and JAX end at the same weights."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.optax import lars, scale_by_gradient_lars
from gradient_lars.torch import LARS, add_hook
from jax_cases import x64

if importlib.util.find_spec("chainer") is None:
    pytest.skip("Chainer is not installed", allow_module_level=True)

import chainer
import chainer.functions as chainer_functions

STEPS = 50
MOMENTUM = 0.9
HOOK = {"threshold": 0.01, "weight_decay": 1e-3, "eps": 1e-9}
# Largest difference between two frameworks, relative to the largest weight of a layer. LARS brings a gradient to the
# size of its weights however small it is, with the rounding errors in it: the better the data are learned, the further
# apart float32 runs end. On these data it is 2e-5, and 2e-14 in float64.
ALLOWED = {"float32": 1e-4, "float64": 1e-12}
RATES = {
    "constant": [0.015] * STEPS,
    "changing": [0.03 * min((step + 1) / 10, (STEPS - step) / 40) for step in range(STEPS)],
}


def network(dtype):
    """Return initial weights of a convolution and a linear layer; the biases begin below the threshold."""
    rng = np.random.default_rng(50)
    shapes = {"conv": (6, 1, 3, 3), "conv_bias": (6,), "linear": (4, 6 * 6 * 6), "linear_bias": (4,)}
    scales = {"conv": 1 / 3, "linear": 1 / 6, "conv_bias": 0, "linear_bias": 0}
    return {name: (scales[name] * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def data(dtype):
    rng = np.random.default_rng(51)
    labels = rng.integers(0, 4, 128)
    centres = 0.3 * rng.standard_normal((4, 1, 8, 8))
    return (centres[labels] + rng.standard_normal((128, 1, 8, 8))).astype(dtype), labels.astype("int32")


def in_chainer(dtype, rates, optimizer):
    link = chainer.Link()
    with link.init_scope():
        for name, array in network(dtype).items():
            setattr(link, name, chainer.Parameter(array.copy()))
    made = getattr(chainer.optimizers, optimizer)(lr=rates[0], momentum=MOMENTUM).setup(link)
    made.add_hook(GradientLARS(**HOOK))
    x, labels = data(dtype)
    losses = []
    for made.lr in rates:
        hidden = chainer_functions.tanh(chainer_functions.convolution_2d(x, link.conv, link.conv_bias))
        loss = chainer_functions.softmax_cross_entropy(
            chainer_functions.linear(hidden, link.linear, link.linear_bias), labels
        )
        link.cleargrads()
        loss.backward()
        made.update()
        losses.append(float(loss.array))
    return {name: getattr(link, name).array for name in network(dtype)}, losses


def in_torch(dtype, rates, make):
    params = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in network(dtype).items()}
    optimizer = make(list(params.items()))
    x, labels = map(torch.from_numpy, data(dtype))
    losses = []
    for optimizer.param_groups[0]["lr"] in rates:
        hidden = torch.nn.functional.conv2d(x, params["conv"], params["conv_bias"]).tanh().flatten(1)
        logits = torch.nn.functional.linear(hidden, params["linear"], params["linear_bias"])
        loss = torch.nn.functional.cross_entropy(logits, labels.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {name: param.detach().numpy() for name, param in params.items()}, losses


def hooked_sgd(named):
    optimizer = torch.optim.SGD(named, lr=0.0, momentum=MOMENTUM)
    add_hook(optimizer, GradientLARS(**HOOK))
    return optimizer


def torch_lars(lr_in_momentum):
    settings = {"momentum": MOMENTUM, "trust_coefficient": 1.0, "lr_in_momentum": lr_in_momentum, **HOOK}
    return lambda named: LARS(named, lr=0.0, **settings)


def in_jax(dtype, rates, make):
    schedule = jnp.asarray(rates, dtype)
    optimizer = make(lambda step: schedule[step])
    x, labels = map(jnp.asarray, data(dtype))

    def loss_of(params):
        hidden = jax.lax.conv(x, params["conv"], (1, 1), "VALID") + params["conv_bias"][:, None, None]
        logits = jnp.tanh(hidden).reshape(len(x), -1) @ params["linear"].T + params["linear_bias"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.tree.map(jnp.asarray, network(dtype))
    state = optimizer.init(params)
    losses = []
    for _ in rates:
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert params["conv"].dtype == dtype
    return {name: np.asarray(array) for name, array in params.items()}, losses


def jax_lars(lr_in_momentum):
    return lambda schedule: lars(
        schedule, momentum=MOMENTUM, trust_coefficient=1.0, lr_in_momentum=lr_in_momentum, **HOOK
    )


def hooked_optax(schedule):
    return optax.chain(scale_by_gradient_lars(**HOOK), optax.sgd(schedule, momentum=MOMENTUM))


# By where the learning rate enters. PyTorch's and optax's SGD have one form only.
RUNS = {
    "in the momentum": {
        "Chainer, hook": lambda *run: in_chainer(*run, "MomentumSGD"),
        "PyTorch, LARS": lambda *run: in_torch(*run, torch_lars(True)),
        "JAX, lars": lambda *run: in_jax(*run, jax_lars(True)),
    },
    "outside of it": {
        "Chainer, hook (corrected)": lambda *run: in_chainer(*run, "CorrectedMomentumSGD"),
        "PyTorch, hook": lambda *run: in_torch(*run, hooked_sgd),
        "PyTorch, LARS (SGD's form)": lambda *run: in_torch(*run, torch_lars(False)),
        "JAX, lars (SGD's form)": lambda *run: in_jax(*run, jax_lars(False)),
        "JAX, hook": lambda *run: in_jax(*run, hooked_optax),
    },
}


def largest_difference(one, other):
    """Return the largest difference between two sets of weights, relative to the largest entry of each layer."""
    return max(np.max(np.abs(one[name] - other[name])) / np.max(np.abs(other[name])) for name in other)


def assert_all_agree(runs, dtype, rates):
    with x64(dtype):
        ends = {name: run(dtype, rates) for name, run in runs.items()}
    for weights, losses in ends.values():
        # They have learned, far enough for a difference to show, and the biases have crossed the threshold.
        assert losses[-1] < 0.1 * losses[0]
        assert np.max(np.abs(weights["conv"] - network(dtype)["conv"])) > 0.3 * np.max(np.abs(weights["conv"]))
        assert all(np.linalg.norm(array) > HOOK["threshold"] for array in weights.values())
    for one, other in itertools.combinations(ends, 2):
        found = largest_difference(ends[one][0], ends[other][0])
        assert found <= ALLOWED[dtype], f"{one} and {other} differ by {found:.1e} of scale"


@pytest.mark.parametrize("dtype", ALLOWED)
def test_at_a_constant_learning_rate_all_agree(dtype):
    assert_all_agree({**RUNS["in the momentum"], **RUNS["outside of it"]}, dtype, RATES["constant"])


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("place", RUNS)
def test_at_a_changing_learning_rate_those_of_one_form_agree(place, dtype):
    assert_all_agree(RUNS[place], dtype, RATES["changing"])


def test_the_two_forms_differ_when_the_learning_rate_changes():
    # So the comparison can fail.
    one, other = (runs[name] for runs, name in zip(RUNS.values(), ("PyTorch, LARS", "PyTorch, hook"), strict=True))
    rates = RATES["changing"]
    assert largest_difference(one("float32", rates)[0], other("float32", rates)[0]) > 100 * ALLOWED["float32"]
