"""The real Lightning with `GradientLARSCallback`, beside a training in NumPy and float64."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision

from gradient_lars import GradientLARS
from gradient_lars.integrations.lightning import GradientLARSCallback
from gradient_lars.torch import LARS, add_hook
from integrations.plain import LR, MOMENTUM, assert_differ, assert_equal, batches, linear, plain, tensors

# Lightning's own: few workers, no logger, a checkpoint folder that is not empty; `torch.jit`, which it uses, is old.
pytestmark = pytest.mark.filterwarnings("ignore")

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Module(lightning.LightningModule):
    def __init__(self, optimizer=torch.optim.SGD, names=True, dtype=torch.float64, **settings):
        super().__init__()
        self.layer = linear(dtype)
        self.make, self.names, self.settings = optimizer, names, {"lr": LR, "momentum": MOMENTUM, **settings}

    def loss(self, batch):
        return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

    def training_step(self, batch, _):
        return self.loss(batch)

    def configure_optimizers(self):
        params = self.layer.named_parameters() if self.names else self.layer.parameters()
        return self.make(params, **self.settings)


class Manual(Module):
    """Accumulates two batches, and clips what LARS is given if there is a bound."""

    def __init__(self, clip=None, **settings):
        super().__init__(**settings)
        self.automatic_optimization = False
        self.clip = clip

    def training_step(self, batch, i):
        self.manual_backward(self.loss(batch) / 2)
        if i % 2:
            optimizer = self.optimizers()
            if self.clip:
                self.clip_gradients(optimizer, self.clip, "norm")
            optimizer.step()
            optimizer.zero_grad()


def fit(module, callback, tmp_path, *, count=6, dtype=torch.float64, epochs=1, ckpt=None, **options):
    loader = torch.utils.data.DataLoader(tensors(batches(count), dtype), batch_size=4)
    options = {"enable_checkpointing": False, "callbacks": [callback], **QUIET, **options}
    trainer = lightning.Trainer(max_epochs=epochs, default_root_dir=tmp_path, **options)
    trainer.fit(module, loader, ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("names", [True, False])
def test_automatic(tmp_path, names):
    module, reference = Module(names=names), plain(weight_decay=0.01)
    callback = GradientLARSCallback(GradientLARS(weight_decay=0.01))
    fit(module, callback, tmp_path)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(module.layer, reference)
    rates = {rate.name: rate.rate for rate in callback.handles[0].rates()}
    expected = reference.rates if names else dict(zip(rates, reference.rates.values(), strict=True))
    assert rates == pytest.approx(expected, rel=1e-9)


def test_accumulated_batches_are_one_step(tmp_path):
    module, reference = Module(), plain()
    fit(module, GradientLARSCallback(GradientLARS()), tmp_path, accumulate_grad_batches=3)
    data = batches(6)
    reference.step(*data[:3])
    reference.step(*data[3:])
    assert_equal(module.layer, reference)


def test_the_last_accumulation_may_be_shorter(tmp_path):
    module, reference = Module(), plain()
    fit(module, GradientLARSCallback(GradientLARS()), tmp_path, count=3, accumulate_grad_batches=2)
    data = batches(3)
    reference.step(*data[:2])
    # Lightning divides by 2 here as well; with a threshold below its norm and no decay LARS does not care.
    reference.step(*data[2:])
    assert_equal(module.layer, reference)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_the_trainer_clips_before_the_hook(tmp_path, weight_decay):
    module = Module()
    callback = GradientLARSCallback(GradientLARS(weight_decay=weight_decay))
    fit(module, callback, tmp_path, gradient_clip_val=0.1)
    clipped, after = plain(weight_decay=weight_decay, clip=0.1), plain(weight_decay=weight_decay, clip_after=0.1)
    unclipped = plain(weight_decay=weight_decay)
    for batch in batches(6):
        for reference in (clipped, after, unclipped):
            reference.step(batch)
    assert_equal(module.layer, clipped)
    assert_differ(clipped, after)
    if weight_decay:
        assert_differ(clipped, unclipped)
    else:  # the clipping cancels in the rate, but for eps
        assert_equal(module.layer, unclipped, factor=1e5)


def test_the_trainer_clips_before_the_optimizer_lars(tmp_path):
    module = Module(LARS, trust_coefficient=0.5, weight_decay=0.5)
    fit(module, GradientLARSCallback(None, monitor=Recorder), tmp_path, gradient_clip_val=0.1)
    clipped, unclipped = (plain(trust=0.5, weight_decay=0.5, clip=clip) for clip in (0.1, None))
    for batch in batches(6):
        clipped.step(batch)
        unclipped.step(batch)
    assert_equal(module.layer, clipped)
    assert_differ(clipped, unclipped)


def clip_after(optimizer):
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)


class ClippedAfter(Module):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        add_hook(optimizer, GradientLARS())
        add_hook(optimizer, clip_after)
        return optimizer


def test_a_second_hook_clips_after_lars(tmp_path):
    module, reference = ClippedAfter(), plain(clip_after=0.1)
    fit(module, Callback(), tmp_path)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(module.layer, reference)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_manual(tmp_path, clip):
    module, reference = Manual(clip), plain(clip=clip, weight_decay=0.5)
    fit(module, GradientLARSCallback(GradientLARS(weight_decay=0.5)), tmp_path)
    data = batches(6)
    for i in (0, 2, 4):
        reference.step(*data[i : i + 2])
    assert_equal(module.layer, reference)


def test_absorbed_decay_of_the_optimizer(tmp_path):
    module, reference = Module(weight_decay=0.1), plain(weight_decay=0.1)
    trainer = fit(module, GradientLARSCallback(GradientLARS(), absorb_weight_decay=True), tmp_path)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(module.layer, reference)
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("names", [True, False])
def test_params_chosen_by_name(tmp_path, names):
    module, reference = Module(names=names), plain(lars_names=("weight",))
    callback = GradientLARSCallback(GradientLARS(), params=lambda name, _: name.endswith("weight"))
    fit(module, callback, tmp_path)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(module.layer, reference)


def test_params_that_select_nothing(tmp_path):
    callback = GradientLARSCallback(GradientLARS(), params=lambda name, _: "head" in name)
    with pytest.raises(ValueError, match="`params` selects none of the optimizer's parameters. Leave it out"):
        fit(Module(names=False), callback, tmp_path)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, LARS])
def test_resumed_from_a_checkpoint(tmp_path, optimizer):
    def callback():
        if optimizer is LARS:
            return GradientLARSCallback(None, monitor=Recorder)
        return GradientLARSCallback(GradientLARS(), absorb_weight_decay=True)

    settings = {"weight_decay": 0.1, **({"trust_coefficient": 1.0} if optimizer is LARS else {})}
    trainer = fit(Module(optimizer, **settings), callback(), tmp_path, enable_checkpointing=True)
    path = trainer.checkpoint_callback.best_model_path
    saved = torch.load(path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.1

    resumed, reference = Module(optimizer, **settings), plain(weight_decay=0.1)
    fit(resumed, callback(), tmp_path, epochs=2, ckpt=path)
    for batch in batches(6) * 2:
        reference.step(batch)
    assert_equal(resumed.layer, reference)


def test_bfloat16(tmp_path):
    module, reference = Module(dtype=torch.float32), plain()
    fit(module, GradientLARSCallback(GradientLARS()), tmp_path, dtype=torch.float32, precision="bf16-mixed")
    for batch in batches(6):
        reference.step(batch)
    # The products were rounded to 8 bits; the weights are float32.
    assert_equal(module.layer, reference, factor=1000)


def test_float16_on_a_cpu_is_bfloat16(tmp_path):
    module = Module(dtype=torch.float32)
    trainer = fit(module, GradientLARSCallback(GradientLARS()), tmp_path, dtype=torch.float32, precision="16-mixed")
    assert trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("clip", [None, 0.1])
def test_float16_with_a_scaler(tmp_path, clip):
    # Autocast of bfloat16 so that the CPU can: what matters here is the scaler, which is a real one.
    module, reference = Module(dtype=torch.float32), plain(clip=clip, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=2)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    callback = GradientLARSCallback(GradientLARS(weight_decay=0.5))
    fit(module, callback, tmp_path, dtype=torch.float32, plugins=[plugin], gradient_clip_val=clip)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(module.layer, reference)
    assert scaler.get_scale() == 2.0**20


def test_lars_cannot_be_clipped_under_a_scaler(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    callback = GradientLARSCallback(None, monitor=Recorder)
    module = Module(LARS, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="LARS, does not allow for gradient clipping"):
        fit(module, callback, tmp_path, dtype=torch.float32, plugins=[plugin], gradient_clip_val=0.1)


class Recorder:
    """Stands in for a monitor: it is given something that has rates, and is closed."""

    made: ClassVar[list] = []

    def __init__(self, source):
        self.source, self.closed = source, 0
        Recorder.made.append(self)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, LARS])
def test_a_monitor_is_made_for_the_fit_and_closed(tmp_path, optimizer):
    module = Module(optimizer)
    hook = None if optimizer is LARS else GradientLARS()
    callback = GradientLARSCallback(hook, monitor=Recorder)
    trainer = fit(module, callback, tmp_path)
    (monitor,) = callback.monitors
    assert monitor.closed == 1
    assert monitor.source is (trainer.optimizers[0] if hook is None else callback.handles[0])
    assert len(monitor.source.rates()) == 2


class Failing(Module):
    def training_step(self, batch, i):
        if i == 1:
            raise ArithmeticError("as a user's code may")
        return self.loss(batch)


def test_hook_and_monitor_end_with_a_fit_that_fails(tmp_path):
    module = Failing()
    made = module.make(module.layer.named_parameters(), **module.settings)
    module.configure_optimizers = lambda: made
    callback = GradientLARSCallback(GradientLARS(), monitor=Recorder)
    with pytest.raises(ArithmeticError):
        fit(module, callback, tmp_path)
    assert callback.monitors[0].closed == 1
    assert not made._optimizer_step_pre_hooks
    module.training_step = lambda batch, batch_idx: module.loss(batch)
    fit(module, callback, tmp_path)  # and a second fit can begin


def test_a_monitor_that_cannot_be_closed_leaves_no_other_open():
    model = torch.nn.Linear(2, 2)
    optimizers = [LARS([param], 1.0) for param in model.parameters()]
    made = []

    def make(source):
        made.append(Recorder(source))
        if len(made) == 2:
            made[-1].close = lambda: (_ for _ in ()).throw(OSError("disk full"))
        return made[-1]

    callback = GradientLARSCallback(None, monitor=make)
    callback.on_train_start(SimpleNamespace(optimizers=optimizers), model)
    with pytest.raises(OSError, match="disk full"):
        callback.teardown(None, model, "fit")
    assert made[0].closed == 1
    callback.teardown(None, model, "fit")
    assert made[0].closed == 1


class Two(Manual):
    """One optimizer for the weight and one for the bias."""

    def training_step(self, batch, _):
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(self.loss(batch))
        first.step()
        second.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([named], lr=LR, momentum=MOMENTUM) for named in self.layer.named_parameters()]


@pytest.mark.parametrize(
    ("optimizers", "lars_names"), [(None, ("weight", "bias")), ([0], ("weight",)), ((1,), ("bias",))]
)
def test_several_optimizers(tmp_path, optimizers, lars_names):
    module, reference = Two(), plain(lars_names=lars_names)
    callback = GradientLARSCallback(GradientLARS(), optimizers=optimizers)
    fit(module, callback, tmp_path)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(module.layer, reference)
    assert len(callback.handles) == len(lars_names)


def test_an_optimizer_that_there_is_not(tmp_path):
    callback = GradientLARSCallback(GradientLARS(), optimizers=[1])
    with pytest.raises(ValueError, match="`optimizers` names 1, but the module has 1, counted from 0. Leave it out"):
        fit(Module(), callback, tmp_path)


def test_one_optimizer_that_refuses_leaves_no_hook_on_the_other(tmp_path):
    module, made = Two(), []

    def optimizers():
        weight, bias = module.layer.named_parameters()
        made[:] = [torch.optim.SGD([weight], lr=LR), LARS([bias], lr=LR)]
        return made

    module.configure_optimizers = optimizers
    callback = GradientLARSCallback(GradientLARS(), monitor=Recorder)
    with pytest.raises(ValueError, match="`optimizer` is LARS, which does layer-wise scaling itself"):
        fit(module, callback, tmp_path)
    assert not made[0]._optimizer_step_pre_hooks
    assert Recorder.made[-1].closed == 1


def test_a_monitor_alone_needs_lars(tmp_path):
    callback = GradientLARSCallback(None, monitor=Recorder)
    with pytest.raises(TypeError, match="`monitor` needs an optimizer with rates, and SGD has none. Pass `hook="):
        fit(Module(), callback, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((clip_after,), {}, TypeError, "`hook` must be a GradientLARS or None, got function. Put other hooks on"),
        ((GradientLARS,), {}, TypeError, "`hook` must be a GradientLARS or None, got the class GradientLARS."),
        ((None,), {}, ValueError, "`hook` and `monitor` are both None, which leaves nothing to do. Pass one"),
        ((GradientLARS(),), {"monitor": object()}, TypeError, "`monitor` must be a function that makes one, got obj"),
        ((None,), {"monitor": Recorder, "params": []}, ValueError, "settings of the hook. Pass `hook` as well."),
        ((GradientLARS(),), {"optimizers": ["0"]}, TypeError, "'str' object cannot be interpreted as an integer"),
    ],
)
def test_mistakes(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        GradientLARSCallback(*arguments, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks(strategy):
    script = Path(__file__).with_name("lightning_fit.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, strategy], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("found ")]
    weight, bias = json.loads(line.removeprefix("found "))
    reference, data = plain(weight_decay=0.5), batches(6)
    for i in (0, 2, 4):
        reference.step(*data[i : i + 2])
    np.testing.assert_allclose(weight, reference.weight, rtol=1e-10)
    np.testing.assert_allclose(bias, reference.bias, rtol=1e-10)
