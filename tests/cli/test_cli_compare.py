"""``gradient-lars compare`` from the command to its files: complete, interrupted, resumed, drawn again."""

import csv
import functools
import io
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

from gradient_lars.cli import compare as compare_module
from gradient_lars.cli.data import load
from gradient_lars.cli.network import build_network
from gradient_lars.cli.training import evaluate

N_RUNS = 20  # of the fixture `quick`
FILES = ["plot.png", "rates.csv", "results.csv"]


def rows_of(folder, *, timed=False):
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows if timed else [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def finished(cli, quick, tmp_path):
    """The folder of a finished comparison, and what the command printed."""
    folder = tmp_path / "finished"
    result = cli(*quick, "--out", folder)
    assert result.code == 0, result.err
    return folder, result


def interrupt_after(monkeypatch, n):
    """Press Ctrl-C in the middle of run number n + 1."""
    original, count = compare_module.fit, itertools.count()

    def fit(*arguments, **options):
        if next(count) == n:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(compare_module, "fit", fit)


def test_finished_comparison_has_every_run_once(finished):
    folder, result = finished
    assert files_in(folder) == FILES
    rows = rows_of(folder)
    counts = Counter((row["phase"], row["batch_size"], row["optimizer"]) for row in rows)
    assert counts == {
        (phase, batch, optimizer): n
        for phase, n in (("tune", 4), ("final", 1))
        for batch in ("16", "80")
        for optimizer in ("sgd", "lars")
    }
    assert {row["steps"] for row in rows if row["batch_size"] == "16"} == {"10"}
    assert {row["steps"] for row in rows if row["batch_size"] == "80"} == {"2"}
    assert {row["seed"] for row in rows if row["phase"] == "tune"} == {"0", "1"}
    assert {row["seed"] for row in rows if row["phase"] == "final"} == {"2"}
    assert {(row["n_train"], row["n_val"], row["n_test"]) for row in rows} == {("80", "16", "30")}
    assert {row["data"] for row in rows} == {"shapes.npz"}
    assert "shapes.npz: 80 training images, 2 epochs" in result.out
    assert "At the largest batch (80, the whole training split)" in result.out
    assert "One seed shows no spread" in result.out
    assert "batch 16, SGD: lr 0.5, the best of 2 (validation" in result.err
    assert all(len(line) <= 80 for line in result.out.splitlines() if not line.startswith(("Plot:", "Runs:")))


def test_chosen_rate_is_the_best_on_validation(finished):
    rows = rows_of(finished[0])
    for batch, optimizer in itertools.product(("16", "80"), ("sgd", "lars")):
        own = [row for row in rows if (row["batch_size"], row["optimizer"]) == (batch, optimizer)]
        tuned = {}
        for row in own:
            if row["phase"] == "tune":
                tuned.setdefault(row["lr"], []).append((float(row["val_accuracy"]), -float(row["val_loss"])))
        best = max(tuned, key=lambda lr: tuple(np.mean(tuned[lr], axis=0)))
        assert {row["lr"] for row in own if row["phase"] == "final"} == {best}


def test_test_split_is_looked_at_once_per_final_run_only(cli, quick, npz, tmp_path, monkeypatch):
    test = torch.from_numpy(load(str(npz), None).test.y)
    seen = []

    def spy(network, split, cluster):
        seen.append("test" if torch.equal(split.y, test) else "val")
        return evaluate(network, split, cluster)

    monkeypatch.setattr(compare_module, "evaluate", spy)
    assert cli(*quick, "--out", tmp_path / "out").code == 0
    assert seen == ((["val"] * 4) + ["val", "test"]) * 4
    rows = rows_of(tmp_path / "out")
    assert all((row["test_accuracy"] == "") == (row["phase"] == "tune") for row in rows)


def test_same_command_twice_gives_the_same_rows(finished, cli, quick, tmp_path):
    folder, _ = finished
    cli(*quick, "--out", tmp_path / "again")
    assert rows_of(tmp_path / "again") == rows_of(folder)
    assert (tmp_path / "again" / "rates.csv").read_bytes() == (folder / "rates.csv").read_bytes()


def test_rates_are_those_of_the_first_final_lars_run_at_the_largest_batch(finished):
    with (finished[0] / "rates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "layer", "p_norm", "g_norm", "rate", "adapted"]
    assert [row["step"] for row in rows] == ["0"] * 11 + ["1"] * 11
    start = dict(build_network(1, 3, seed=2).named_parameters())
    for row in rows[:11]:
        assert float(row["p_norm"]) == pytest.approx(start[row["layer"]].norm().item(), rel=1e-5)


@pytest.mark.parametrize("n", [0, 3, 17])
def test_interrupted_and_resumed_equals_uninterrupted(finished, cli, quick, tmp_path, monkeypatch, n):
    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt_after(patch, n)
        result = cli(*quick, "--out", folder)
    assert result.code == 130
    assert "`--resume` to go on" in result.message
    assert rows_of(folder) == rows_of(finished[0])[:n]
    assert not (folder / "plot.png").exists()
    resumed = cli(*quick, "--out", folder, "--resume")
    assert resumed.code == 0
    assert f"Resuming: {n} of {N_RUNS} runs are there." in resumed.err
    assert rows_of(folder) == rows_of(finished[0])
    assert (folder / "rates.csv").read_bytes() == (finished[0] / "rates.csv").read_bytes()
    assert files_in(folder) == FILES


def test_torn_line_is_run_again(finished, cli, quick):
    folder, _ = finished
    path = folder / "results.csv"
    rows = rows_of(folder)
    path.write_text(path.read_text()[:-40])
    assert cli(*quick, "--out", folder, "--resume").code == 0
    assert rows_of(folder) == rows


def test_finished_comparison_resumed_trains_nothing(finished, cli, quick, monkeypatch):
    folder, first = finished
    before = (folder / "results.csv").read_bytes()
    (folder / "plot.png").unlink()
    interrupt_after(monkeypatch, 0)
    again = cli(*quick, "--out", folder, "--resume")
    assert (again.code, again.out) == (0, first.out)
    assert (folder / "results.csv").read_bytes() == before
    assert files_in(folder) == FILES


def test_ctrl_c_in_a_real_process(quick, tmp_path):
    folder = tmp_path / "out"
    arguments = [*quick, "--out", str(folder), "--epochs", "400"]
    # A shell's background job ignores SIGINT, and so would everything that it starts, these tests among them.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from gradient_lars.cli import main; sys.argv[0] = 'gradient-lars'; main()"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not (folder / "results.csv").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Interrupted. The finished runs are kept" in errors
    assert "Traceback" not in errors
    assert files_in(folder) == ["results.csv"]


def test_resume_with_other_settings_is_refused_and_changes_nothing(finished, cli, quick):
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = cli(*quick, "--out", folder, "--resume", "--epochs", "3")
    assert result.code == 2
    assert "epochs = 2, this command has 3" in result.message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_used_folder_is_refused_and_overwritten_on_request(finished, cli, quick):
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused = cli(*quick, "--out", folder)
    assert refused.code == 2
    assert "already holds the results of a comparison: add `--resume`" in refused.message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    replaced = cli(*quick, "--out", folder, "--overwrite", "--epochs", "1")
    assert replaced.code == 0
    assert {row["epochs"] for row in rows_of(folder)} == {"1"}


def test_overwriting_removes_the_old_plot_at_once(finished, cli, quick, monkeypatch):
    interrupt_after(monkeypatch, 1)
    assert cli(*quick, "--out", finished[0], "--overwrite").code == 130
    assert files_in(finished[0]) == ["results.csv"]


def test_resume_without_results_begins(cli, quick, tmp_path):
    result = cli(*quick, "--out", tmp_path / "new", "--resume")
    assert result.code == 0
    assert "Nothing to resume" in result.err
    assert len(rows_of(tmp_path / "new")) == N_RUNS


def test_replot_draws_the_same_table_and_plot_from_the_csv_alone(finished, cli, npz, tmp_path):
    folder, first = finished
    plot = (folder / "plot.png").read_bytes()
    npz.unlink()
    shutil.move(folder, tmp_path / "moved")
    again = cli("compare", "--replot", tmp_path / "moved" / "results.csv", "--out", tmp_path / "other")
    assert again.code == 0
    assert again.out.split("Plot:")[0] == first.out.split("Plot:")[0]
    assert (tmp_path / "other" / "plot.png").read_bytes() == plot
    assert files_in(tmp_path / "other") == ["plot.png"]


def test_replot_without_rates_draws_beside_the_csv(finished, cli):
    folder, _ = finished
    (folder / "rates.csv").unlink()
    (folder / "plot.png").unlink()
    assert cli("compare", "--replot", folder / "results.csv").code == 0
    assert files_in(folder) == ["plot.png", "results.csv"]


@pytest.mark.parametrize(
    ("kept", "match"), [(19, "has 19 of 20 runs: finish the comparison with `--resume` first."), (0, "has 0 runs")]
)
def test_unfinished_comparison_is_not_drawn(finished, cli, kept, match):
    folder, _ = finished
    path = folder / "results.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: kept + 1]))
    (folder / "plot.png").unlink()
    result = cli("compare", "--replot", path)
    assert (result.code, result.out) == (2, "")
    assert match in result.message
    assert files_in(folder) == ["rates.csv", "results.csv"]


def test_names_that_look_like_markup_or_mathematics(cli, quick, npz, tmp_path):
    data, out = tmp_path / "a$x^$[red]:smile:.npz", tmp_path / "r[" / "b][old]$y_$"
    npz.rename(data)
    quick[2:3] = [str(data)]
    first = cli(*quick, "--out", out, "--resume")
    assert first.code == 0, first.err
    assert f"Nothing to resume in {out}: beginning there." in first.err.replace("\n", "").replace(" :", ":")
    assert "a$x^$[red]:smile:.npz: 80 training images" in first.out
    assert f"Plot: {out}/plot.png\nRuns: {out}/results.csv\n" in first.out
    again = cli("compare", "--replot", out / "results.csv")
    assert (again.code, again.out) == (0, first.out)


def set_cell(name, value, *, when, count=None):
    """A change of a results file: `value` in the column `name` of the first `count` rows that hold all of `when`."""

    def change(rows):
        found = [row for row in rows if all(row[key] == text for key, text in when.items())]
        for row in found[:count]:
            row[name] = value(row) if callable(value) else value
        return rows

    return change


def other_rate(row):
    return next(lr for lr in row["sgd_learning_rates"].split() if lr != row["lr"])


FINAL_SGD = {"phase": "final", "optimizer": "sgd", "batch_size": "16"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_cell("test_accuracy", "", when={"phase": "final"}), "`test_accuracy` must be from 0 to 1"),
        (set_cell("test_accuracy", "7", when=FINAL_SGD), "got 7.0"),
        (set_cell("lr", other_rate, when=FINAL_SGD), "SGD at batch 16 has a final run with lr 0."),
        (lambda rows: [*rows[:3], *rows[4:], rows[5]], "is the same run as line 6"),
        (set_cell("batch_sizes", "", when={}), "line 2 is damaged (`batch_sizes` must be ascending numbers"),
        (set_cell("lars_learning_rates", "", when={}), "line 2 is damaged (`lars_learning_rates` must be ascending"),
        (set_cell("n_test", "0", when={}), "line 2 is damaged (`n_test` must be a whole number from 1"),
        (set_cell("seeds", "2", when={}), "has 20 of 24 runs: finish the comparison with `--resume` first"),
    ],
)
def test_damaged_results_are_neither_drawn_nor_resumed(finished, cli, quick, change, match):
    folder, _ = finished
    path = folder / "results.csv"
    rows = change(rows_of(folder, timed=True))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    drawn = cli("compare", "--replot", path)
    assert (drawn.code, drawn.out) == (2, "")
    assert match in drawn.message
    resumed = cli(*quick, "--out", folder, "--resume")
    assert (resumed.code, resumed.out) == (2, "")
    assert match in resumed.message or "made with seeds = 2" in resumed.message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("kept", "match"), [(0.5, "is damaged (its last step is 0, the run has 2 steps)"), (0.25, "is damaged (")]
)
def test_rates_cut_short_are_refused(finished, cli, quick, kept, match):
    folder, _ = finished
    path = folder / "rates.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: 1 + int(kept * (len(lines) - 1))]))
    for arguments in (["compare", "--replot", folder / "results.csv"], [*quick, "--out", folder, "--resume"]):
        result = cli(*arguments)
        assert (result.code, result.out) == (2, "")
        assert match in result.message or "not every step has each layer once" in result.message
        assert "remove it to plot without the rates" in result.message


