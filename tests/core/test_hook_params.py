"""What the hook accepts as a parameter, and what it says about the rest."""

import types

import numpy as np
import pytest

from gradient_lars import GradientLARS
from reference import assert_close, lars

P, G = np.array([3.0, 4.0]), np.array([5.0, -12.0])


def plain(**attributes):
    return types.SimpleNamespace(**attributes)


class Slots:
    """A user's own parameter, with slots and properties."""

    __slots__ = ("_grad", "array")

    def __init__(self, array, grad):
        self.array, self._grad = array, grad

    @property
    def grad(self):
        return self._grad


@pytest.mark.parametrize(
    "make",
    [
        lambda: plain(data=P.copy(), grad=G.copy()),
        lambda: plain(array=P.copy(), grad=G.copy()),
        lambda: plain(array=P.copy(), data="not looked at", grad=G.copy()),
        lambda: plain(array=P.copy(), grad=G.copy(), name="w"),
        lambda: Slots(P.copy(), G.copy()),
    ],
)
@pytest.mark.parametrize("rule", [None, object(), "rule"])
def test_anything_with_data_or_array_and_grad(make, rule):
    param = make()
    GradientLARS(weight_decay=0.5)(rule, param)
    assert_close(param.grad, lars(P, G, weight_decay=0.5).grad, "float64")


def test_the_object_itself_may_be_frozen():
    class Parameter(types.SimpleNamespace):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    param = Parameter(data=P.copy(), grad=G.copy())
    GradientLARS()(None, param)
    assert_close(param.grad, lars(P, G).grad, "float64")


def test_nothing_is_touched_without_data_or_gradient():
    class Untouchable:
        def __getattr__(self, name):
            raise RuntimeError(f"{name} was read")

    GradientLARS()(None, plain(data=None, grad=Untouchable()))
    GradientLARS()(None, plain(data=Untouchable(), grad=None))
    GradientLARS()(None, plain(data=None, grad=None))


def test_a_gradient_is_not_read_where_there_is_no_data():
    class Uninitialised:
        data = None

        @property
        def grad(self):
            raise RuntimeError("not cleared yet")

    GradientLARS()(None, Uninitialised())


class JaxLike:
    """An array of a library that we do not know."""

    dtype, shape = np.dtype(np.float32), (2,)


ERRORS = {
    "raw array": (TypeError, r"`param` must have `\.data` \(or `\.array`\) and `\.grad`, got ndarray", P),
    "no gradient attribute": (TypeError, r"must have .* and `\.grad`, got SimpleNamespace", plain(data=P)),
    "no data attribute": (TypeError, r"must have `\.data` .*, got SimpleNamespace", plain(grad=G)),
    "nothing": (TypeError, "must have .*, got NoneType", None),
    "lists": (
        TypeError,
        "must be an array of NumPy, CuPy, ChainerX or PyTorch, got list",
        plain(data=[1.0], grad=[1.0]),
    ),
    "unknown library": (
        TypeError,
        r"got JaxLike\. JAX arrays cannot change in place",
        plain(data=JaxLike(), grad=JaxLike()),
    ),
    "unknown gradient": (
        TypeError,
        "must come from one array library, got ndarray and JaxLike",
        plain(data=P, grad=JaxLike()),
    ),
    "list as gradient": (
        TypeError,
        "must come from one array library, got ndarray and list",
        plain(data=P, grad=[1.0, 2.0]),
    ),
    "weights of integers": (
        TypeError,
        r"`param\.data` must be an array of floating point, got int64 of shape \(2,\)",
        plain(data=P.astype("int64"), grad=G),
    ),
    "gradient of integers": (
        TypeError,
        r"`param\.grad` must be an array of floating point, got int8 of shape \(2,\)",
        plain(data=P, grad=G.astype("int8")),
    ),
    "gradient of truth values": (TypeError, r"got bool of shape", plain(data=P, grad=G > 0)),
    "gradient of objects": (TypeError, r"got object of shape", plain(data=P, grad=G.astype(object))),
    "shapes that would broadcast": (
        ValueError,
        r"`param\.grad` must have the shape of `param\.data`, \(2,\), got \(3, 2\)",
        plain(data=P, grad=np.ones((3, 2))),
    ),
    "shapes of one size": (
        ValueError,
        r"the shape of `param\.data`, \(2,\), got \(2, 1\)",
        plain(data=P, grad=G[:, None]),
    ),
    "real gradient of complex weights": (
        TypeError,
        r"`param\.grad` must be complex as `param\.data` is, got float64",
        plain(data=P + 1j, grad=G),
    ),
    "read-only gradient": (
        ValueError,
        r"`param\.grad` is read-only .*`param\.grad = numpy\.array\(param\.grad\)`",
        plain(data=P, grad=np.broadcast_to(1.0, 2)),
    ),
    "NumPy scalars": (
        ValueError,
        r"`param\.grad` is read-only .*`param\.grad = numpy\.array\(param\.grad\)`",
        plain(data=np.float64(3), grad=np.float64(4)),
    ),
    "named": (
        ValueError,
        r"^`param\.grad` of 'conv/W' must have the shape",
        plain(data=P, grad=np.ones(3), name="conv/W"),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_change_nothing(case):
    error, match, param = ERRORS[case]
    grad = getattr(param, "grad", None)
    before = np.array(grad) if isinstance(grad, np.ndarray) else None
    with pytest.raises(error, match=match):
        GradientLARS(weight_decay=0.5)(None, param)
    if before is not None:
        np.testing.assert_array_equal(grad, before)


def test_the_remedy_for_a_numpy_scalar_works():
    param = plain(data=np.float64(3), grad=np.float64(4))
    param.grad = np.array(param.grad)
    GradientLARS()(None, param)
    assert_close(param.grad, lars(3.0, 4.0).grad, "float64")
