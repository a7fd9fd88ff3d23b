"""``param_groups``: each trained parameter once, by module and name, with the user's rules and a table of reasons."""

import re

import pytest
import torch
from torch import distributed, nn

from gradient_lars.torch import EXEMPT, LARS, param_groups
from gradient_lars.torch.param_groups import param_groups as from_module
from lars.grouped import DECAYED, SPARED, assert_complete, settings_by_name


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, bias=False), nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GroupNorm(1, channels))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, bias=False), nn.SyncBatchNorm(4)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.fc = nn.Linear(4, 10)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(11, 8)
        self.position = nn.Parameter(torch.zeros(5, 8))
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token.weight


def test_resnet():
    groups = param_groups(ResNet(), 0.125)
    found = settings_by_name(groups)
    assert [{key: group[key] for key in DECAYED} for group in groups] == [DECAYED, SPARED]
    decayed = {name for name, settings in found.items() if settings == DECAYED}
    assert decayed == {
        "conv1.weight",
        "fc.weight",
        *(f"layer1.{i}.{name}.weight" for i in (0, 1) for name in ("conv1", "conv2", "downsample.0")),
    }
    assert all(found[name] == SPARED for name in found.keys() - decayed)


@pytest.mark.parametrize("make", [ResNet, Transformer])
def test_nothing_twice_and_nothing_forgotten(make):
    model = make()
    assert_complete(model, param_groups(model, 0.125))
    next(model.parameters()).requires_grad_(False)
    assert_complete(model, param_groups(model, 0.125))


def test_transformer_with_a_tied_embedding():
    model = Transformer()
    groups = param_groups(model, 0.125)
    found = settings_by_name(groups)
    assert "head.weight" not in found
    spared = {name for name, settings in found.items() if settings == SPARED}
    assert spared == {
        "norm.weight",
        *(
            f"layers.layers.{i}.{norm}.{end}"
            for i in (0, 1)
            for norm in ("norm1", "norm2")
            for end in ("weight", "bias")
        ),
        *(
            f"layers.layers.{i}.{linear}.bias"
            for i in (0, 1)
            for linear in ("linear1", "linear2", "self_attn.out_proj")
        ),
        *(f"layers.layers.{i}.self_attn.in_proj_bias" for i in (0, 1)),
    }
    assert {found[name]["weight_decay"] for name in found.keys() - spared} == {0.125}
    assert "embedding: Embedding, tied to head.weight" in str(groups)


def test_tied_parameters_that_would_differ_need_a_rule_for_both():
    with pytest.raises(
        ValueError,
        match=r"ties 'token.weight' \(embedding: Embedding\) to 'head.weight' \(weight of Linear\).*fits both",
    ):
        param_groups(Transformer(), 0.125, embedding=EXEMPT)
    with pytest.raises(ValueError, match="Add a rule that fits both names"):
        param_groups(Transformer(), 0.125, rules=[("head.*", {"weight_decay": 0.5})])
    rules = [(re.compile(r"^(token|head)\."), EXEMPT)]
    assert settings_by_name(param_groups(Transformer(), 0.125, embedding=EXEMPT, rules=rules))["token.weight"] == SPARED


def test_a_shared_module_counts_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    groups = param_groups(model, 0.125)
    assert_complete(model, groups)
    assert [decision.other_names for decision in groups.decisions] == [["2.weight"], ["2.bias"]]


