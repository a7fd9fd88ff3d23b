"""Each preset is its peer: every golden trajectory replayed by every path of LARS and by the optax form."""

import copy
import doctest
import pickle

import numpy as np
import pytest
import torch

from fused.common import took_the_kernels
from gradient_lars import presets
from gradient_lars._variants import SETTINGS
from gradient_lars.torch import LARS
from lars.expected import PATHS
from variants import load
from variants.ours import NOT_CLIPPED, error_of, preset_of, replayed, replayed_in_optax

GOLDENS = load()
# Twenty steps make some rounding errors of float32 a hundred times as large.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4}


def _can_run(golden, path):
    return not (path == "fused" and (golden.settings.get("nesterov") or golden.settings.get("use_nesterov"))) and not (
        path == "fused" and not golden.settings.get("classic_momentum", True)
    )


CASES = [(golden, path) for golden in GOLDENS for path in PATHS if _can_run(golden, path)]


@pytest.mark.parametrize(("golden", "path"), CASES, ids=str)
def test_follows_the_peer(golden, path):
    assert error_of(golden, replayed(golden, **PATHS[path])[0]) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("golden", GOLDENS, ids=str)
def test_follows_the_peer_in_float32(golden):
    assert error_of(golden, replayed(golden, torch.float32)[0]) <= TOLERANCE[torch.float32]


# Triton's interpreter is slow: those that show each setting once.
INTERPRETED = ("optax-decay", "barlow_twins-decay", "larc-clip-large", "pytorch_optimizer-dampening", "bolts-defaults")
INTERPRETED += ("timm-decay", "pytorch_optimizer-maximize")


QUICK = ("barlow_twins-decay", "larc-clip-large")


@pytest.mark.parametrize(
    "golden",
    [pytest.param(g, marks=() if str(g) in QUICK else pytest.mark.slow) for g in GOLDENS if str(g) in INTERPRETED],
    ids=str,
)
def test_the_kernels_follow_the_peer(golden, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with np.errstate(all="ignore"):
        trajectory, optimizer = replayed(golden, fused=True)
    assert took_the_kernels(optimizer)
    assert error_of(golden, trajectory) <= TOLERANCE[torch.float64]


def test_the_kernels_refuse_the_rate_after_the_momentum():
    (golden,) = [golden for golden in GOLDENS if str(golden) == "simclr-popular"]
    with pytest.raises(RuntimeError, match="`fused` cannot run here: .*`norm_of='update'`"):
        replayed(golden, fused=True)


def test_the_comparison_can_fail():
    (golden,) = [golden for golden in GOLDENS if str(golden) == "simclr-decay"]
    trajectory, _ = replayed(golden)
    trajectory[-1]["dense.bias"] *= 1 + 1e-5
    assert error_of(golden, trajectory) > 1e-6
    trajectory[-1]["dense.bias"][:] = np.nan
    with pytest.raises(AssertionError, match="not finite"):
        error_of(golden, trajectory)


def test_where_timm_clips_and_we_do_not():
    (golden,) = [golden for golden in GOLDENS if str(golden) in NOT_CLIPPED]
    trajectory, _ = replayed(golden)
    for name in ("zero.kernel", "zero.bias", "quiet.kernel"):
        assert np.max(np.abs(trajectory[-1][name] - golden.weights[20][name])) > 1e-3


@pytest.mark.parametrize("variant", SETTINGS)
def test_every_variant_has_a_golden(variant):
    assert any(golden.variant == variant for golden in GOLDENS)


OPTAX = [g for g in GOLDENS if not (preset_of(g)[0]["trust_clip"] or preset_of(g)[0]["dampening"])]
OPTAX = [g for g in OPTAX if not g.settings.get("maximize") and g.settings.get("classic_momentum", True)]


@pytest.mark.parametrize("golden", OPTAX, ids=str)
def test_the_optax_form_follows_the_peer(golden):
    assert error_of(golden, replayed_in_optax(golden)) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("golden", [g for g in GOLDENS if g not in OPTAX], ids=str)
def test_the_optax_form_says_what_it_refuses(golden):
    with pytest.raises(ValueError, match="`(trust_clip|dampening|maximize|norm_of)`"):
        replayed_in_optax(golden)


def test_the_optax_form_excludes_what_has_fewer_than_two_dimensions():
    import jax.numpy as jnp

    settings = presets.vicreg.optax()
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(()), "none": None}
    wanted = {"kernel": True, "bias": False, "scale": False, "none": None}
    assert settings["trust_ratio_mask"](params) == settings["weight_decay_mask"](params) == wanted
    assert "weight_decay_mask" not in presets.open_lars.optax()
    assert "trust_ratio_mask" not in presets.optax.optax()


def test_the_optax_form_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="`trust_clip` of the preset 'larc' has no optax form"):
        presets.larc.optax()
    assert presets.larc.replace(trust_clip=False).optax()["trust_coefficient"] == 0.02


def test_a_preset_is_a_frozen_mapping():
    preset = presets.named("larc")
    assert preset is presets.larc
    assert dict(preset) == SETTINGS["larc"]
    assert len(preset) == len(SETTINGS["larc"])
    with pytest.raises(AttributeError):
        preset.lr = "1"
    with pytest.raises(TypeError):
        preset.settings["eps"] = 1.0
    changed = preset.replace(momentum=0.9)
    assert (changed["momentum"], preset["momentum"]) == (0.9, 0.0)
    assert {name for name in preset if preset[name] != changed[name]} == {"momentum"}
    optimizer = LARS([torch.nn.Parameter(torch.ones(2))], lr=0.1, **changed)
    assert {name: optimizer.param_groups[0][name] for name in changed} == dict(changed)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda preset: pickle.loads(pickle.dumps(preset))])
def test_a_preset_is_copied_and_pickled(duplicate):
    changed = presets.larc.replace(momentum=0.9)
    twin = duplicate(changed)
    assert dict(twin) == dict(changed)
    assert (twin.name, twin.about, twin.lr, twin.source) == (changed.name, changed.about, changed.lr, changed.source)
    with pytest.raises(TypeError):
        twin.settings["eps"] = 1.0


def test_every_preset_says_all_that_sets_the_variants_apart():
    for name in presets.names():
        preset = presets.named(name)
        assert set(preset) == set(presets.paper)
        assert preset.name == name
        for text in (preset.about, preset.lr, preset.source):
            assert text


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="`name` must be a preset, got 'lamb'. Known are chainer, paper, torchlars"):
        presets.named("lamb")
    with pytest.raises(ValueError, match=r"`name` must be a preset, got \['timm'\]"):
        presets.named(["timm"])
    with pytest.raises(ValueError, match="`lr` is no setting of a preset. Known are momentum, .* give `lr` to the"):
        presets.timm.replace(lr=1.0)


def test_examples():
    result = doctest.testmod(presets)
    assert result.attempted >= 5
    assert result.failed == 0
