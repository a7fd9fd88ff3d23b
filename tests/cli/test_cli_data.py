"""Reading, checking and splitting data sets."""

import numpy as np
import pytest

from gradient_lars.cli.data import load, stratified
from gradient_lars.cli.idx import read_idx


def images_of(dataset):
    return {name: {image.tobytes() for image in getattr(dataset, name).x} for name in ("train", "val", "test")}


def test_digits_is_split_into_disjoint_parts_with_equal_shares_of_each_class():
    data = load("digits", None)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1024, 300, 473]
    assert data.n_classes == 10
    images = images_of(data)
    assert len(images["train"] | images["val"] | images["test"]) == 1797  # no image of digits occurs twice
    for part in (data.train, data.val, data.test):
        shares = np.bincount(part.y) / len(part)
        np.testing.assert_allclose(shares, 0.1, atol=0.005)


def test_images_are_standardised_with_the_training_split_alone(npz, arrays):
    data = load(str(npz), None)
    assert data.train.x.dtype == np.float32
    assert data.train.x.shape[1:] == (1, 8, 8)
    assert data.train.x.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
    assert data.train.x.std(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    # The two constants that map test to standardised test are those of the training split.
    raw = arrays["x_test"].astype(np.float64)
    scale, shift = np.polyfit(data.test.x.ravel(), raw.ravel(), 1)
    _, rest = stratified(arrays["y_train"], 16)
    assert (scale, shift) == pytest.approx((arrays["x_train"][rest].std(), arrays["x_train"][rest].mean()), rel=1e-5)


def test_channels_are_standardised_each_and_constant_ones_become_zero(tmp_path, arrays):
    for part in ("train", "test"):
        x = arrays[f"x_{part}"]
        arrays[f"x_{part}"] = np.stack([x, 1000 * x, np.full_like(x, 5)], 1)
    np.savez(tmp_path / "rgb.npz", **arrays)
    train = load(str(tmp_path / "rgb.npz"), None).train.x
    np.testing.assert_allclose(train.std((0, 2, 3)), [1, 1, 0], atol=1e-5)
    assert not train[:, 2].any()


def test_labels_may_be_any_whole_numbers(tmp_path, arrays, npz):
    plain = load(str(npz), None)
    np.savez(
        tmp_path / "other.npz", **{**arrays, "y_train": arrays["y_train"] * 7 - 3, "y_test": arrays["y_test"] * 7 - 3}
    )
    other = load(str(tmp_path / "other.npz"), None)
    np.testing.assert_array_equal(other.train.y, plain.train.y)
    np.testing.assert_array_equal(other.test.y, plain.test.y)
    np.testing.assert_array_equal(other.test.y, arrays["y_test"])
    assert other.n_classes == 3
    assert other.digest != plain.digest


def test_name_of_a_file_has_no_folder_and_equal_arrays_give_equal_digests(tmp_path, arrays, npz):
    (tmp_path / "sub").mkdir()
    np.savez_compressed(tmp_path / "sub" / "again.npz", **arrays)
    again = load(str(tmp_path / "sub" / "again.npz"), None)
    assert again.name == "again.npz"
    assert again.digest == load(str(npz), None).digest


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 5, 4), (3, 3, 3), (4, 4, 4), (1, 8, 1), (2, 2, 4), (8, 8, 5)])
def test_channels_before_the_height_are_taken_as_they_are(tmp_path, arrays, shape):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        arrays[f"x_{part}"] = rng.normal(size=(len(arrays[f"y_{part}"]), *shape))
    np.savez(tmp_path / "x.npz", **arrays)
    assert load(str(tmp_path / "x.npz"), None).train.x.shape[1:] == shape


@pytest.mark.parametrize(
    ("counts", "size", "expected"), [((5, 3, 2), 5, (3, 1, 1)), ((1, 9), 3, (0, 3)), ((4,), 4, (4,))]
)
def test_stratified_draws_largest_remainders(counts, size, expected):
    y = np.repeat(np.arange(len(counts)), counts)
    chosen, rest = stratified(y, size)
    assert tuple(np.bincount(y[chosen], minlength=len(counts))) == expected
    np.testing.assert_array_equal(np.sort(np.concatenate([chosen, rest])), np.arange(len(y)))


def test_idx_is_read_compressed_or_not(idx_folder, arrays):
    for name, file in (("x_train", "train-images-idx3-ubyte.gz"), ("y_train", "train-labels-idx1-ubyte")):
        np.testing.assert_array_equal(read_idx(idx_folder / file), arrays[name].astype(np.uint8))


def test_fashion_mnist_takes_a_sixth_for_validation_and_its_own_test_split(idx_folder):
    data = load("fashion-mnist", idx_folder)
    assert (data.name, data.n_classes) == ("fashion-mnist", 3)
    assert [len(part) for part in (data.train, data.val, data.test)] == [80, 16, 30]
    images = images_of(data)
    assert not images["val"] & (images["train"] | images["test"])


def test_train_size_keeps_the_same_share_of_each_class_and_the_other_splits(tmp_path, arrays):
    order = np.argsort(arrays["y_train"], kind="stable")  # so that the first images are all of one class
    path = tmp_path / "sorted.npz"
    np.savez(path, **{**arrays, "x_train": arrays["x_train"][order], "y_train": arrays["y_train"][order]})
    whole, part = load(str(path), None), load(str(path), None, 30)
    assert [len(split) for split in (part.train, part.val, part.test)] == [30, 16, 30]
    assert np.bincount(part.train.y).tolist() == [10, 10, 10]
    np.testing.assert_array_equal(part.val.y, whole.val.y)
    np.testing.assert_array_equal(part.test.y, whole.test.y)
    assert part.digest == whole.digest
    assert part.train.x.mean(dtype=np.float64) == pytest.approx(0, abs=1e-6)
