"""``gradient-lars variants``: its tables, its plot, and what it refuses."""

import io
import math
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from gradient_lars import presets
from gradient_lars.cli.variants import MEANINGS, chosen, differing, print_variants
from gradient_lars.cli.variants_steps import BIAS, MATRIX, USUAL, VARIED, Layer, grouped, layers, relative_steps
from gradient_lars.torch import LARS


def printed(width, only=None):
    """Return the lines at a width of the terminal."""
    text = io.StringIO()
    print_variants(Console(width=width, file=text), chosen(only))
    return text.getvalue().splitlines()


def cells_of(lines):
    """Return the cells of all tables by the variant's name."""
    found = {}
    for line in lines:
        name, *cells = line.split() or [""]
        if name in presets.names():
            found.setdefault(name, []).extend(cells)
    return found


def test_every_setting_of_a_preset_has_a_meaning():
    assert set(MEANINGS) == set(presets.paper)
    assert set(differing(chosen(None))) == set(MEANINGS) - {"dampening", "nesterov"}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_all_settings_are_in_tables_that_fit(width):
    lines = printed(width)
    assert max(map(len, lines)) <= width
    found = cells_of(lines)
    assert list(found) == presets.names()
    for name, cells in found.items():
        values = [presets.named(name)[setting] for setting in differing(chosen(None))]
        assert [str(float(c)) if c[0].isdigit() else c for c in cells] == [str(value) for value in values]


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (100, 2), (120, 2), (160, 1)])
def test_number_of_tables(width, tables):
    assert sum(line.startswith("variant ") for line in printed(width)) == tables


def test_some_variants_are_compared_in_what_they_differ_and_described(cli):
    result = cli("variants", "--only", "larc, timm,larc")
    assert (result.code, result.err) == (0, "")
    assert ["larc", "0.02", "0", "True", "True"] in [line.split() for line in result.out.splitlines()]
    assert ["timm", "0.001", "1", "False", "False"] in [line.split() for line in result.out.splitlines()]
    assert "Source: NVIDIA/apex, apex/parallel/LARC.py." in result.out
    assert "paper" not in result.out.split("trust_coefficient")[0]
    assert all(len(line) <= 80 for line in result.out.splitlines())


def test_one_variant_is_shown_with_all_its_settings(cli):
    result = cli("variants", "--only", "chainer")
    first = [line.split()[:2] for line in result.out.splitlines() if line.split()]
    assert ["threshold", "0.01"] in first
    assert ["nesterov", "False"] in first
    assert "Learning rate: gamma * eta of the paper" in result.out


def test_variants_that_are_the_same(cli):
    assert "They have the same settings." in cli("variants", "--only", "vicreg,barlow_twins").out


def test_the_table_needs_neither_pytorch_nor_matplotlib():
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'matplotlib'): sys.modules[name] = None\n"
        "from gradient_lars.cli import main\n"
        "sys.argv = ['gradient-lars', 'variants']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pytorch_optimizer" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--only", "lamb"], "`--only` has the item `lamb`: the variants are chainer, paper, torchlars"),
        (["--only", " ,"], "`--only` is an empty list: give some of chainer"),
        (["--bias"], "`--bias` is of the plot: add `--out PLOT.png`"),
        (["--lr", "0.1"], "`--lr` is of the plot: add `--out PLOT.png`"),
        (["--out", "x.png", "--lr", "0"], "`--lr` must be > 0 and finite, got 0"),
        (["--out", "x.png", "--lr", "nan"], "`--lr` must be > 0 and finite, got nan"),
        (["--out", "x.jpg"], "`--out`: x.jpg must end in .png or .svg"),
        (["--out", "."], "`--out`: . is a folder: name a file"),
        (["--out", "file/x.png"], "`--out`: file is a file, not a folder"),
    ],
)
def test_mistakes(cli, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = cli("variants", *arguments)
    assert result.code == 2
    assert match in result.message
    assert "Traceback" not in result.err
    assert result.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("name", "head"), [("a/steps.png", b"\x89PNG"), ("steps.SVG", b"<?xml")])
def test_the_plot(cli, tmp_path, name, head):
    result = cli("variants", "--only", "larc,timm", "--out", tmp_path / name, "--lr", "0.5")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == f"Plot: {tmp_path / name}"
    assert (tmp_path / name).read_bytes().startswith(head)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [(tmp_path / name).name]


def test_the_plot_of_a_variant_that_never_moves_a_layer(tmp_path, cli):
    assert cli("variants", "--only", "swav", "--bias", "--out", tmp_path / "x.png").code == 0


def test_the_steps_are_those_of_the_formulas():
    (layer,) = [Layer(MATRIX, **USUAL)]
    p, g, wd = USUAL["p_norm"], USUAL["g_norm"], USUAL["weight_decay"]
    # Gradient and weights are nearly orthogonal, and the decay is a thousandth of the gradient.
    for name, expected in (
        ("paper", 1e-3 * g / (g + wd * p)),
        ("optax", 1e-3),
        ("chainer", g / (g + wd * p)),
        ("larc", 0.02 * g / (g + wd * p)),
    ):
        assert math.isclose(relative_steps(presets.named(name), [layer], 1.0)[0], expected, rel_tol=1e-4)
    # The clipping of LARC: at a small learning rate it is SGD.
    small = Layer(MATRIX, p_norm=100.0, g_norm=0.01, weight_decay=0.0)
    assert math.isclose(relative_steps(presets.larc, [small], 0.5)[0], 0.5 * 0.01 / 100.0, rel_tol=1e-12)


def test_the_steps_where_the_variants_have_rules_of_their_own():
    def step(name, shape=MATRIX, **changed):
        return relative_steps(presets.named(name), [Layer(shape, **{**USUAL, **changed})], 1.0)[0]

    quiet = {"torchlars": 1e-4, "larc": 0.0, "bolts": 0.0, "pytorch_optimizer": 1e-3, "optax": 1e-3, "timm": 1e-4}
    for name, expected in quiet.items():
        assert math.isclose(step(name, g_norm=0.0), expected, rel_tol=1e-9), name
    assert math.isclose(step("timm", weight_decay=0.0), 0.1, rel_tol=1e-9)
    assert math.isclose(step("torchlars", weight_decay=0.0), 1e-3, rel_tol=1e-6)
    assert math.isclose(step("vicreg", shape=BIAS), 0.1, rel_tol=1e-9)
    assert math.isclose(step("open_lars", shape=BIAS, g_norm=0.0), 1e-4, rel_tol=1e-9)


def test_only_variants_that_coincide_share_a_line(monkeypatch):
    made = dict(grouped(chosen(None), MATRIX, 1.0))
    groups = [names.split(", ") for names in made]
    assert sorted(name for group in groups for name in group) == sorted(presets.names())
    assert ["optax", "simclr", "byol", "barlow_twins", "vicreg"] in groups
    assert ["torchlars", "open_lars", "mlperf_resnet"] in groups
    assert ["larc"] in groups
    for steps in made.values():
        assert {name: values.shape for name, values in steps.items()} == {n: (len(v),) for n, v in VARIED.items()}
        assert all(np.isfinite(values).all() for values in steps.values())
    # It is LARS that takes them.
    monkeypatch.setattr(LARS, "step", lambda self: None)
    assert not relative_steps(presets.paper, layers("g_norm", MATRIX), 1.0).any()
