"""Options: what they are read as, and what is refused."""

import pytest

from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.settings import (
    DEFAULT_LEARNING_RATES,
    compared,
    parse_batch_sizes,
    parse_learning_rates,
    resolve_batch_sizes,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, ()), ("32", (32,)), ("32, full,8", (32, "full", 8)), ("full,", ("full",))],
)
def test_batch_sizes_are_read_as_written(text, expected):
    assert parse_batch_sizes(text) == expected


@pytest.mark.parametrize(
    ("sizes", "n_train", "expected"),
    [
        ((), 1024, (64, 256, 512, 1024)),
        ((), 50000, (2048, 8192, 16384, 50000)),
        ((), 9, (2, 4, 9)),
        ((), 3, (3,)),
        (("full", 8, 100, 8), 100, (8, 100)),
    ],
)
def test_batch_sizes_are_ascending_distinct_and_end_at_the_whole_split(sizes, n_train, expected):
    assert resolve_batch_sizes(sizes, n_train) == expected


@pytest.mark.parametrize(
    ("sizes", "n_train", "expected"),
    [((), 1024, (256, 512, 1024)), ((), 1023, (128, 256, 1023)), ((), 100, (100,)), ((100, "full"), 200, (100, 200))],
)
def test_batch_sizes_leave_an_image_for_each_process(sizes, n_train, expected):
    assert resolve_batch_sizes(sizes, n_train, world_size=100) == expected


@pytest.mark.parametrize(("sizes", "n_train"), [((99, 100), 200), ((), 99)])
def test_batches_of_fewer_images_than_processes_are_refused(sizes, n_train):
    with pytest.raises(CommandError, match="a batch of 99 has no image for some of the 100 processes: give a larger"):
        resolve_batch_sizes(sizes, n_train, world_size=100)


def test_default_grids_are_of_one_length_and_span():
    sgd, lars = DEFAULT_LEARNING_RATES["sgd"], DEFAULT_LEARNING_RATES["lars"]
    assert len(sgd) == len(lars) >= 5
    assert sgd[-1] / sgd[0] == pytest.approx(lars[-1] / lars[0])


@pytest.mark.parametrize(
    ("texts", "sgd", "lars"),
    [
        ([], DEFAULT_LEARNING_RATES["sgd"], DEFAULT_LEARNING_RATES["lars"]),
        (["0.3,0.1"], (0.1, 0.3), (0.1, 0.3)),
        (["sgd:1", "lars: 1e-2 "], (1.0,), (0.01,)),
        (["lars:1,2,3,4,5,6"], DEFAULT_LEARNING_RATES["sgd"], (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)),
    ],
)
def test_learning_rates_are_read_as_written_and_sorted(texts, sgd, lars):
    assert parse_learning_rates(texts) == {"sgd": sgd, "lars": lars}


@pytest.mark.parametrize("texts", [["sgd:1", "sgd:2"], ["1,2", "lars:3,4"]])
def test_rates_of_one_optimizer_given_twice_are_refused(texts):
    with pytest.raises(CommandError, match=r"gives the rates of `(sgd|lars)` twice"):
        parse_learning_rates(texts)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [("sgd", ("sgd", "lars")), ("nesterov", ("nesterov", "lars")), ("both", ("sgd", "nesterov", "lars"))],
)
def test_baselines_and_their_learning_rates(baseline, expected):
    assert compared(baseline) == expected
    assert parse_learning_rates(["0.1,0.2"], expected) == dict.fromkeys(expected, (0.1, 0.2))
    assert parse_learning_rates([], expected) == {name: DEFAULT_LEARNING_RATES[name] for name in expected}


def test_three_grids_of_different_lengths_are_refused_with_all_counts():
    with pytest.raises(CommandError, match="gives 6 rates to sgd and 1 to nesterov and 6 to lars: give all the same"):
        parse_learning_rates(["nesterov:1"], compared("both"))