def test_rates_of_a_run_that_diverged_may_end_before(cli, quick, tmp_path):
    arguments = [*quick[:-4], "--learning-rates", "sgd:0.1", "--learning-rates", "lars:1e30", "--epochs", "5"]
    assert cli(*arguments, "--out", tmp_path / "out").code == 0
    lines = (tmp_path / "out" / "rates.csv").read_text().splitlines()[1:]
    assert 0 < len({line.partition(",")[0] for line in lines}) < 5


def test_diverged_runs_are_kept_and_marked(cli, quick, tmp_path):
    result = cli(*quick[:-4], "--learning-rates", "sgd:1e30", "--learning-rates", "lars:0.1", "--out", tmp_path / "out")
    assert result.code == 0
    rows = rows_of(tmp_path / "out")
    assert {(row["optimizer"], row["diverged"]) for row in rows} == {("sgd", "true"), ("lars", "false")}
    assert {row["val_loss"] for row in rows if row["optimizer"] == "sgd"} == {"inf"}
    assert "! with 2 diverged runs, counted as measured." in result.out
    assert "1 learning rate was tried" in " ".join(result.out.split())
    assert "* at the edge of its grid" in result.out


def test_memory_that_does_not_suffice_keeps_the_finished_runs(cli, quick, tmp_path, monkeypatch):
    original = compare_module.fit

    def fit(recipe, *arguments, **options):
        if recipe.batch_size == 80:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(recipe, *arguments, **options)

    monkeypatch.setattr(compare_module, "fit", fit)
    result = cli(*quick, "--out", tmp_path / "out")
    assert result.code == 2
    assert "a batch of 80 does not fit into the memory of cpu" in result.message
    assert len(rows_of(tmp_path / "out")) == N_RUNS // 2


