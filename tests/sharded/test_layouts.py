"""Hook and LARS on every layout, number of ranks and path: the parameters and rates are those of one process."""

import os

import numpy as np
import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from gradient_lars.torch._fused import FusedRates
from lars.expected import PATHS as LARS_PATHS
from sharded.layouts import LAYOUTS, Spread
from sharded.ranks import on_ranks
from sharded.training import TOLERANCE, assert_same_rates, hook, lars
from torch_cases import PYTORCH_PATHS as HOOK_PATHS

CASES = [(layout, ranks) for layout in LAYOUTS for ranks in layout.ranks]
# Where the type, and gradients that are still to be summed, are tried too: the most ranks of these.
THOROUGH = ("rows", "mixed with plain", "hybrid", "two dimensions", "several meshes")

ALL = [(lars, path) for path in LARS_PATHS] + [(hook, path) for path in HOOK_PATHS]
# The layers without a gradient in each step: the momenta of the first step must outlast the next two.
WITHOUT = ((), (0, 2), range(6), ())
# The kernels carry norms from one step to the next one.
WITHOUT_IN_KERNELS = ((), *WITHOUT)


def _kernels(named, path, **settings):
    optimizer, rates = lars(named, path, **settings)
    optimizer.register_step_post_hook(lambda *_: _assert_kernels(optimizer))
    return optimizer, rates


def _assert_kernels(optimizer):
    # Where no layer has a gradient there is nothing to launch.
    assert type(optimizer.rates()) is FusedRates or not len(optimizer.rates())


def _sharded_meshes(spread):
    """Return the meshes over which this rank shares layers, each of which may communicate once in a step."""
    found = set()
    for mesh, where in spread.places:
        if mesh is not None and any(not placement.is_replicate() for placement in where):
            found.add(mesh)
    return len(found)


def _equals_one_process(index, dtype, make, path, *, partial=False, **settings):
    spread = Spread(LAYOUTS[index], dtype, partial=partial)
    optimizer, rates = make(spread.spread, path, **settings)
    # The readable path is proven against the float64 reference.
    whole, whole_rates = (hook if make is hook else lars)(spread.whole, "loop", **settings)
    for step, without in enumerate(WITHOUT_IN_KERNELS if make is _kernels else WITHOUT):
        spread.set_gradients(step, without)
        whole.step()
        if partial:
            optimizer.step()
        else:
            with CommDebugMode() as communication:
                optimizer.step()
            assert communication.get_total_counts() == _sharded_meshes(spread)
        spread.assert_equal(TOLERANCE[dtype])
        assert_same_rates(rates(), whole_rates(), TOLERANCE[dtype])
        # The gradients being the same, so are small norms.
        for name in ("p_norm", "g_norm", "rate"):
            torch.testing.assert_close(
                getattr(rates(), name), getattr(whole_rates(), name), rtol=TOLERANCE[dtype], atol=0
            )


def _every_way(index, thorough):
    for make, path in ALL:
        _equals_one_process(index, torch.float64, make, path)
        if thorough:
            _equals_one_process(index, torch.float32, make, path)
            _equals_one_process(index, torch.float64, make, path, partial=True)


# What the published variants set otherwise.
VARIANTS = [
    {"norm_of": "decayed", "weight_decay": 0.5},
    {"norm_of": "decayed", "adapt": None, "decay_excluded": False, "maximize": True},
    {"norm_of": "update", "lr_in_momentum": False, "dampening": 0.25, "dampen_first_step": True},
    {"zero_gradient_rate": 0.0, "weight_decay": 0.0, "adapt_without_decay": False},
]


def _every_variant(index):
    for settings in VARIANTS:
        after = settings.get("norm_of") == "update"
        for path in [path for path in LARS_PATHS if not (after and path == "fused")]:
            _equals_one_process(index, torch.float64, lars, path, **settings)
    os.environ["TRITON_INTERPRET"] = "1"
    with np.errstate(all="ignore"):
        for settings in VARIANTS[:2]:
            _equals_one_process(index, torch.float64, _kernels, "fused", **settings)


@pytest.mark.parametrize(
    ("name", "ranks"), [pytest.param("two dimensions", 4, marks=pytest.mark.slow), ("mixed with plain", 2)]
)
def test_the_variants_equal_one_process(name, ranks):
    on_ranks(ranks, _every_variant, [layout.name for layout in LAYOUTS].index(name))


def _by_the_kernels(index):
    # Triton's interpreter, which is slow.
    os.environ["TRITON_INTERPRET"] = "1"
    with np.errstate(all="ignore"):
        _equals_one_process(index, torch.float32, _kernels, "fused")
        if LAYOUTS[index].name == "rows":
            _equals_one_process(index, torch.float64, _kernels, "fused", partial=True)


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [case for case in CASES if case[1] == max(case[0].ranks[:2])],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_kernels_equal_one_process(layout, ranks):
    on_ranks(ranks, _by_the_kernels, LAYOUTS.index(layout))


@pytest.mark.parametrize(("layout", "ranks"), CASES, ids=lambda value: getattr(value, "name", value))
def test_equals_one_process(layout, ranks):
    thorough = layout.name in THOROUGH and ranks == max(layout.ranks)
    on_ranks(ranks, _every_way, LAYOUTS.index(layout), thorough)
