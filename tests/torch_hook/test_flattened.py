"""DeepSpeed's ZeRO puts flat partitions into an optimizer's groups: refused in one sentence, and nothing else is.

DeepSpeed needs a compiler and a GPU. What stands in for it here does to the groups what its sources do:
runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/bf16_optimizer.py, runtime/fp16/fused_optimizer.py.
"""

import sys
import types

import pytest
import torch
from torch._utils import _flatten_dense_tensors

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from gradient_lars.torch._flattened import MadeWith

REPLACED = r"`optimizer` holds in group {group} 1 vector in place of the {made} parameters? that it was made with, as"
OUT = r"the layers, and so their norms, are gone\. Shard with FSDP2"


def _model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


def _lars(groups):
    return LARS(groups, lr=0.5)


def _hook(groups):
    optimizer = torch.optim.SGD(groups, lr=0.5, momentum=0.9)
    add_hook(optimizer, GradientLARS())
    return optimizer


def _one_group(model):
    return model.named_parameters()


def _two_groups(model):
    return [{"params": [p for p in model.parameters() if p.dim() == d]} for d in (2, 1)]


def _zero_1_and_2(optimizer, ranks):
    """Each group becomes the float32 copy of this rank's part, padded to a multiple of the ranks."""
    for group in optimizer.param_groups:
        flat = _flatten_dense_tensors([p.detach() for p in group["params"]])
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (2 * ranks)))
        part = flat.chunk(ranks)[0].detach().clone().float()
        part.requires_grad = True
        group["params"] = [part]
    return optimizer.param_groups


def _zero_3(optimizer, ranks):
    """As above and marked; the groups are empty, and get their part for the time of a step."""
    parts = []
    for i, group in enumerate(_zero_1_and_2(optimizer, ranks)):
        parts += group["params"]
        parts[-1].ds_id = f"{i}_{i + 3}"
        group["params"] = []
    optimizer.param_groups[0]["params"] = [parts[0]]
    return optimizer.param_groups


def _set_gradients(optimizer):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.ones_like(param)
    return [(param, param.detach().clone()) for param in params]


def _refused(optimizer, message):
    before = _set_gradients(optimizer)
    states = len(optimizer.state)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert len(optimizer.state) == states
    for param, values in before:
        assert torch.equal(param, values)
        assert torch.equal(param.grad, torch.ones_like(param))


MAKE = pytest.mark.parametrize("make", [_lars, _hook])


@MAKE
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_flat_partitions(make, trained, ranks):
    optimizer = make(_one_group(_model()))
    if trained:
        _set_gradients(optimizer)
        optimizer.step()
    _zero_1_and_2(optimizer, ranks)
    _refused(optimizer, REPLACED.format(group=0, made=4) + ".*" + OUT)


@MAKE
def test_a_partition_as_large_as_one_of_its_layers(make):
    # Biases of 3 and 2 entries, padded to 8: four ranks get as many as the second one has.
    optimizer = make([{"params": [p for p in _model().parameters() if p.dim() == 1]}])
    _zero_1_and_2(optimizer, 4)
    assert optimizer.param_groups[0]["params"][0].shape == (2,)
    _refused(optimizer, REPLACED.format(group=0, made=2))


@MAKE
def test_one_layer_in_pieces(make):
    optimizer = make([_model()[0].weight])
    _zero_1_and_2(optimizer, 2)
    _refused(optimizer, REPLACED.format(group=0, made=1))


@MAKE
@pytest.mark.parametrize("trained", [False, True])
def test_zero_3(make, trained):
    optimizer = make(_two_groups(_model()))
    if trained:
        _set_gradients(optimizer)
        optimizer.step()
    _zero_3(optimizer, 2)
    optimizer.param_groups[1]["params"] = []
    _refused(optimizer, "`optimizer` holds in group 0 1 vector|which DeepSpeed's ZeRO-3 has partitioned: " + OUT)


@MAKE
def test_parameters_made_under_zero_init(make):
    model = _model()
    for i, param in enumerate(model.parameters()):
        param.ds_id, param.ds_shape, param.ds_tensor = i, param.shape, param.detach().flatten()[:2]
        param.data = torch.empty(0)
    with pytest.raises(ValueError, match="holds '0.weight', which DeepSpeed's ZeRO-3 has partitioned: " + OUT):
        make(model.named_parameters())