def test_full_disk_is_one_sentence(cli, quick, tmp_path, monkeypatch):
    original, count = os.fsync, itertools.count()

    def fsync(descriptor):
        if next(count) == 2:
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    result = cli(*quick, "--out", tmp_path / "out")
    assert result.code == 2
    assert "cannot be written to (No space left on device)" in result.message


def test_small_data_runs_on_one_thread_and_the_number_is_restored(cli, quick, tmp_path, monkeypatch):
    seen = []

    def fit(*arguments, **options):
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(compare_module, "fit", fit)
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        cli(*quick, "--out", tmp_path / "small")
        assert (seen, torch.get_num_threads()) == ([1], 3)
        monkeypatch.setattr(compare_module, "SMALL", 0)
        cli(*quick, "--out", tmp_path / "large")
        assert (seen, torch.get_num_threads()) == ([1, 3], 3)
    finally:
        torch.set_num_threads(usual)


def test_terminal_shows_a_progress_bar(quick, npz, tmp_path):
    from rich.console import Console

    from gradient_lars.cli.settings import Settings

    log = Console(force_terminal=True, width=80, file=io.StringIO())
    settings = Settings(
        data=str(npz),
        data_dir=None,
        batch_sizes=("full",),
        learning_rates={"sgd": (0.1,), "lars": (0.1,)},
        epochs=1,
        seeds=1,
        momentum=0.9,
        weight_decay=0.0,
        threshold=0.01,
        eps=1e-9,
        device="cpu",
        out=tmp_path / "out",
    )
    compare_module.compare(settings, resume=False, overwrite=False, output=Console(file=io.StringIO()), log=log)
    assert "0/6 runs" in log.file.getvalue()


