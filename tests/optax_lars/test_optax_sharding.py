"""Arrays sharded over a mesh of eight faked CPU devices: norms are global, and nothing is gathered."""

import os
import subprocess
import sys
from pathlib import Path

import gradient_lars

# JAX counts its devices once, when it starts: the mesh needs a process of its own.
CODE = """
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec as P
from gradient_lars.optax import lars, scale_by_gradient_lars

assert jax.device_count() == 8
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
specs = {"both": P("data", "model"), "rows": P("data"), "columns": P(None, "model"), "copied": P(), "bias": P("model")}
shapes = {"both": (8, 4), "rows": (8, 3), "columns": (3, 4), "copied": (3, 3), "bias": (4,)}
rng = np.random.default_rng(5)
values = [{n: rng.standard_normal(s).astype("float32") for n, s in shapes.items()} for _ in range(4)]
shardings = {n: NamedSharding(mesh, spec) for n, spec in specs.items()}
place = lambda tree: {n: jax.device_put(a, shardings[n]) for n, a in tree.items()}

def train(optimizer, place, compiled):
    params = place(values[0])
    state = jax.jit(optimizer.init)(params)
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    step = jax.jit(step) if compiled else step
    for grads in values[1:]:
        params, state = step(params, state, place(grads))
    return params, state, step

single = lambda tree: jax.tree.map(jnp.asarray, tree)
for optimizer in (
    lars(0.5, weight_decay=0.1, trust_coefficient=0.25),
    optax.chain(scale_by_gradient_lars(weight_decay=0.1), optax.sgd(0.1, momentum=0.9)),
):
    expected, expected_state, _ = train(optimizer, single, True)
    rates = optax.tree_utils.tree_get(expected_state, "rate")
    for compiled in (True, False):
        params, state, step = train(optimizer, place, compiled)
        found = optax.tree_utils.tree_get(state, "rate")
        for name in shapes:
            assert params[name].sharding.is_equivalent_to(shardings[name], len(shapes[name])), name
            np.testing.assert_allclose(np.asarray(params[name]), np.asarray(expected[name]), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(float(found[name]), float(rates[name]), rtol=1e-5)
        if compiled:
            text = step.lower(params, state, place(values[1])).compile().as_text()
            assert "all-reduce" in text
            for collective in ("all-gather", "all-to-all", "collective-permute"):
                assert collective not in text, collective
            print("all-reduces:", text.count(" all-reduce("))

# The norms of the shards alone would not do: the test can tell.
local = float(jnp.linalg.norm(values[0]["both"][:2, :2]))
assert abs(local / float(jnp.linalg.norm(values[0]["both"])) - 1) > 0.1

# The state is sharded as the parameters are, by the tool that optax has for it.
optimizer = lars(0.5)
state = optax.tree_utils.tree_map_params(
    optimizer,
    jax.device_put,
    optimizer.init(single(values[0])),
    shardings,
    transform_non_params=lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P())),
)
assert optax.tree_utils.tree_get(state, "trace")["both"].sharding == shardings["both"]

# Meshes whose axes are part of the arrays' types.
explicit = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
with jax.set_mesh(explicit):
    params = {"w": jax.device_put(rng.standard_normal((8, 4)).astype("float32"), P("data"))}
    updates, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    np.testing.assert_allclose(float(state[0].p_norm["w"]), np.linalg.norm(np.asarray(params["w"])), rtol=1e-5)
    assert jax.typeof(updates["w"]).sharding.spec == P("data", None)
print("done")
"""


def test_eight_devices():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(Path(gradient_lars.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1] == "done", result.stdout
