"""The results file: written row by row, read back exactly, and what damages it."""

import csv
import math
from dataclasses import replace

import pytest

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic
from gradient_lars.cli.results import (
    Experiment,
    RateSample,
    ResultsFile,
    Run,
    read_rates,
    read_results,
    write_rates,
)

EXPERIMENT = Experiment(
    data="a, 'b'.npz",
    data_digest="0123456789ab",
    n_train=80,
    n_val=16,
    n_test=30,
    batch_sizes=(16, 80),
    sgd_learning_rates=(0.1, 1 / 3),
    lars_learning_rates=(0.01, 1e-7),
    tuning_seeds=2,
    seeds=1,
    epochs=2,
    momentum=0.9,
    weight_decay=5e-4,
    threshold=math.inf,
    eps=1e-9,
    device="cpu",
    torch="2.13.0",
    gradient_lars="0.1.0",
)
TUNE = Run("tune", 16, 10, "sgd", 1 / 3, 0, 2 / 3, math.inf, None, True, 0.125)
FINAL = Run("final", 16, 10, "sgd", 0.1, 2, 0.1 + 0.2, 1e-17, 0.0, False, 1234.5)


@pytest.fixture
def file(tmp_path):
    file = ResultsFile.create(tmp_path / "results.csv", EXPERIMENT)
    file.append(TUNE)
    file.append(FINAL)
    return file


def test_rows_are_read_back_exactly(file):
    assert read_results(file.path) == (EXPERIMENT, [TUNE, FINAL])
    assert EXPERIMENT.n_runs == 2 * (2 + 2 + 2 + 2 + 1 + 1)


def test_every_setting_is_in_every_row(file):
    with file.path.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["batch_sizes"] for row in rows] == ["16 80", "16 80"]
    assert [row["data"] for row in rows] == [EXPERIMENT.data] * 2
    assert [row["test_accuracy"] for row in rows] == ["", "0.0"]
    assert [row["diverged"] for row in rows] == ["true", "false"]


def test_row_is_on_disk_when_append_returns(file):
    third = replace(FINAL, seed=3)
    file.append(third)
    assert read_results(file.path)[1][-1] == third


@pytest.mark.parametrize("kept", [1, 30, -1])
def test_torn_last_line_is_dropped_and_the_file_mended(file, kept):
    whole = file.path.read_text()
    start = whole.rstrip("\n").rfind("\n") + 1
    file.path.write_text(whole[: start + kept] if kept > 0 else whole[:kept])
    resumed = ResultsFile.resume(file.path, EXPERIMENT)
    assert resumed.runs == [TUNE]
    resumed.append(FINAL)
    assert file.path.read_text() == whole


def test_file_without_rows_is_resumed_with_any_settings(tmp_path):
    path = tmp_path / "results.csv"
    ResultsFile.create(path, EXPERIMENT)
    assert read_results(path) == (None, [])
    assert ResultsFile.resume(path, replace(EXPERIMENT, epochs=7)).runs == []


@pytest.mark.parametrize(
    ("name", "value", "texts"),
    [
        ("epochs", 7, ("2", "7")),
        ("batch_sizes", (16,), ("16 80", "16")),
        ("lars_learning_rates", (0.5, 1.0), ("0.01 1e-07", "0.5 1.0")),
        ("threshold", 0.5, ("inf", "0.5")),
        ("data_digest", "f" * 12, ("0123456789ab", "f" * 12)),
        ("torch", "2.14", ("2.13.0", "2.14")),
    ],
)
def test_other_settings_are_refused_by_name_and_both_values(file, name, value, texts):
    before = file.path.read_bytes()
    with pytest.raises(
        CommandError, match=f"made with {name} = {texts[0]}, this command has {texts[1]}: .*--overwrite"
    ):
        ResultsFile.resume(file.path, replace(EXPERIMENT, **{name: value}))
    assert file.path.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("data,data_digest", "data,sha", "is not a results file of this version"),
        (",true,", ",maybe,", "line 2 is damaged .unexpected 'maybe'"),
        (",final,16,", ",final,x,", "line 3 is damaged .invalid literal"),
        (",0.125\n", "\n", "line 2 is damaged .zip"),
    ],
)
def test_damage_is_named_with_its_line(file, old, new, match):
    text = file.path.read_text()
    assert old in text
    file.path.write_text(text.replace(old, new, 1))
    with pytest.raises(CommandError, match=match):
        read_results(file.path)


def test_rows_of_two_comparisons_are_refused(file):
    other = ResultsFile(file.path, replace(EXPERIMENT, epochs=3), [])
    other.append(FINAL)
    with pytest.raises(CommandError, match="line 4 has other settings than line 2"):
        read_results(file.path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary"])
def test_other_files_are_not_results(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(CommandError, match=r"is not a results file|not a text file"):
        read_results(tmp_path / "x.csv")


def test_rates_are_read_back_exactly_and_a_missing_file_is_empty(tmp_path):
    samples = [RateSample(0, "conv1.weight", 1 / 3, 0.0, 1e9, True), RateSample(1, "norm1.bias", 0.0, 2.0, 1.0, False)]
    path = tmp_path / "rates.csv"
    assert read_rates(path) == []
    write_rates(path, samples)
    assert read_rates(path) == samples
    path.write_text(path.read_text().replace("conv1.weight,", "conv1.weight"))
    with pytest.raises(CommandError, match="is damaged"):
        read_rates(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rates.csv"]


def test_whole_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "plot.png"
    path.write_text("old")

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
