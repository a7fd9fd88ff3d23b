"""The comparison helpers can fail, and the reference is right where it can be worked out by hand."""

import numpy as np
import pytest

from reference import TOLERANCE, assert_close, lars


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_value_beyond_the_tolerance_fails(dtype):
    expected = np.array([1.0, -4.0])
    assert_close(expected * (1 + 0.9 * TOLERANCE[dtype]), expected, dtype)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(expected * (1 + 1.1 * TOLERANCE[dtype]), expected, dtype)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(expected - 4.4 * TOLERANCE[dtype], expected, f"torch.{dtype}")


def test_the_tolerance_can_be_widened():
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(1 + 5e-12, np.array(1.0), "float64")
    assert_close(1 + 5e-12, np.array(1.0), "float64", factor=10)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [(np.nan, 1.0), (1.0, np.nan), (np.nan, np.nan), (np.inf, 1.0), (1.0, np.inf), (np.inf, np.inf), (1e-300, 0.0)],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
def test_not_a_number_and_not_quite_zero_fail(actual, expected):
    actual, expected = np.array([2.0, actual]), np.array([2.0 if expected else 0.0, expected])
    if not expected.any():
        actual[0] = 0.0
    with pytest.raises(AssertionError, match="differs by|not finite"):
        assert_close(actual, expected, "float32")


@pytest.mark.parametrize(
    ("actual", "expected"), [((2,), (3,)), ((2,), (1, 2)), ((), (1,)), ((0,), (0, 1)), ((0,), (2,))]
)
def test_another_shape_fails(actual, expected):
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.ones(actual), np.ones(expected), "float64")


def test_a_complex_part_is_compared():
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(np.array([1 + 1j]), np.array([1 - 1j]), "complex128")


def test_equal_arrays_and_empty_ones_pass():
    assert_close(np.zeros(3), np.zeros(3), "float64")
    assert_close(np.zeros((2, 0)), np.zeros((2, 0)), "float64")


def test_an_unknown_type_is_an_error():
    with pytest.raises(KeyError, match="int8"):
        assert_close(np.ones(1), np.ones(1), "int8")


@pytest.mark.parametrize(
    ("settings", "rate", "grad"),
    [
        ({"eps": 0.0}, 0.5, [3.0, -4.0]),
        ({"eps": 15.0}, 0.2, [1.2, -1.6]),
        ({"weight_decay": 3.0, "eps": 0.0}, 0.2, [3.0, 0.8]),
        ({"weight_decay": 3.0, "threshold": 5.0}, 1.0, [15.0, 4.0]),
        ({"weight_decay": 3.0, "threshold": 4.9375, "eps": 0.0}, 0.2, [3.0, 0.8]),
    ],
)
def test_by_hand(settings, rate, grad):
    layer = lars([3.0, 4.0], [6.0, -8.0], **settings)
    assert (layer.p_norm, layer.g_norm) == (5.0, 10.0)
    assert_close(layer.rate, rate, "float64")
    assert_close(layer.grad, np.array(grad), "float64")