@pytest.fixture
def deepspeed(monkeypatch):
    """A DeepSpeed that is imported, and initialised if `.started` is set."""
    comm = types.ModuleType("deepspeed.comm")
    comm.started = True
    comm.is_initialized = lambda: comm.started
    monkeypatch.setitem(sys.modules, "deepspeed.comm", comm)
    return comm


def test_a_hook_that_comes_later(deepspeed):
    optimizer = torch.optim.SGD(_one_group(_model()), lr=0.5)
    _zero_1_and_2(optimizer, 2)
    with pytest.raises(ValueError, match="`optimizer` holds in group 0 a vector that DeepSpeed has made: " + OUT):
        add_hook(optimizer, GradientLARS())
    # Other packages import it where nobody uses it.
    deepspeed.started = False
    add_hook(optimizer, GradientLARS())


@MAKE
def test_an_optimizer_beside_deepspeed(make, deepspeed):
    optimizer = make(_one_group(_model()))
    _set_gradients(optimizer)
    optimizer.step()


@MAKE
def test_parameters_that_replace_others_are_no_partitions(make):
    model = _model()
    optimizer = make(_one_group(model))
    _set_gradients(optimizer)
    optimizer.step()
    group = optimizer.param_groups[0]
    replacements = (
        # Parameters of other shapes, one vector among them.
        [torch.nn.Parameter(torch.ones(20))],
        # Copies of all layers, as the wrappers make that keep float32 copies layer by layer.
        [p.detach().clone().requires_grad_() for p in model.parameters()],
        # A tensor that is none of a module, but no vector.
        [torch.ones(5, 4, requires_grad=True)],
        list(model.parameters())[:1],
        [],
    )
    for params in replacements:
        group["params"] = params
        group["param_names"] = [f"layer{i}" for i in range(len(params))]
        _set_gradients(optimizer)
        optimizer.step()


@pytest.mark.parametrize("gone", [0, 1])
def test_a_partition_where_a_layer_was_in_memory(gone):
    """An object that is gone gives its id to another one."""
    made_with, layers = MadeWith(), [torch.nn.Parameter(torch.ones(4, 3)), torch.ones(3)]
    made_with.check([{"params": layers}])
    place = id(layers.pop(gone))
    others = [torch.ones(6)]
    while len(others) < 1000 and id(others[-1]) != place:
        others.append(torch.ones(6))
    if id(others[-1]) != place:
        pytest.skip("Python has put nothing else there")
    with pytest.raises(ValueError, match=REPLACED.format(group=0, made=2)):
        made_with.check([{"params": [others[-1]]}])


@MAKE
def test_parameters_may_be_swapped(make):
    """As ``nn.Module.to`` does if it is told to: PyTorch refuses where somebody holds a weak reference."""
    model = _model()
    optimizer = make(_one_group(model))
    for _ in range(2):
        _set_gradients(optimizer)
        optimizer.step()
    optimizer.zero_grad()
    torch.utils.swap_tensors(model[0].weight, torch.nn.Parameter(torch.ones(3, 4)))
    _set_gradients(optimizer)
    optimizer.step()


@MAKE
def test_vectors_of_ones_own_are_layers(make):
    optimizer = make([torch.ones(3, requires_grad=True)])
    for params in ([torch.ones(5, requires_grad=True)], [torch.ones(2, requires_grad=True) for _ in range(2)]):
        _set_gradients(optimizer)
        optimizer.step()
        optimizer.param_groups[0]["params"] = params
    optimizer.add_param_group({"params": [torch.ones(7, requires_grad=True)]})
    _set_gradients(optimizer)
    optimizer.step()


@MAKE
def test_groups_that_come_and_go(make):
    vector = torch.ones(6, requires_grad=True)
    optimizer = make([{"params": _model().parameters()}, {"params": [vector]}])
    _set_gradients(optimizer)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    _set_gradients(optimizer)
    optimizer.step()
    # The vector now stands where the module's parameters stood.
    del optimizer.param_groups[0]
    optimizer.step()
    assert torch.isfinite(vector).all()
