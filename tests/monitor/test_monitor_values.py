"""What a monitor records is what the reference computes, by whatever way the step comes about."""

import math

import lightning
import numpy as np
import pytest
import torch

from gradient_lars import GradientLARS
from gradient_lars.monitor import Monitor, read
from gradient_lars.torch import LARS, add_hook, remove_hook
from lars.expected import lars_step
from monitor.networks import layers, recipe, set_gradients, train
from reference import TOLERANCE, lars
from torch_cases import to_numpy


def update_of(p_norm, g_norm, rate, lr, weight_decay):
    return lr * rate * (g_norm + weight_decay * p_norm) / p_norm


def assert_row(row, *, step, layer, p_norm, g_norm, rate, adapted, lr, weight_decay, dtype="float32"):
    assert (row.step, row.layer, row.adapted) == (step, layer, adapted)
    expected = (p_norm, g_norm, rate, update_of(p_norm, g_norm, rate, lr, weight_decay), lr, weight_decay)
    actual = (row.p_norm, row.g_norm, row.rate, row.update, row.lr, row.weight_decay)
    assert actual == pytest.approx(expected, rel=TOLERANCE[dtype])


def expected_rows(optimizer, named, step):
    rows = []
    for group in optimizer.param_groups:
        for name, param in named:
            if any(param is own for own in group["params"]) and param.grad is not None:
                p, g = (to_numpy(t).astype(np.float64) for t in (param, param.grad))
                found = lars_step(p, g, None, group)
                figures = {"p_norm": found.p_norm, "g_norm": found.g_norm, "rate": found.rate}
                settings = {"lr": float(group["lr"]), "weight_decay": group["weight_decay"]}
                rows.append({"step": step, "layer": name, **figures, "adapted": bool(found.adapted), **settings})
    return rows


