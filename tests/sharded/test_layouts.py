"""Hook and LARS on every layout, number of ranks and path: the parameters and rates are those of one process."""

import pytest
import torch
from torch.distributed.tensor.debug import CommDebugMode

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from lars.expected import PATHS as LARS_PATHS
from sharded.layouts import LAYOUTS, Spread
from sharded.ranks import on_ranks
from torch_cases import PATHS as HOOK_PATHS

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}

CASES = [(layout, ranks) for layout in LAYOUTS for ranks in layout.ranks]


def _lars(named, path):
    optimizer = LARS(named, **SETTINGS, **LARS_PATHS[path])
    return optimizer, optimizer.rates


def _hook(named, path):
    optimizer = torch.optim.SGD(named, lr=0.125, momentum=0.9)
    handle = add_hook(optimizer, GradientLARS(weight_decay=0.125), path=path)
    return optimizer, handle.rates


ALL = [(_lars, path) for path in LARS_PATHS] + [(_hook, path) for path in HOOK_PATHS]


def _sharded_meshes(spread):
    """Return the meshes over which this rank shares layers, each of which may communicate once in a step."""
    found = set()
    for mesh, where in spread.places:
        if mesh is not None and any(not placement.is_replicate() for placement in where):
            found.add(mesh)
    return len(found)


def _equals_one_process(index, dtype, make, path, partial):
    spread = Spread(LAYOUTS[index], dtype, partial=partial)
    optimizer, rates = make(spread.spread, path)
    # The readable path is proven against the float64 reference.
    whole, whole_rates = make(spread.whole, "loop")
    for step, without in enumerate([(), (), (0, 2), range(6), ()]):
        spread.set_gradients(step, without)
        whole.step()
        if partial:
            optimizer.step()
        else:
            with CommDebugMode() as communication:
                optimizer.step()
            assert communication.get_total_counts() == _sharded_meshes(spread)
        spread.assert_equal(TOLERANCE[dtype])
        assert rates().names == whole_rates().names
        for name in ("p_norm", "g_norm", "rate"):
            torch.testing.assert_close(
                getattr(rates(), name), getattr(whole_rates(), name), rtol=TOLERANCE[dtype], atol=0
            )
        assert torch.equal(rates().adapted, whole_rates().adapted)


def _every_way(index):
    for make, path in ALL:
        for dtype in TOLERANCE:
            _equals_one_process(index, dtype, make, path, partial=False)
        _equals_one_process(index, torch.float64, make, path, partial=True)


@pytest.mark.parametrize(("layout", "ranks"), CASES, ids=lambda value: getattr(value, "name", value))
def test_equals_one_process(layout, ranks):
    on_ranks(ranks, _every_way, LAYOUTS.index(layout))
