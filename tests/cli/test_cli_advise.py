"""``gradient-lars advise``: its tables and CSV, users' functions, and their mistakes."""

import csv
import importlib.util
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from gradient_lars.cli.advise_probe import Probe
from gradient_lars.cli.advise_proposal import nearest_power
from gradient_lars.cli.advise_settings import AdviseSettings
from gradient_lars.cli.advise_task import Task, to_device

QUICK = ["--steps", "30", "--micro-batch", "4", "--micro-batches", "3"]
TASK = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def data(n=48):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def task():
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 2)), DataLoader(data(), 7), loss

def with_norm():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), data(), loss

def frozen():
    return nn.Linear(5, 2).requires_grad_(False), data(), loss

def pair():
    return nn.Linear(5, 2), data()

def swapped():
    return data(), nn.Linear(5, 2), loss

def stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from data()
    return nn.Linear(5, 2), DataLoader(Stream()), loss

def many():
    return nn.Linear(5, 2), data(), lambda model, batch: model(batch[0])

def detached():
    return nn.Linear(5, 2), data(), lambda model, batch: torch.tensor(1.0)

def infinite():
    return nn.Linear(5, 2), data(), lambda model, batch: loss(model, batch) * float("inf")

def broken():
    raise KeyError("no such corpus")

def fails_later():
    return nn.Linear(4, 2), data(), loss

class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2

def once():
    return nn.Linear(5, 2), data(), lambda model, batch: loss(lambda x: Once.apply(model(x)), batch)

number = 3
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(TASK))
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_users_function(cli, script, tmp_path):
    out = tmp_path / "noise.csv"
    result = cli("advise", f"{script}:task", *QUICK, "--out", out)
    assert result.code == 0, result.err
    rows = rows_of(out)
    assert [(row["stretch"], row["estimator"]) for row in rows] == [
        (stretch, name) for stretch in ("start", "middle", "end") for name in ("B_simple", "B_noise")
    ]
    for row in rows:
        assert float(row["low"]) <= float(row["noise_scale"]) <= float(row["high"])
        assert float(row["signal"]) <= 0 or float(row["noise_scale"]) == pytest.approx(
            max(0.0, float(row["noise"])) / float(row["signal"])
        )
    assert rows[0]["batch_norm"] == "false"
    assert rows[-1]["proposed_preset"] == "paper"
    assert "LARS(params, lr=lr, **presets.paper)" in result.out
    assert "Batch normalisation" not in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines() if not line.startswith("Results"))


def test_a_module_and_equal_seeds(cli, script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    script.rename(tmp_path / "advise_module_task.py")
    results = [cli("advise", "advise_module_task:task", *QUICK, "--seed", "5") for _ in range(2)]
    assert results[0].code == 0, results[0].err
    assert results[0].out == results[1].out


def test_batch_normalisation_is_told_of(cli, script):
    result = cli("advise", f"{script}:with_norm", *QUICK, "--no-hessian")
    assert result.code == 0, result.err
    assert "Batch normalisation saw 4 samples at a time" in result.out
    assert "mlperf_resnet" in result.out
    assert "B_noise was not measured: left out, as asked." in result.out


def test_a_loss_that_is_differentiable_once_only(cli, script):
    result = cli("advise", f"{script}:once", *QUICK)
    assert result.code == 0, result.err
    assert "B_noise was not measured: an operation of the model is marked as differentiable once" in " ".join(
        result.out.split()
    )


def test_the_digits(cli, tmp_path):
    out = tmp_path / "digits.csv"
    assert cli("advise", "--data", "digits", "--steps", "30", "--micro-batches", "4", "--out", out).code == 0
    assert {row["samples"] for row in rows_of(out)} == {"1024"}


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gone", "has no function `gone`: give the name"),
        ("number", "has no function `number`"),
        ("frozen", "returned a model without parameters to train"),
        ("pair", "returned a tuple of 2 values: it must return (model, data, loss_fn)"),
        ("swapped", "returned a TensorDataset in the wrong place"),
        ("stream", "data of the type Stream, of which no sample can be drawn"),
        ("many", "loss_fn returned a value of shape (4, 2): it must return the mean loss"),
        ("detached", "loss_fn returned a value of shape (): it must return the mean loss"),
        ("infinite", "the loss or a gradient is not finite by step 20"),
        ("broken", "KeyError: 'no such corpus'."),
        ("fails_later", "train.py, line 12: RuntimeError: mat1 and mat2 shapes"),
    ],
)
def test_mistakes_in_the_function(cli, script, tmp_path, name, match):
    result = cli("advise", f"{script}:{name}", *QUICK, "--out", tmp_path / "noise.csv")
    assert_refused(result, match)
    assert not (tmp_path / "noise.csv").exists()


