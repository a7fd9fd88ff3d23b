"""Every mistake: one sentence that names the option, exit code 2, and no file."""

import gzip
import importlib.util
import os
import sys

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def nothing_is_trained(monkeypatch):
    """A mistake that is not refused must fail its test at once, and not train the whole comparison first."""

    def fit(*arguments, **options):
        raise AssertionError("a mistake was not refused")

    monkeypatch.setattr("gradient_lars.cli.compare.fit", fit)


def assert_refused(result, folder, before, match):
    assert result.code == 2
    assert match in result.message
    assert result.message.count("gradient-lars: ") == 1
    assert result.message.endswith(".")
    assert "Traceback" not in result.err
    assert result.out == ""
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--data", "cifar"], "`--data` is `cifar`, which is unknown: give `digits`, `fashion-mnist` or the path"),
        (["--data", "gone.npz"], "`--data`: there is no file gone.npz: give the path"),
        (["--data", "fashion-mnist", "--data-dir", "gone"], "`--data-dir`: gone is not a folder"),
        (["--data-dir", "."], "`--data-dir` belongs to `--data fashion-mnist` only"),
        (["--epochs", "0"], "`--epochs` must be at least 1, got 0"),
        (["--seeds", "-2"], "`--seeds` must be at least 1, got -2"),
        (["--weight-decay", "-0.1"], "`--weight-decay` must be >= 0 and finite in float32, got -0.1"),
        (["--weight-decay", "1e40"], "`--weight-decay` must be >= 0 and finite in float32, got 1e+40"),
        (["--weight-decay", "inf"], "`--weight-decay` must be >= 0 and finite in float32, got inf"),
        (["--eps", "nan"], "`--eps` must be >= 0 and finite in float32, got nan"),
        (["--threshold", "-1"], "`--threshold` must be >= 0, got -1"),
        (["--threshold", "nan"], "`--threshold` must be >= 0, got nan"),
        (["--momentum", "1"], "`--momentum` must be in [0, 1), got 1"),
        (["--momentum", "-0.5"], "`--momentum` must be in [0, 1), got -0.5"),
        (["--baseline", "both", "--momentum", "0"], "`--momentum` must be above 0 for Nesterov SGD: raise it, or"),
        (["--batch-sizes", ""], "`--batch-sizes` is an empty list"),
        (["--batch-sizes", "32,-1"], "`--batch-sizes` has the item `-1`: give whole numbers >= 2, or `full`"),
        (["--batch-sizes", "1"], "`--batch-sizes` has the item `1`"),
        (["--batch-sizes", "all"], "`--batch-sizes` has the item `all`"),
        (["--batch-sizes", "2,1025"], "`--batch-sizes` asks for 1025, but the training split has 1024 images"),
        (["--learning-rates", " , "], "`--learning-rates` is an empty list"),
        (["--learning-rates", "sgd:"], "`--learning-rates` is an empty list"),
        (["--learning-rates", "0.1,x"], "`--learning-rates` has the item `x`: give positive numbers"),
        (["--learning-rates", "0.1,-1"], "`--learning-rates` has the item `-1`"),
        (["--learning-rates", "1e300"], "`--learning-rates` has the item `1e300`"),
        (["--learning-rates", "inf"], "`--learning-rates` has the item `inf`"),
        (["--learning-rates", "0.1,0.10"], "`--learning-rates 0.1,0.10` has a value twice"),
        (["--learning-rates", "adam:0.1"], "`--learning-rates` names `adam`: the optimizers are `sgd` and `lars`"),
        (["--learning-rates", "sgd:1,2"], "`--learning-rates` gives 2 rates to sgd and 6 to lars: give all the same"),
        (["--learning-rates", "1", "--learning-rates", "sgd:1"], "`--learning-rates` gives the rates of `sgd` twice"),
        (["--device", "warp"], "`--device warp` cannot be used here"),
        (["--device", "meta"], "`--device meta` cannot be used here"),
        (["--shard", "fsdp1"], "`--shard` is `fsdp1`, which is unknown: give `fsdp2` or `none`"),
        (["--shard", "fsdp2"], "and this is one alone: start them with `torchrun --nproc-per-node 4 -m gradient_lars"),
        (["--baseline", "adam"], "`--baseline` is `adam`, which is unknown: give one of `sgd`, `nesterov`, `both`"),
        (["--learning-rates", "nesterov:1"], "names `nesterov`: the optimizers are `sgd` and `lars`"),
        (["--train-size", "2000"], "`--train-size` is 2000, but the training split has 1024 images: give from 2"),
        (["--train-size", "1"], "`--train-size` is 1, but"),
        (["--tuning-seeds", "0"], "`--tuning-seeds` must be at least 1, got 0"),
        (["--tuning-seeds", "1", "--halving"], "`--halving` gives the better half another seed: give `--tuning-seeds`"),
        (["--network", "vit"], "`--network` must be one of `small`, `medium`, `vgg`, got `vit`"),
        (["--schedule", "step"], "`--schedule` must be one of `linear`, `polynomial`, `cosine`, `tvlars`, got `step`"),
        (["--augment", "crop"], "`--augment` must be one of `none`, `shift`, `shift-flip`, got `crop`"),
        (["--adapt", "some"], "`--adapt` must be one of `all`, `matrices`, got `some`"),
        (["--warm-up", "1"], "`--warm-up` must be in [0, 1), got 1.0: it is the share of the steps"),
        (["--warm-up", "nan"], "`--warm-up` must be in [0, 1), got nan"),
        (["--label-smoothing", "-0.1"], "`--label-smoothing` must be in [0, 1), got -0.1"),
        (["--micro-batch", "1"], "`--micro-batch` must be 0 or at least 2, got 1: batch normalisation needs two"),
        (["--micro-batch", "-4"], "`--micro-batch` must be 0 or at least 2, got -4"),
        (["--resume", "--overwrite"], "`--resume` and `--overwrite` exclude each other"),
        (["--replot", "gone.csv"], "gone.csv cannot be read (No such file or directory)"),
        (["--replot", "x.csv", "--resume"], "`--replot` trains nothing: leave `--resume` and `--overwrite` out"),
        (["--out", "file/sub"], "`--out`: file is a file, not a folder"),
        (["--out", "file"], "`--out`: file is a file, not a folder"),
        (["--replot", "gone.csv", "--out", "file"], "`--out`: file is a file, not a folder"),
    ],
)
def test_mistakes_in_options(cli, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    before = set(tmp_path.rglob("*"))
    assert_refused(cli("compare", *arguments), tmp_path, before, match)


def test_fashion_mnist_that_is_not_there(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gradient_lars.cli.settings._DEBIAN_FASHION_MNIST", tmp_path / "gone")
    assert_refused(
        cli("compare", "--data", "fashion-mnist"), tmp_path, set(), "`--data fashion-mnist` needs `--data-dir DIR`"
    )


@pytest.mark.parametrize(("arguments", "match"), [(["--epochs", "many"], "--epochs"), (["--epoch", "3"], "--epoch")])
def test_mistakes_that_the_parser_finds(cli, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    result = cli("compare", *arguments)
    assert result.code == 2
    assert match in result.err
    assert not list(tmp_path.iterdir())


def nan(x):
    x = x.copy()
    x[3, 2, 1] = np.nan
    x[4, 2, 1] = np.inf
    return x


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("x_train", None, "has no x_train: save the four arrays x_train, y_train, x_test, y_test"),
        ("x_train", nan, "x_train has 2 pixels that are NaN or infinite in float32"),
        ("x_test", lambda x: x.astype(float) + 1e300, "x_test has 1920 pixels that are NaN or infinite in float32"),
        ("x_train", lambda x: x[:, 0], "x_train has the shape (96, 8): it must be (N, height, width) or (N, channels"),
        ("x_test", lambda x: x[:0], "x_test has the shape (0, 8, 8)"),
        (
            "x_train",
            lambda x: np.stack([x] * 3, -1),
            "x_train has the shape (96, 8, 8, 3), channels last, but it must be (N, height, width) or (N, channels, h",
        ),
        ("x_train", lambda x: np.stack([x] * 4, -1), "(96, 8, 8, 4), channels last, but it must be (N, height, width)"),
        ("x_test", lambda x: np.stack([x] * 1, -1), "(30, 8, 8, 1), channels last, but it must be (N, height, width)"),
        ("x_train", lambda x: np.stack([x[:, :3, :3]] * 1, -1), "(96, 3, 3, 1), channels last"),
        ("x_train", lambda x: np.stack([x[:, :5]] * 3, -1), "(96, 5, 8, 3), channels last"),
        ("x_train", lambda x: x.astype(str), "x_train has the type <U32: convert it to numbers"),
        ("x_train", lambda x: x + 1j, "x_train has the type complex64"),
        (
            "x_test",
            lambda x: x[:, :7],
            "x_train have the shape (1, 8, 8) (channels, height, width) and those of x_test",
        ),
        ("x_train", lambda x: x.astype(object), "is not a readable .npz file of plain arrays"),
        ("y_train", lambda y: y[:-1], "y_train has the shape (95,) but x_train has 96 images"),
        ("y_test", lambda y: y[:, None], "y_test has the shape (30, 1) but x_test has 30 images"),
        ("y_train", lambda y: y / 2, "y_train has the type float64: convert the labels to whole numbers"),
        ("y_test", lambda y: y + 5, "y_test has the label 5, y_train has not"),
        ("y_train", lambda y: 0 * y + 1, "has the label 0, y_train has not"),
    ],
)
def test_mistakes_in_a_file_of_arrays(cli, tmp_path, arrays, name, change, match):
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    np.savez(tmp_path / "x.npz", **arrays)
    before = set(tmp_path.rglob("*"))
    result = cli("compare", "--data", tmp_path / "x.npz", "--out", tmp_path / "out")
    assert "`--data`" in result.message
    assert_refused(result, tmp_path, before, match)


@pytest.mark.parametrize(
    ("n_train", "labels", "match"),
    [(2, [0, 1], "x_train has 2 images, too few to split"), (6, [4] * 6, "y_train has only one label, 4")],
)
def test_too_little_data(cli, tmp_path, arrays, n_train, labels, match):
    small = {"x_train": arrays["x_train"][:n_train], "y_train": np.array(labels)}
    small |= {"x_test": arrays["x_test"][:1], "y_test": np.array(labels[:1])}
    np.savez(tmp_path / "x.npz", **small)
    before = set(tmp_path.rglob("*"))
    assert_refused(cli("compare", "--data", tmp_path / "x.npz", "--out", tmp_path / "out"), tmp_path, before, match)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_files_that_are_no_archives(cli, tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    before = set(tmp_path.rglob("*"))
    result = cli("compare", "--data", tmp_path / "x.npz", "--out", tmp_path / "out")
    assert_refused(result, tmp_path, before, "is not a readable .npz file of plain arrays")


def test_single_array_under_the_name_of_an_archive(cli, tmp_path, arrays):
    np.save(tmp_path / "x.npy", arrays["x_train"])
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    before = set(tmp_path.rglob("*"))
    result = cli("compare", "--data", tmp_path / "x.npz", "--out", tmp_path / "out")
    assert_refused(result, tmp_path, before, "is not a readable .npz file of plain arrays")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda path: path.unlink(), "has neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"),
        (lambda path: path.write_bytes(path.read_bytes()[:-12]), "cannot be read (Compressed file ended"),
        (lambda path: path.write_bytes(path.read_bytes()[:12] + bytes(30)), "cannot be read ("),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x0d\1\0\0\0\0")), "is not an IDX file of unsigned bytes"),
        (lambda path: path.write_bytes(b""), "is not an IDX file of unsigned bytes"),
        (lambda path: path.write_bytes(b"\0\0\x08\1\0\0\0\x1e123"), "declares the shape (30,) but holds 3 bytes"),
        (lambda path: path.write_bytes(b"\0\0\x08\1\0\0\0\x02123"), "declares the shape (2,) but holds 3 bytes"),
        (lambda path: path.write_bytes(b"\0\0\x08\3\0\0\0\x1e"), "declares the shape (30, 0, 0) but holds -8 bytes"),
    ],
)
def test_mistakes_in_idx_files(cli, tmp_path, idx_folder, change, match):
    change(idx_folder / "t10k-labels-idx1-ubyte.gz")
    before = set(tmp_path.rglob("*"))
    result = cli("compare", "--data", "fashion-mnist", "--data-dir", idx_folder, "--out", tmp_path / "out")
    assert "`--data-dir`" in result.message
    assert_refused(result, tmp_path, before, match)


