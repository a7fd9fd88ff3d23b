"""``gradient-lars advise``: what is said of users' functions that go wrong, and its CSV."""

import csv
import re
import sys

import pytest

from gradient_lars.cli.advise_errors import failed
from gradient_lars.cli.bench_results import processor_name, source_commit

QUICK = ["--steps", "30", "--micro-batch", "4", "--micro-batches", "3"]
TASK = """
import argparse
import json
import sys
import torch
from torch import nn
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset, TensorDataset

def data():
    x = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def task():
    return nn.Linear(5, 2), data(), loss

def with_loss(own):
    return lambda: (nn.Linear(5, 2), data(), own)

def with_data(own):
    return lambda: (nn.Linear(5, 2), own, loss)

def raising(error):
    raise error

class Samples(Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return torch.ones(5 + index), 0

class Unreadable(Samples):
    def __getitem__(self, index):
        try:
            raise OSError("cannot read\\nimage 77.png")  # unreadable
        except OSError:  # as a worker hands it on, without one: to stop it takes five seconds then
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

class Unsized(Samples):
    def __len__(self):
        raise TypeError("length unknown")  # unsized

class Unmovable(nn.Linear):
    def to(self, device):
        raise RuntimeError("stays where it is")  # unmovable

class Large(nn.Linear):
    def to(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")

class Untrainable(nn.Linear):
    def train(self, mode=True):
        raise RuntimeError("no training here")  # untrainable

def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), data(), loss

def meta():
    return nn.Linear(5, 2, device="meta"), data(), loss

def unmovable():
    return Unmovable(5, 2), data(), loss

def large():
    return Large(5, 2), data(), loss

def untrainable():
    return Untrainable(5, 2), data(), loss

def large_at_once():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB")

def state_dict():
    nn.Sequential(nn.Linear(5, 2)).load_state_dict({"x": torch.ones(1)})  # state_dict

def empty():
    raise ValueError("")  # empty

def not_json():
    json.loads("{")  # not_json

def needs(argument):
    return task()

def leaves():
    raise SystemExit("my own exit")

def leaves_at_once():
    sys.exit()

def reads_options():
    argparse.ArgumentParser(prog="mine").parse_args()
    return task()

def needs_options():
    parser = argparse.ArgumentParser(prog="mine")
    parser.add_argument("--lr", required=True)
    parser.parse_args()

large_batch = with_loss(lambda model, batch: raising(torch.OutOfMemoryError("CUDA out of memory.")))
leaves_in_loss = with_loss(lambda model, batch: sys.exit(3))
wrong_signature = with_loss(lambda output, target, weight: output)
torch_loss = with_loss(nn.CrossEntropyLoss())
unsized = with_data(Unsized())
unequal = with_data(Samples())
unreadable = with_data(Unreadable())
ready_batches = with_data(DataLoader(data(), batch_size=None))
splits = with_data({"train": data(), "test": data()})
many_splits = with_data(dict.fromkeys("abcdef"))
by_number = with_data(dict(enumerate(data())))
"""


@pytest.fixture
def script(tmp_path):
    # A folder of this name is not PyTorch.
    path = tmp_path / "torch" / "train.py"
    path.parent.mkdir()
    path.write_text(TASK)
    return path


def assert_refused(result, *matches):
    assert result.code == 2
    for match in matches:
        assert match.replace(" ", "") in result.message.replace(" ", "")
    assert result.message.count("gradient-lars: ") == 1
    assert result.message.endswith(".")
    assert "Traceback" not in result.err
    assert "advise_" not in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lazy", "train.py:lazy returned a model with lazy modules"),
        ("lazy", "run one batch through it in the function first."),
        ("meta", "returned a model on the device meta, whose weights have no values: make it on the CPU."),
        ("unmovable", "train.py, line N: RuntimeError: stays where it is."),
        ("untrainable", "train.py, line N: RuntimeError: no training here."),
        ("large", "does not fit into the memory of cpu: give another `--device`."),
        ("large_at_once", "needs more memory than its device has: make the model smaller, or leave moving it to"),
        ("large_batch", "`--micro-batch`: 4 samples do not fit into the memory of cpu: give fewer, and more"),
        ("unsized", "train.py, line N: TypeError: length unknown."),
        ("unreadable", "`train.py:unreadable` failed at"),
        ("unreadable", "train.py, line N: OSError: cannot read image 77.png."),
        (
            "state_dict",
            "train.py, line N: RuntimeError: Error(s) in loading state_dict for Sequential: Missing key(s)",
        ),
        ("state_dict", 'Unexpected key(s) in state_dict: "x".'),
        ("empty", "train.py, line N: ValueError, without a message."),
        ("not_json", "train.py, line N: JSONDecodeError: Expecting property name"),
        ("needs", "failed in needs(): TypeError: needs() missing 1 required positional argument: 'argument'."),
        ("wrong_signature", "failed in loss_fn(model, batch): TypeError: <lambda>() missing 1 required positional"),
        ("torch_loss", "failed in loss_fn(model, batch): TypeError: cross_entropy_loss(): argument 'input'"),
        ("unequal", "failed in the data: RuntimeError: stack expects each tensor to be equal size"),
        (
            "ready_batches",
            "which yields ready-made batches: give the data set of the single samples, or a loader with a",
        ),
        ("splits", "returned a dict with 'train', 'test' as data: give one data set"),
        ("many_splits", "returned a dict with 'a', 'b', 'c', 'd' as data"),
        ("leaves", "ended the program in leaves() (my own exit): nothing that is called here may exit"),
        ("leaves_at_once", "ended the program in leaves_at_once() (exit code 0)"),
        ("leaves_in_loss", "ended the program in loss_fn(model, batch) (exit code 3)"),
    ],
)
def test_mistakes_in_the_function(cli, script, monkeypatch, name, match):
    monkeypatch.chdir(script.parent)
    lines = [number for number, line in enumerate(TASK.splitlines(), start=1) if line.endswith(f"# {name}")]
    assert_refused(cli("advise", f"train.py:{name}", *QUICK), match.replace("line N", f"line {[*lines, None][0]}"))