PATHS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "chosen": {},
    "kernels": {"fused": True},
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", PATHS)
def test_lars(path, dtype, monkeypatch):
    if path == "kernels":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    named = layers(dtype=getattr(torch, dtype))
    groups = [
        {"params": named[:1], "lr": 2.0},
        {"params": named[1:], "weight_decay": 0.1, "threshold": 2.0, "adapt": None},
    ]
    optimizer = LARS(groups, lr=5.0, weight_decay=0.01, trust_coefficient=0.01, **PATHS[path])
    expected = []
    with Monitor(optimizer, capacity=3) as monitor:
        for step in range(7):
            set_gradients(named, step)
            optimizer.param_groups[0]["lr"] *= 0.9
            expected += expected_rows(optimizer, named, step)
            optimizer.step()
    rows = list(monitor.records())
    assert len(rows) == 21
    for row, figures in zip(rows, expected, strict=True):
        assert_row(row, **figures, dtype=dtype)


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("path", ["loop", "foreach", "fused"])
def test_hook(path, absorb, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    named = layers()
    optimizer = torch.optim.SGD(named, lr=0.3, momentum=0.9, weight_decay=0.05 if absorb else 0.0)
    hook = GradientLARS(threshold=0.5, weight_decay=0.0 if absorb else 0.05)
    handle = add_hook(optimizer, hook, path=path, absorb_weight_decay=absorb)
    expected = []
    with Monitor(handle) as monitor:
        for step in range(3):
            set_gradients(named, step)
            for name, param in named:
                found = lars(to_numpy(param), to_numpy(param.grad), threshold=0.5, weight_decay=0.05)
                expected.append((step, name, found))
            optimizer.step()
    for row, (step, layer, found) in zip(monitor.records(), expected, strict=True):
        figures = {"p_norm": found.p_norm, "g_norm": found.g_norm, "rate": found.rate}
        assert_row(row, step=step, layer=layer, **figures, adapted=True, lr=0.3, weight_decay=0.05)
        assert row.threshold == 0.5


def test_the_update_is_what_the_step_does():
    """Without decay and momentum the recorded update is the exact length of the step."""
    named = layers(dtype=torch.float64)
    optimizer = LARS(named, lr=3.0, momentum=0.0, trust_coefficient=0.01)
    with Monitor(optimizer) as monitor:
        before = [param.detach().clone() for _, param in named]
        train(optimizer, named, 1)
    for row, (_, param), old in zip(monitor.records(), named, before, strict=True):
        moved = float((param.detach() - old).norm() / old.norm())
        assert row.update == pytest.approx(moved, rel=1e-12)


def test_the_update_is_at_most_what_is_recorded():
    named = layers(dtype=torch.float64)
    optimizer = LARS(named, lr=3.0, momentum=0.0, weight_decay=0.2, trust_coefficient=0.01)
    with Monitor(optimizer) as monitor:
        before = [param.detach().clone() for _, param in named]
        train(optimizer, named, 1)
    moved = [float((p.detach() - old).norm() / old.norm()) for (_, p), old in zip(named, before, strict=True)]
    assert all(0.5 * row.update < m < row.update for row, m in zip(monitor.records(), moved, strict=True))


@pytest.mark.parametrize("norm_of", ["decayed", "update"])
def test_the_update_is_exact_for_norms_that_hold_the_decay(norm_of):
    named = layers(dtype=torch.float64)
    momentum = 0.9 if norm_of == "update" else 0.0
    optimizer = LARS(named, lr=3.0, momentum=momentum, weight_decay=0.2, norm_of=norm_of, lr_in_momentum=False)
    with Monitor(optimizer) as monitor:
        for step in range(3):
            before = [param.detach().clone() for _, param in named]
            train(optimizer, named, 1, start=step)
    for row, (_, param), old in zip(list(monitor.records())[-3:], named, before, strict=True):
        assert row.update == pytest.approx(float((param.detach() - old).norm() / old.norm()), rel=1e-12)
        assert row.weight_decay == 0.2


@pytest.mark.parametrize("decay_excluded", [True, False])
def test_the_decay_is_the_layers_own(decay_excluded):
    named = layers()
    optimizer = LARS(named, lr=0.1, weight_decay=0.2, adapt=None, decay_excluded=decay_excluded)
    with Monitor(optimizer) as monitor:
        train(optimizer, named, 1)
    assert [row.weight_decay for row in monitor.records()] == [0.2, 0.2 if decay_excluded else 0.0, 0.2]
    row = list(monitor.records())[1]
    decay = row.weight_decay * row.p_norm
    assert row.update == pytest.approx(0.1 * (row.g_norm + decay) / row.p_norm, rel=1e-6)


def test_layers_come_and_go():
    named = layers()
    optimizer = recipe(named)
    with Monitor(optimizer, capacity=2) as monitor:
        for step, without in enumerate([(2,), (), (0, 2), (0, 1, 2), (1,)]):
            set_gradients(named, step)
            for i in without:
                named[i][1].grad = None
            optimizer.step()
    found = [(row.step, row.layer, row.held_by) for row in monitor.records()]
    assert found == [
        (0, "dense.weight", ""),
        (0, "dense.bias", ""),
        (0, "conv.weight", "no_gradient"),
        (1, "dense.weight", ""),
        (1, "dense.bias", ""),
        (1, "conv.weight", ""),
        (2, "dense.bias", ""),
        (4, "dense.weight", ""),
        (4, "conv.weight", ""),
    ]
    matrix = monitor.records().matrix("rate")
    assert matrix.isnan().tolist() == [
        [False, False, True, False],
        [False, False, False, True],
        [True, False, True, False],
    ]


def test_a_group_is_added():
    named = layers()
    optimizer = recipe(named[:2])
    with Monitor(optimizer) as monitor:
        train(optimizer, named[:2], 1)
        optimizer.add_param_group({"params": named[2:], "lr": 1.0})
        train(optimizer, named, 1, start=1)
    assert [(row.step, row.layer, row.lr) for row in monitor.records()][-1] == (1, "conv.weight", 1.0)
    assert monitor.records().layers == ("dense.weight", "dense.bias", "conv.weight")


@pytest.mark.parametrize("nothing", [False, True])
def test_zero_weights_have_no_relative_update(nothing):
    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = LARS([("zero", param)], lr=1.0)
    with Monitor(optimizer) as monitor:
        param.grad = torch.full((3,), 0.0 if nothing else 1.0)
        optimizer.step()
    (row,) = monitor.records()
    assert (row.p_norm, row.rate, row.adapted, row.held_by) == (0.0, 1.0, False, "threshold")
    assert row.update == (0.0 if nothing else math.inf)


@pytest.mark.parametrize("scaled", [False, True])
def test_closures_and_gradscaler(scaled):
    named = layers()
    optimizer = torch.optim.SGD(named, lr=0.1)
    handle = add_hook(optimizer, GradientLARS())
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=scaled)

    def closure():
        optimizer.zero_grad()
        return sum(param.square().sum() for _, param in named)

    with Monitor(handle) as monitor:
        for _ in range(3):
            norms = [float(param.detach().norm()) for _, param in named]
            if scaled:
                scaler.scale(closure()).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step(lambda: closure().backward())
    rows = list(monitor.records())
    assert [row.step for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # The gradient is twice the weights.
    assert [row.p_norm for row in rows[-3:]] == pytest.approx(norms, rel=1e-5)
    assert [row.g_norm for row in rows] == pytest.approx([2 * row.p_norm for row in rows], rel=1e-5)
    assert [row.rate for row in rows] == pytest.approx([0.5] * 9, rel=1e-5)


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(6, 3)

    def training_step(self, batch, _):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = recipe(self.named_parameters())
        self.monitor = Monitor(optimizer)
        return optimizer


@pytest.mark.filterwarnings("ignore")  # Lightning's own: few workers
def test_lightning(tmp_path):
    data = torch.randn(32, 6, generator=torch.Generator().manual_seed(13))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data), batch_size=8)
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", logger=logger, **quiet)
    module = Module()
    trainer.fit(module, loader)
    assert module.monitor.records().steps == tuple(range(8))
    module.monitor.to_logger(trainer.logger)
    logger.save()
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert "lars/rate/layer.weight" in lines[0].split(",")
    assert len(lines) == 9