def test_folder_without_permission(cli, npz, tmp_path, monkeypatch):
    original = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode & os.W_OK == 0 and original(path, mode))
    before = set(tmp_path.rglob("*"))
    result = cli("compare", "--data", npz, "--out", tmp_path / "out")
    assert_refused(result, tmp_path, before, f"`--out`: no permission to write to {tmp_path}")


def test_folder_that_cannot_be_made(cli, npz, tmp_path, monkeypatch):
    def mkdir(self, *arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    before = set(tmp_path.rglob("*"))
    result = cli("compare", "--data", npz, "--out", tmp_path / "out")
    assert_refused(result, tmp_path, before, "cannot be written to (Read-only file system)")


@pytest.mark.parametrize(
    ("arguments", "package"),
    [
        (["compare"], "torch"),
        (["compare"], "matplotlib"),
        (["compare"], "sklearn"),
        (["compare", "--replot", "gone.csv"], "matplotlib"),
    ],
)
def test_missing_packages_of_compare(cli, tmp_path, monkeypatch, arguments, package):
    monkeypatch.chdir(tmp_path)
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else original(name, *rest)
    )
    match = f"needs `{package}`, not installed here: install with `pip install 'gradient-lars[cli]'`"
    assert_refused(cli(*arguments), tmp_path, set(), match)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_missing_packages_of_the_command_line(cli, monkeypatch, package):
    monkeypatch.delitem(sys.modules, "gradient_lars.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.console", None)
    result = cli("info")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "install it with `pip install 'gradient-lars[cli]'`" in result.err


def test_other_missing_modules_are_errors_of_ours(monkeypatch):
    from gradient_lars.cli import main

    monkeypatch.delitem(sys.modules, "gradient_lars.cli.app", raising=False)
    monkeypatch.setitem(sys.modules, "gradient_lars.cli.settings", None)
    with pytest.raises(ModuleNotFoundError, match=r"gradient_lars\.cli\.settings"):
        main()
