"""The results file: written row by row, read back exactly, and what damages it."""

import csv
import math
from dataclasses import replace

import pytest

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import atomic
from gradient_lars.cli.records import Experiment, RateSample, Run
from gradient_lars.cli.results import ResultsFile, read_rates, read_results, write_rates

EXPERIMENT = Experiment(
    data="a, 'b'.npz",
    data_digest="0123456789ab",
    n_train=80,
    n_val=16,
    n_test=30,
    batch_sizes=(16, 80),
    sgd_learning_rates=(0.1, 1 / 3),
    lars_learning_rates=(1e-7, 0.01),
    tuning_seeds=2,
    seeds=2,
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
    assert EXPERIMENT.n_runs == 2 * (2 + 2 + 2 + 2 + 2 + 2)


def test_every_setting_is_in_every_row(file):
    with file.path.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert [row["batch_sizes"] for row in rows] == ["16 80", "16 80"]
    assert [row["data"] for row in rows] == [EXPERIMENT.data] * 2
    assert [row["test_accuracy"] for row in rows] == ["", "0.0"]
    assert [row["diverged"] for row in rows] == ["true", "false"]


def test_processes_are_in_every_row_and_left_out_of_one_alone(file, tmp_path):
    assert "world_size" not in file.path.read_text()
    several = replace(EXPERIMENT, world_size=4, shard="fsdp2")
    other = ResultsFile.create(tmp_path / "other.csv", several)
    other.append(FINAL)
    with other.path.open(newline="") as text:
        assert [(row["world_size"], row["shard"]) for row in csv.DictReader(text)] == [("4", "fsdp2")]
    assert read_results(other.path) == (several, [FINAL])
    with pytest.raises(CommandError, match="made with world_size = 4, this command has 1"):
        ResultsFile.resume(other.path, EXPERIMENT)


def test_row_is_on_disk_when_append_returns(file):
    third = replace(FINAL, seed=3)
    file.append(third)
    assert read_results(file.path)[1][-1] == third


def older(path):
    """Take the columns away that came later."""
    with path.open(newline="") as text:
        rows = list(csv.DictReader(text))
    with path.open("w", newline="") as text:
        names = [name for name in rows[0] if name not in ("machine", "commit")]
        writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def test_file_of_an_older_version_is_read_and_gets_the_new_columns_on_resuming(file):
    older(file.path)
    before = file.path.read_text()
    assert "commit" not in before
    assert read_results(file.path) == (EXPERIMENT, [TUNE, FINAL])
    ResultsFile.resume(file.path, EXPERIMENT).append(replace(FINAL, seed=3, machine="m", commit="0ab"))
    lines = file.path.read_text().splitlines()
    assert lines[:3] == [before.splitlines()[0] + ",machine,commit", *(row + ",," for row in before.splitlines()[1:])]
    assert lines[3].endswith(",m,0ab")
    with pytest.raises(CommandError, match="made with schedule = linear, this command has cosine"):
        ResultsFile.resume(file.path, replace(EXPERIMENT, schedule="cosine"))


def test_choices_are_in_the_file_where_they_are_not_the_usual_ones(tmp_path):
    chosen = {"network": "vgg", "warm_up": 0.2, "bf16": True, "micro_batch": 32, "recompute_norm": False}
    rates = {"sgd_learning_rates": (), "nesterov_learning_rates": (0.1, 1.0)}
    experiment = replace(EXPERIMENT, halving=True, **chosen, **rates)
    file = ResultsFile.create(tmp_path / "results.csv", experiment)
    run = replace(TUNE, optimizer="nesterov", lr=0.1, machine="a, b", commit="c")
    file.append(run)
    assert read_results(file.path) == (experiment, [run])
    header = file.path.read_text().splitlines()[0].split(",")
    assert {*chosen, "halving", "nesterov_learning_rates"} <= {*header}
    assert "schedule" not in header
    file.path.write_text(file.path.read_text().replace("recompute_norm", "of_a_later_version"))
    with pytest.raises(CommandError, match="is not a results file of this version: its columns are others"):
        read_results(file.path)


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
        ("lars_learning_rates", (0.5, 1.0), ("1e-07 0.01", "0.5 1.0")),
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
        (",0.125,,\n", ",,\n", "line 2 is damaged .it has 30 columns, not 31.: remove"),
        (",final,", ",probe,", "line 3 is damaged .`phase` must be one of tune, final, got probe"),
        (",sgd,", ",adam,", "line 2 is damaged .`optimizer` must be one of sgd, lars, got adam"),
        (",final,16,", ",final,-5,", "line 3 is damaged .`batch_size` must be one of 16, 80, got -5"),
        (",final,16,10,", ",final,16,11,", "line 3 is damaged .`steps` must be 10, got 11"),
        (",sgd,0.1,2,", ",sgd,0.2,2,", "line 3 is damaged .`lr` must be one of 0.1, 0.3333333333333333, got 0.2"),
        (",sgd,0.1,2,", ",sgd,0.1,1,", "line 3 is damaged .`seed` must be from 2 to 3 in the phase `final`, got 1"),
        (",0,0.6666666666666666,", ",0,1.5,", "line 2 is damaged .`val_accuracy` must be from 0 to 1, got 1.5"),
        (",inf,,true", ",nan,,true", "line 2 is damaged .`val_loss` must be >= 0, got nan"),
        (
            ",inf,,true",
            ",inf,0.5,true",
            "line 2 .* .`test_accuracy` must be empty in the phase `tune`, got 0.5",
        ),
        (",0.0,false", ",,false", "line 3 is damaged .`test_accuracy` must be from 0 to 1 .*, got none"),
        (",0.0,false", ",nan,false", "line 3 is damaged .`test_accuracy` must be from 0 to 1 .*, got nan"),
        (",0.0,false", ",7,false", "line 3 is damaged .`test_accuracy` must be from 0 to 1 .*, got 7"),
        (",false,1234.5", ",false,inf", "line 3 is damaged .`seconds` must be finite and >= 0, got inf"),
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


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("batch_sizes", (), "`batch_sizes` must be ascending numbers, at least one, got"),
        ("batch_sizes", (80, 16), "`batch_sizes` must be ascending numbers"),
        ("batch_sizes", (16, 81), "`batch_sizes` must be from 2 to `n_train`"),
        ("sgd_learning_rates", (), "`sgd_learning_rates` must be ascending numbers, at least one"),
        ("sgd_learning_rates", (0.1, math.nan), "`sgd_learning_rates` must be ascending numbers"),
        ("lars_learning_rates", (-1.0, 1.0), "`lars_learning_rates` must be positive and finite"),
        ("lars_learning_rates", (0.1,), "`lars_learning_rates` must be as many as `sgd_learning_rates`"),
        ("nesterov_learning_rates", (0.1,), "`nesterov_learning_rates` must be as many as `sgd_learning_rates`"),
        ("network", "vit", "`network` must be one of `small`, `medium`, `vgg`, got vit"),
        ("micro_batch", 1, "`micro_batch` must be 0 or at least 2, got 1"),
        ("warm_up", math.inf, r"`warm_up` must be in .0, 1., got inf"),
        ("n_test", 0, "`n_test` must be a whole number from 1 to 1e12, got 0"),
        ("n_train", 10**13, "`n_train` must be a whole number from 1 to 1e12, got 1000"),
        ("momentum", 1.0, r"`momentum` must be in \[0, 1\), got 1.0"),
        ("eps", math.nan, "`eps` must be finite and >= 0, got nan"),
        ("threshold", -1.0, "`threshold` must be >= 0, got -1.0"),
    ],
)
def test_impossible_settings_are_damage(tmp_path, name, value, match):
    file = ResultsFile.create(tmp_path / "results.csv", replace(EXPERIMENT, **{name: value}))
    file.append(TUNE)
    with pytest.raises(CommandError, match=f"line 2 is damaged .{match}"):
        read_results(file.path)