class Stepper(torch.optim.SGD):
    """Its step calls the other class's, so that PyTorch runs every step hook twice."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_that_calls_another_counts_once():
    named = layers()
    optimizer = Stepper(named, lr=0.1)
    with Monitor(add_hook(optimizer, GradientLARS())) as monitor:
        train(optimizer, named, 3)
    assert monitor.records().steps == (0, 1, 2)


def test_a_hook_that_was_removed_has_nothing_to_say():
    named = layers()
    optimizer = torch.optim.SGD(named, lr=0.1)
    handle = add_hook(optimizer, GradientLARS())
    with Monitor(handle) as monitor:
        train(optimizer, named, 2)
        remove_hook(optimizer, "GradientLARS")
        train(optimizer, named, 2)
    assert monitor.records().steps == (0, 1)


@pytest.mark.filterwarnings("ignore")  # Dynamo's own
@pytest.mark.parametrize("hooked", [False, True])
def test_compiled_step(hooked):
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        named = layers()
        optimizer = torch.optim.SGD(named, lr=0.1) if hooked else recipe(named)
        monitor = Monitor(add_hook(optimizer, GradientLARS()) if hooked else optimizer)
        step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        for i in range(3):
            set_gradients(named, i)
            step()
        found.append([value for row in monitor.records() for value in (row.step, row.p_norm, row.g_norm, row.rate)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert len(found[1]) == 3 * 3 * 4


def test_tensor_learning_rate_is_that_of_its_step():
    named = layers()
    lr = torch.tensor(8.0)
    optimizer = recipe(named, lr=lr)
    with Monitor(optimizer) as monitor:
        for step in range(3):
            train(optimizer, named, 1, start=step)
            lr.mul_(0.5)
    assert [row.lr for row in monitor.records() if row.layer == "dense.bias"] == [8.0, 4.0, 2.0]


def test_a_file_holds_what_was_recorded(tmp_path):
    named = layers()
    optimizer = recipe(named)
    with Monitor(optimizer, csv=tmp_path / "deep" / "run.csv", capacity=3) as monitor:
        train(optimizer, named, 7)
    monitor.to_csv(tmp_path / "kept.csv")
    assert (tmp_path / "deep" / "run.csv").read_bytes() == (tmp_path / "kept.csv").read_bytes()
    for row, again in zip(monitor.records(), read(tmp_path / "kept.csv"), strict=True):
        for name, value, found in zip(row._fields, row, again, strict=True):
            if name in ("p_norm", "g_norm", "rate"):
                # Nine digits are every float32, to the last bit.
                assert np.float32(found) == np.float32(value)
            else:
                assert found == (pytest.approx(value, rel=1e-8) if isinstance(value, float) else value)


@pytest.mark.parametrize("hooked", [False, True])
def test_settings_of_a_state_that_was_loaded(hooked):
    named = layers()
    optimizer = torch.optim.SGD(named, lr=0.5) if hooked else recipe(named)
    source = add_hook(optimizer, GradientLARS()) if hooked else optimizer
    with Monitor(source) as monitor:
        train(optimizer, named, 1)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.param_groups[0]["lr"] = 0.125
        train(optimizer, named, 1, start=1)
    assert {row.lr for row in monitor.records() if row.step == 1} == {0.125}


@pytest.mark.parametrize(
    ("settings", "rate"),
    [({"zero_gradient_rate": 1.0, "trust_clip": True}, 1.0), ({"zero_gradient_rate": 0.0, "min_rate": 0.5}, 0.0)],
)
def test_no_bound_holds_the_rate_of_a_layer_without_gradient(settings, rate):
    named = layers()
    optimizer = recipe(named, **settings)
    with Monitor(optimizer) as monitor:
        train(optimizer, named, 1, scale=0.0)
    assert {(row.rate, row.held_by) for row in monitor.records()} == {(rate, "")}