def test_fashion_mnist_files_are_compared(cli, idx_folder, tmp_path):
    arguments = ["--epochs", 1, "--seeds", 1, "--learning-rates", "0.1", "--batch-sizes", "full"]
    out = tmp_path / "out"
    assert cli("compare", "--data", "fashion-mnist", "--data-dir", idx_folder, *arguments, "--out", out).code == 0
    assert {row["data"] for row in rows_of(out)} == {"fashion-mnist"}
    assert str(tmp_path) not in (out / "results.csv").read_text()


CHOICES = shlex.split(
    "--baseline both --learning-rates nesterov:0.05,0.5 --tuning-seeds 3 --halving --network medium --schedule tvlars "
    "--warm-up 0.2 --label-smoothing 0.1 --augment shift --micro-batch 10 --bf16 --no-recompute-norm --adapt matrices "
    "--train-size 60"
)


def test_every_choice_is_recorded_and_resumed(cli, quick, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = cli(*quick, *CHOICES, "--out", whole)
    assert first.code == 0, first.err
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        assert cli(*quick, *CHOICES, "--out", cut).code == 130
    assert len(rows_of(cut)) == 7
    again = cli(*quick, *CHOICES, "--out", cut, "--resume")
    assert again.code == 0, again.err
    rows = rows_of(whole)
    assert rows_of(cut) == rows
    assert len(rows) == 2 * 3 * (2 + 1 + 1 + 1)
    names = ("network", "schedule", "warm_up", "label_smoothing", "augment", "micro_batch", "bf16", "recompute_norm")
    values = ("medium", "tvlars", "0.2", "0.1", "shift", "10", "true", "false")
    assert {tuple(row[name] for name in names) for row in rows} == {values}
    assert {(row["adapt"], row["n_train"], row["halving"]) for row in rows} == {("matrices", "60", "true")}
    assert all(row["machine"] for row in rows)
    other = cli(*quick, *CHOICES, "--out", cut, "--resume", "--schedule", "cosine")
    assert (other.code, "schedule = tvlars, this command has cosine" in other.message) == (2, True)


def test_compiling_is_recorded(cli, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    result = cli(*quick, "--compile", "--out", tmp_path / "out")
    assert (result.code, "compiled True" in result.out) == (0, True), result.err
    assert {row["compiled"] for row in rows_of(tmp_path / "out")} == {"true"}


def test_a_compiler_that_is_missing_is_told_first(cli, quick, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("\nInvalidCxxCompiler: No working C++ compiler found.\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    result = cli(*quick, "--compile", "--out", tmp_path / "out")
    assert result.code == 2
    assert result.message == (
        "gradient-lars: `--compile` cannot be used on cpu here (InvalidCxxCompiler: No working C++ compiler found): "
        "install the compiler that torch.compile needs, or leave it out."
    )
    assert not (tmp_path / "out").exists()


def test_halving_gives_each_further_seed_to_the_better_half(cli, quick, tmp_path):
    rates = ["--learning-rates", "sgd:1e-6,0.05,0.1,0.5", "--learning-rates", "lars:1e-6,0.01,0.05,0.1"]
    options = ["--tuning-seeds", 3, "--halving", "--epochs", 6, "--batch-sizes", 16]
    assert cli(*quick[:-4], *rates, *options, "--out", tmp_path / "out").code == 0
    rows = [row for row in rows_of(tmp_path / "out") if row["phase"] == "tune"]
    for optimizer in ("sgd", "lars"):
        own = [row for row in rows if row["optimizer"] == optimizer]
        assert Counter(row["seed"] for row in own) == {"0": 4, "1": 2, "2": 1}
        assert [row["seed"] for row in own if row["lr"] == "1e-06"] == ["0"]


def test_default_data_is_digits_in_the_default_folder(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli("compare", "--epochs", 1, "--seeds", 1, "--learning-rates", "0.1")
    assert result.code == 0
    rows = rows_of(tmp_path / "gradient-lars-compare")
    assert {row["data"] for row in rows} == {"digits"}
    assert {row["batch_sizes"] for row in rows} == {"64 256 512 1024"}
    assert "digits: 1024 training images, 1 epoch" in map(str.strip, result.out.splitlines())