def test_run_that_is_there_twice_is_refused(file):
    file.append(TUNE)
    with pytest.raises(CommandError, match="line 4 is the same run as line 2: remove one of them"):
        read_results(file.path)


def test_field_too_large_for_a_csv_is_damage(file):
    file.path.write_text(file.path.read_text().replace(",final,", f",{'x' * 200_000},"))
    with pytest.raises(CommandError, match=r"line 3 is damaged .field larger than field limit .131072..: remove"):
        read_results(file.path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00binary"])
def test_other_files_are_not_results(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(CommandError, match=r"is not a results file|not a text file"):
        read_results(tmp_path / "x.csv")


def test_rates_are_read_back_exactly_and_a_missing_file_is_empty(tmp_path):
    first = [RateSample(0, "conv1.weight", 1 / 3, 0.0, 1e9, True), RateSample(0, "norm1.bias", 0.0, 2.0, 1.0, False)]
    samples = [*first, *(replace(sample, step=2) for sample in first)]
    path = tmp_path / "rates.csv"
    assert read_rates(path) == []
    write_rates(path, samples)
    assert read_rates(path) == samples
    path.write_text(path.read_text().replace("conv1.weight,", "conv1.weight"))
    with pytest.raises(CommandError, match="is damaged"):
        read_rates(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["rates.csv"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: lines[:1], "steps are missing"),
        (lambda lines: [], "its columns are others"),
        (lambda lines: lines[:-1], "not every step has each layer once"),
        (lambda lines: [*lines[:4], lines[4][:9] + "\n", *lines[5:]], "it has 2 columns, not 6"),
        (lambda lines: [*lines[:2], lines[2][:3] + lines[3], *lines[4:]], "it has 7 columns, not 6"),
        (lambda lines: [*lines[:3], *lines[5:]], "steps are missing"),
        (lambda lines: [lines[0], *lines[3:]], "steps are missing"),
        (lambda lines: [*lines, lines[-1]], "not every step has each layer once"),
        (lambda lines: [line.replace(",2.5,", ",-2.5,") for line in lines], "step 0 has a negative rate or norm"),
    ],
)
def test_rates_with_rows_missing_or_torn_are_refused(tmp_path, change, match):
    path = tmp_path / "rates.csv"
    layers = ("conv1.weight", "norm1.bias")
    write_rates(path, [RateSample(step, layer, 1.0, 1.0, 2.5, True) for step in (0, 3, 6, 9) for layer in layers])
    assert len(read_rates(path)) == 8
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    with pytest.raises(CommandError, match=f"is damaged .({match}).: remove it to plot without the rates"):
        read_rates(path)


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