def test_a_function_reads_no_options_of_ours(cli, script):
    result = cli("advise", f"{script}:reads_options", *QUICK, "--no-hessian")
    assert result.code == 0, result.err
    assert sys.argv[0] == "gradient-lars"
    result = cli("advise", f"{script}:needs_options", *QUICK)
    assert result.code == 2
    assert "mine: error: the following arguments are required: --lr" in result.message
    assert "ended the program in needs_options() (exit code 2)" in result.message
    assert sys.argv[0] == "gradient-lars"


def test_a_script_that_reads_options_when_it_is_loaded(cli, tmp_path):
    path = tmp_path / "reads.py"
    path.write_text("import argparse\nargparse.ArgumentParser().parse_args()\ndef task():\n    return 1\n")
    assert_refused(cli("advise", f"{path}:task", *QUICK), "returned a int: it must return (model, data, loss_fn)")


def test_samples_by_their_number_in_a_dictionary(cli, script):
    assert cli("advise", f"{script}:by_number", *QUICK, "--no-hessian").code == 0


def test_a_syntax_error_is_told_by_its_line(cli, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("x = 1\ndef task(:\n")
    assert_refused(cli("advise", f"{path}:task"), "wrong.py, line 2: SyntaxError: ")


def test_a_reason_is_cut_at_400_characters():
    text = str(failed("t", "the data", ValueError("x" * 386)))
    assert text == f"`t` failed in the data: ValueError: {'x' * 386}."
    text = str(failed("t", "the data", ValueError("x" * 389)))
    assert text == f"`t` failed in the data: ValueError: {'x' * 388} ..."


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--seed", str(2**63)], f"`--seed` must be at most {2**63 - 1}, got {2**63}: give a smaller whole number."),
        (["--epochs", str(10**400)], "`--epochs` must be at most"),
        (["--overwrite"], "`--overwrite` is of the CSV: add `--out FILE.csv`."),
        (["--device", "foo"], "`--device foo` cannot be used here (PyTorch has no such type of device): give `cpu`"),
        (["--device", "vulkan"], "from the 'Vulkan' backend): give `cpu`, or one that `gradient-lars info` lists."),
        (["--device", "hpu"], "`--device hpu` cannot be used here ("),
    ],
)
def test_mistakes_in_options(cli, arguments, match):
    assert_refused(cli("advise", "--data", "digits", *arguments), match)


def test_the_largest_seed(cli, script):
    assert cli("advise", f"{script}:task", *QUICK, "--no-hessian", "--seed", 2**63 - 1).code == 0


def test_the_csv_says_what_the_proposal_depends_on(cli, script, tmp_path):
    out = tmp_path / "new" / "folder" / "noise.csv"
    options = ["--epochs", "7", "--base-lr", "2.5", "--base-batch", "512", "--no-hessian"]
    result = cli("advise", f"{script}:task", *QUICK, *options, "--out", out)
    assert result.code == 0, result.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for row in rows:
        assert (row["epochs"], row["base_lr"], row["base_batch"], row["hessian"]) == ("7", "2.5", "512", "false")
        assert (row["machine"], row["commit"]) == (processor_name(), source_commit())
        assert row["proposed_steps"] == re.findall(r"total_steps=(\d+)", result.out)[0]
        assert int(row["proposed_steps"]) == 7 * (48 // int(row["proposed_batch"]))


def test_a_file_that_is_there_is_kept(cli, script, tmp_path):
    out = tmp_path / "noise.csv"
    out.write_text("mine\n")
    # The function is gone: nothing is loaded before.
    assert_refused(cli("advise", "gone.py:task", "--out", out), "is there already: add `--overwrite` to replace it, or")
    assert out.read_text() == "mine\n"
    assert cli("advise", f"{script}:task", *QUICK, "--no-hessian", "--out", out, "--overwrite").code == 0
    assert out.read_text().startswith("date,")