def assert_refused(result, match):
    assert result.code == 2
    assert match.replace(" ", "") in result.message.replace(" ", "")
    assert result.message.count("gradient-lars: ") == 1
    assert result.message.endswith(".")
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give either your own function, such as `train.py:task`, or one of `--data digits`"),
        (["train.py:task", "--data", "digits"], "give either your own function"),
        (["--data", "cifar"], "`--data` is `cifar`, which is unknown"),
        (["--data", "fashion-mnist"], "`--data fashion-mnist` needs `--data-dir DIR`"),
        (["--data", "digits", "--data-dir", "."], "`--data-dir` belongs to `--data fashion-mnist` only"),
        (["--data", "digits", "--steps", "29"], "`--steps` must be at least 30, got 29"),
        (["--data", "digits", "--micro-batches", "1"], "`--micro-batches` must be at least 2, got 1"),
        (["--data", "digits", "--micro-batch", "0"], "`--micro-batch` must be at least 1, got 0"),
        (["--data", "digits", "--micro-batch", "1"], "`--micro-batch 1` leaves batch normalisation nothing"),
        (["--data", "digits", "--base-lr", "0"], "`--base-lr` must be > 0 and finite, got 0"),
        (["--data", "digits", "--micro-batch", "129"], "digits has 1024 samples, fewer than the 1032 of a step"),
        (["--data", "digits", "--device", "warp"], "`--device warp` cannot be used here"),
        (["--data", "digits", "--out", "."], "`--out`: . is a folder: name a file"),
        (["train.py"], "`train.py` names no function"),
        (["gone.py:task"], "there is no file gone.py"),
        (["no_such_module:task"], "there is no module `no_such_module` here or installed"),
    ],
)
def test_mistakes_in_options(cli, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradient_lars.cli.settings._DEBIAN_FASHION_MNIST", tmp_path / "gone")
    assert_refused(cli("advise", *arguments), match)


def test_all_the_samples_may_be_one_step_and_no_more(cli, script):
    arguments = ["advise", f"{script}:task", "--steps", "30", "--micro-batches", "3", "--micro-batch"]
    assert cli(*arguments, "16").code == 0
    assert_refused(cli(*arguments, "17"), "task has 48 samples, fewer than the 51 of a step (3 batches of 17): give a")


def test_a_step_measures_what_float64_autograd_says():
    """Against per-sample gradients and a dense Hessian of a small nonlinear model."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    weight = torch.nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
    model = torch.nn.Module()
    model.register_parameter("weight", weight)

    def value(w, batch):
        return torch.tanh(batch @ w).exp().mean()

    task = Task("t", model, TensorDataset(x), lambda model, batch: value(model.weight, batch))
    micro = list(x.split(4))
    loss, small, big, signal, noise = Probe(task, hessian=True).step(iter([*micro[:2], micro[2]]), 4, 2)
    gradients = [torch.autograd.functional.jacobian(lambda w, part=part: value(w, part), weight) for part in micro[:2]]
    hessian = torch.autograd.functional.hessian(lambda w: value(w, micro[2]), weight)
    mean, difference = (gradients[0] + gradients[1]) / 2, (gradients[0] - gradients[1]) / 2
    expected_noise = 4 * 2 * (difference @ hessian @ difference)
    torch.testing.assert_close(loss, value(weight, x[:8]).detach())
    torch.testing.assert_close(small, (gradients[0].square().sum() + gradients[1].square().sum()) / 2)
    torch.testing.assert_close(big, mean.square().sum())
    torch.testing.assert_close(noise, expected_noise)
    torch.testing.assert_close(signal, mean @ hessian @ mean - expected_noise / 8)
    torch.testing.assert_close(weight.grad, mean)


def test_the_hessian_leaves_the_running_statistics_alone():
    def statistics(hessian):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        task = Task("t", model, TensorDataset(torch.ones(1)), lambda model, batch: model(batch).square().mean())
        Probe(task, hessian=hessian).step(iter(torch.randn(4, 6, 3)), 6, 3)
        return model[1].running_mean, model[1].num_batches_tracked

    for with_it, without in zip(statistics(True), statistics(False), strict=True):
        torch.testing.assert_close(with_it, without, rtol=0, atol=0)


def test_samples_are_drawn_with_replacement_and_as_the_loader_collates():
    loader = DataLoader(list(range(8)), collate_fn=lambda items: {"n": torch.tensor(items)})
    task = Task("t", torch.nn.Linear(1, 1), loader, lambda model, batch: batch)
    batches = [batch["n"] for batch in task.batches(4, 50, 0, torch.device("cpu"))]
    assert [len(batch) for batch in batches] == [4] * 50
    counts = torch.cat(batches).bincount(minlength=8)
    assert counts.min() > 5
    assert any(len(batch.unique()) < 4 for batch in batches)


def test_batches_of_any_shape_are_moved():
    batch = to_device({"a": [torch.ones(1), ("text", torch.zeros(2))]}, torch.device("meta"))
    assert batch["a"][0].device.type == batch["a"][1][1].device.type == "meta"
    assert batch["a"][1][0] == "text"


@pytest.mark.parametrize(
    ("value", "most", "power"),
    [
        (0.0, 100, 2),
        (3.0, 100, 4),
        (90.0, 100, 64),
        (95.0, 100, 64),
        (100.0, 100, 100),
        (1e9, 100, 100),
        (600.0, 5000, 512),
        (2.0, 2, 2),
    ],
)
def test_the_nearest_power(value, most, power):
    assert nearest_power(value, most) == power


def test_the_steps_of_a_batch():
    settings = AdviseSettings(None, "digits", None, None, 32, 8, 20, 1.0, 256, True, "cpu", 0, None)
    assert settings.big_batch == 256


def test_the_tables_of_the_page_are_current():
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("advise_check", root / "benchmarks" / "advise_check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    page = (root / "docs" / "advise.md").read_text(encoding="utf-8")
    assert f"<!-- begin advise-check -->\n\n{check.tables()}\n\n<!-- end advise-check -->" in page