def _third_party(name, parameters):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            for key, shape in parameters.items():
                setattr(self, key, nn.Parameter(torch.ones(shape)))

    Module.__name__ = name
    return Module()


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        (nn.BatchNorm1d(3), {"weight", "bias"}),
        (nn.BatchNorm3d(3), {"weight", "bias"}),
        (nn.InstanceNorm2d(3, affine=True), {"weight", "bias"}),
        (nn.LayerNorm((3, 4)), {"weight", "bias"}),
        (nn.GroupNorm(1, 3), {"weight", "bias"}),
        (nn.RMSNorm(3), {"weight"}),
        (_third_party("LlamaRMSNorm", {"scale": 3}), {"scale"}),
        (_third_party("NormalizedLinear", {"weight": (3, 3), "gain": 3}), {"gain"}),
        (_third_party("Scale", {"gamma": 3}), set()),
        (_third_party("Mixed", {"bias": 3, "rel_bias_table": (3, 3), "unbiased": 3}), {"bias", "rel_bias_table"}),
        (nn.LSTM(2, 3), {"bias_ih_l0", "bias_hh_l0"}),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}),
        (nn.Embedding(3, 3), set()),
        (nn.ParameterList([torch.ones(3), torch.ones(2, 2)]), set()),
        (nn.ParameterDict({"weight": torch.ones(3), "bias": torch.ones(3)}), {"bias"}),
        (
            nn.ModuleDict({"biases": nn.ParameterList([torch.ones(3)]), "w": nn.ParameterList([torch.ones(3)])}),
            {"biases.0"},
        ),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), {"bias"}),
        (
            nn.utils.parametrize.register_parametrization(nn.Linear(3, 3), "bias", nn.Identity()),
            {"parametrizations.bias.original"},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_is_spared(module, spared):
    groups = param_groups(module, 0.125)
    assert_complete(module, groups)
    assert {name for name, settings in settings_by_name(groups).items() if settings == SPARED} == spared
    # With nothing excepted there is one group, of everything.
    (everything,) = param_groups(module, 0.125, norm=None, bias=None)
    assert {key: everything[key] for key in DECAYED} == DECAYED


def test_kinds_may_have_settings_of_their_own():
    model = nn.Sequential(nn.EmbeddingBag(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    groups = param_groups(
        model, 0.125, norm={"weight_decay": 0.5}, bias={"adapt": None, "lr": 0.25}, embedding={"adapt": False}
    )
    assert settings_by_name(groups) == {
        "0.weight": {"weight_decay": 0.125, "adapt": False},
        "1.weight": DECAYED,
        "1.bias": {"weight_decay": 0.125, "adapt": None, "lr": 0.25},
        "2.weight": {"weight_decay": 0.5, "adapt": True},
        "2.bias": {"weight_decay": 0.5, "adapt": True},
    }


def test_other_arguments_that_are_refused():
    for message, error, call in [
        ("`module` must be a torch.nn.Module, got list", TypeError, lambda: param_groups([torch.ones(2)], 0.1)),
        ("`weight_decay` must be >= 0, got -0.1", ValueError, lambda: param_groups(nn.Linear(2, 2), -0.1)),
        (
            "`norm` must be a dict of settings or None, got True",
            TypeError,
            lambda: param_groups(ResNet(), 0.1, norm=True),
        ),
        ("`dacay` is no setting", ValueError, lambda: param_groups(ResNet(), 0.1, bias={"dacay": 0.0})),
        ("no parameter that is trained. Set `requires_grad`", ValueError, lambda: param_groups(nn.ReLU(), 0.1)),
        (
            "no parameter that is trained",
            ValueError,
            lambda: param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1),
        ),
        (
            "`module` holds 'weight', whose shape is not known yet",
            ValueError,
            lambda: param_groups(nn.LazyLinear(2), 0.1),
        ),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_a_module_that_lists_parameters_of_its_own():
    class Hiding(nn.Linear):
        def named_parameters(self, *args, **kwargs):
            return [item for item in super().named_parameters(*args, **kwargs) if item[0] != "bias"]

    class Adding(nn.Linear):
        extra = nn.Parameter(torch.ones(2))

        def named_parameters(self, *args, **kwargs):
            return [*super().named_parameters(*args, **kwargs), ("extra", self.extra)]

    for module, name in ((Hiding(2, 2), "bias"), (Adding(2, 2), "extra")):
        with pytest.raises(RuntimeError, match=f"lists other parameters than its submodules hold: '{name}'"):
            param_groups(module, 0.1)


def test_frozen_parameters_are_in_the_table_only_and_keep_rules_valid():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = param_groups(model, 0.125, rules=[("0.*", {"lr": 0.5})])
    assert_complete(model, groups)
    assert str(groups).splitlines() == [
        "name      shape   group  weight_decay  adapt  reason",
        "0.weight  (3, 2)  -      -             -      frozen",
        "0.bias    (3,)    -      -             -      frozen",
        "1.weight  (2, 3)  0      0.125         True   weight of Linear",
        "1.bias    (2,)    1      0.0           False  bias of Linear",
    ]


@pytest.mark.parametrize("make", [LARS, lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9)])
def test_optimizers_take_the_groups_and_know_the_names(make):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    groups = param_groups(model, 0.125)
    optimizer = make(groups, 0.5)
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0.0]
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["0.weight", "3.weight"],
        ["0.bias", "1.weight", "1.bias", "3.bias"],
    ]
    if isinstance(optimizer, LARS):
        adapted = {rate.name: rate.adapted for rate in optimizer.rates()}
        assert {name for name, value in adapted.items() if value} == {"0.weight", "3.weight"}


def test_sharded_modules_are_decided_as_whole_ones(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    make = lambda: nn.Sequential(nn.Conv1d(2, 2, 1), nn.LayerNorm(2), nn.BatchNorm1d(2), nn.Embedding(3, 2))  # noqa: E731
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        sharded = make()
        for layer in sharded:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        groups = param_groups(sharded, 0.125)
        assert_complete(sharded, groups)
        assert settings_by_name(groups) == settings_by_name(param_groups(make(), 0.125))
    finally:
        distributed.destroy_process_group()


def test_the_public_name_is_the_function():
    assert param_groups is from_module
