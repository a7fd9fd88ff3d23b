"""benchmarks/results/parity.csv: every path has every variant's goldens, below the bound, and the proofs exist."""

import csv
import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

from gradient_lars import presets
from variants import load
from variants import test_peers as peers

ROOT = Path(__file__).parents[2]
BOUND, BOUND_FLOAT32 = 1e-6, 1e-4
with (ROOT / "benchmarks" / "results" / "parity.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
# What the page says each path refuses.
REFUSED = {
    "fused": ("nesterov", "norm_of"),
    "kernels": ("norm_of",),
    "optax": ("trust_clip", "dampening", "maximize", "norm_of"),
}


def _script():
    spec = importlib.util.spec_from_file_location("parity", ROOT / "benchmarks" / "parity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_and_path_is_there_with_all_goldens():
    paths = ["loop", "foreach", "fused", "kernels", "optax", "float32"]
    goldens = Counter(golden.variant for golden in load())
    assert set(goldens) == set(presets.names())
    assert [(row["variant"], row["path"]) for row in ROWS] == [(name, path) for name in goldens for path in paths]
    for row in ROWS:
        assert int(row["goldens"]) == goldens[row["variant"]]
        assert int(row["refused"]) < int(row["goldens"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['variant']}-{row['path']}")
def test_every_figure_is_below_the_bound(row):
    assert 0 <= float(row["error"]) < (BOUND_FLOAT32 if row["path"] == "float32" else BOUND)


def test_what_is_refused_is_what_the_page_says():
    text = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    paragraph = re.search(r"^Refused, with an error.*?\n\n", text, flags=re.M | re.S)[0]
    for row in ROWS:
        assert bool(row["refusal"]) == (row["refused"] != "0")
        for refusal in filter(None, row["refusal"].split(" / ")):
            assert any(name in refusal for name in REFUSED[row["path"]]), row
    for names in REFUSED.values():
        assert all(f"`{name}" in paragraph for name in names)


@pytest.mark.parametrize("row", [row for row in ROWS if row["path"] == "loop"], ids=lambda row: row["variant"])
def test_proofs_are_what_the_tests_do(row):
    script = _script()
    own = [name for name, test in vars(peers).items() if name.startswith("test_") and _runs(test, row["variant"])]
    assert bool(own) == (row["proof"] != script.TRANSCRIBED)
    proof, peer = script.proof_of(row["variant"])
    # Another release of a peer may be installed than the results are of.
    assert (row["proof"], row["peer"].split()[:1]) == (proof, peer.split()[:1])


def _runs(test, variant):
    """Return whether a test of the peers has this variant's goldens for parameters."""
    marks = getattr(test, "pytestmark", [])
    values = [mark.args[1] for mark in marks if mark.name == "parametrize" and mark.args[0] == "golden"]
    return any(golden.variant == variant for goldens in values for golden in goldens)


def test_the_script_measures_what_it_says():
    script = _script()
    goldens = load()
    assert list(script.PATHS) == list(dict.fromkeys(row["path"] for row in ROWS))
    for path in ("foreach", "optax"):
        (row,) = [row for row in ROWS if (row["variant"], row["path"]) == ("larc", path)]
        count, refused, error, refusal = script.measured("larc", path, goldens)
        assert (count, refused) == (int(row["goldens"]), int(row["refused"]))
        assert error < 1e-12
        assert refusal == row["refusal"]
