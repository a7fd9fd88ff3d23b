"""The real Trainer of transformers with hook and `LARS`, beside a training in NumPy and float64."""

import sys

import pytest
import torch
from transformers import Trainer, TrainingArguments

from gradient_lars import GradientLARS, presets
from gradient_lars.integrations.transformers import GradientLARSCallback, optimizer_cls_and_kwargs
from gradient_lars.torch import LARS, param_groups
from integrations.plain import LR, MOMENTUM, assert_equal, batches, linear, plain, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's own


class Model(torch.nn.Module):
    """What the Trainer asks of a model: a loss from keyword arguments."""

    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, x, labels):
        return {"loss": torch.nn.functional.mse_loss(self.layer(x), labels)}


class Ordered(Trainer):
    """The examples in their order, so that the reference sees the same."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


SGD = {"optim": "sgd", "optim_args": f"momentum={MOMENTUM}", "learning_rate": LR}


def arguments(tmp_path, **settings):
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "logging_strategy": "no"}
    fixed = {"lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "num_train_epochs": 1}
    return TrainingArguments(str(tmp_path), **{**quiet, **fixed, "max_grad_norm": 0, **settings})


def train(args, *callbacks, model=None, resume=None, dtype=torch.float64, **options):
    data = [{"x": x, "labels": y} for x, y in tensors(batches(6), dtype)]
    trainer = Ordered(model or Model(), args, train_dataset=data, callbacks=list(callbacks), **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def after(steps, **settings):
    """Return the reference after steps that are lists of batches."""
    reference = plain(**settings)
    for step in steps:
        reference.step(*step)
    return reference


def test_hook(tmp_path):
    callback = GradientLARSCallback(GradientLARS(weight_decay=0.5))
    trainer = train(arguments(tmp_path, **SGD), callback)
    reference = after([[batch] for batch in batches(6)], weight_decay=0.5)
    assert_equal(trainer.model.layer, reference)
    rates = callback.handles[0].rates()
    # The Trainer puts weights before biases, and tells the optimizer no names.
    assert rates.rate.tolist() == pytest.approx([reference.rates["weight"], reference.rates["bias"]], rel=1e-9)


@pytest.mark.parametrize("clip", [0.1, 0])
def test_accumulated_batches_are_clipped_before_the_hook(tmp_path, clip):
    args = arguments(tmp_path, gradient_accumulation_steps=2, max_grad_norm=clip, **SGD)
    trainer = train(args, GradientLARSCallback(GradientLARS(weight_decay=0.5)))
    data = batches(6)
    reference = after([data[0:2], data[2:4], data[4:6]], weight_decay=0.5, clip=clip or None)
    assert_equal(trainer.model.layer, reference)


def test_the_decay_of_the_arguments_absorbed_by_the_hook_on_weights_alone(tmp_path):
    args = arguments(tmp_path, weight_decay=0.5, **SGD)
    callback = GradientLARSCallback(
        GradientLARS(), absorb_weight_decay=True, params=lambda name, _: name == "layer.weight"
    )
    trainer = train(args, callback)
    # The Trainer gives biases no decay.
    reference = after([[batch] for batch in batches(6)], weight_decay=0.5, lars_names=("weight",))
    assert_equal(trainer.model.layer, reference)


def test_decay_in_both_places_is_refused(tmp_path):
    with pytest.raises(ValueError, match="weight_decay"):
        train(arguments(tmp_path, weight_decay=0.5, **SGD), GradientLARSCallback(GradientLARS(weight_decay=0.5)))


def test_lars(tmp_path):
    args = arguments(tmp_path, learning_rate=LR, weight_decay=0.5)
    choice = optimizer_cls_and_kwargs(args, eps=1e-9, trust_coefficient=0.5)
    trainer = train(args, optimizer_cls_and_kwargs=choice)
    reference = after([[batch] for batch in batches(6)], weight_decay=0.5, trust=0.5, lars_names=("weight",))
    assert_equal(trainer.model.layer, reference)
    assert [rate.name for rate in trainer.optimizer.optimizer.rates()] == ["layer.weight", "layer.bias"]


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.0005}])
def test_a_preset_brings_its_own_decay(tmp_path, given):
    args = arguments(tmp_path, learning_rate=LR, **given)
    choice = optimizer_cls_and_kwargs(
        args, **presets.paper.replace(lr_in_momentum=False, eps=1e-9, trust_coefficient=0.5)
    )
    trainer = train(args, optimizer_cls_and_kwargs=choice)
    reference = after([[batch] for batch in batches(6)], weight_decay=0.0005, trust=0.5, lars_names=("weight",))
    assert_equal(trainer.model.layer, reference)
    assert [group["weight_decay"] for group in trainer.optimizer.optimizer.param_groups] == [0.0005, 0.0]


@pytest.mark.parametrize("optimizer", ["hook", "lars"])
def test_bfloat16(tmp_path, optimizer):
    model = Model()
    model.layer = linear(torch.float32)
    args = arguments(tmp_path, bf16=True, **SGD)
    if optimizer == "hook":
        train(args, GradientLARSCallback(GradientLARS()), model=model, dtype=torch.float32)
    else:
        choice = optimizer_cls_and_kwargs(
            args, trust_coefficient=1.0, groups=lambda model: param_groups(model, 0, bias=None)
        )
        train(args, model=model, dtype=torch.float32, optimizer_cls_and_kwargs=choice)
    # The products were rounded to 8 bits; the weights are float32.
    assert_equal(model.layer, after([[batch] for batch in batches(6)]), factor=1000)


def test_lars_with_groups_and_lr_of_its_own(tmp_path):
    args = arguments(tmp_path, weight_decay=0.1)
    choice = optimizer_cls_and_kwargs(
        args, lr=LR, trust_coefficient=1.0, groups=lambda model: param_groups(model, 0.5, bias=None)
    )
    trainer = train(args, optimizer_cls_and_kwargs=choice)
    assert_equal(trainer.model.layer, after([[batch] for batch in batches(6)], weight_decay=0.5))


@pytest.mark.parametrize("optimizer", ["hook", "lars"])
def test_resumed_from_a_checkpoint(tmp_path, optimizer):
    def run(epochs, resume=None):
        args = arguments(tmp_path, num_train_epochs=epochs, save_strategy="epoch", weight_decay=0.5, **SGD)
        if optimizer == "hook":
            return train(args, GradientLARSCallback(GradientLARS(), absorb_weight_decay=True), resume=resume)
        choice = optimizer_cls_and_kwargs(args, trust_coefficient=1.0)
        return train(args, resume=resume, optimizer_cls_and_kwargs=choice)

    run(1)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    trainer = run(2, resume=str(checkpoint))
    if optimizer == "lars":
        reference = after([[batch] for batch in batches(6) * 2], weight_decay=0.5, lars_names=("weight",))
    else:
        reference = plain()
        for batch in batches(6) * 2:
            step_with_decay_of_weights(reference, batch)
    assert_equal(trainer.model.layer, reference)


def step_with_decay_of_weights(reference, batch):
    """The hook acts on both, with the Trainer's decay: that of the weight, and none of the bias."""
    other = plain()
    other.weight, other.bias, other.velocity = reference.weight, reference.bias, dict(reference.velocity)
    reference.weight_decay = 0.5
    reference.step(batch)
    other.step(batch)
    reference.bias, reference.velocity["bias"] = other.bias, other.velocity["bias"]


class Recorder:
    def __init__(self, source):
        self.source, self.closed = source, 0

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("hook", [GradientLARS(), None])
def test_a_monitor_is_made_for_the_training_and_closed(tmp_path, hook):
    args = arguments(tmp_path, **SGD)
    callback = GradientLARSCallback(hook, monitor=Recorder)
    options = {} if hook else {"optimizer_cls_and_kwargs": optimizer_cls_and_kwargs(args)}
    trainer = train(args, callback, **options)
    (monitor,) = callback.monitors
    assert monitor.closed == 1
    inner = trainer.optimizer.optimizer
    assert monitor.source is (callback.handles[0] if hook else inner)
    assert not inner._optimizer_step_pre_hooks


def test_a_second_training_after_one_that_failed(tmp_path):
    callback = GradientLARSCallback(GradientLARS(), monitor=Recorder)
    args = arguments(tmp_path, **SGD)
    model = Model()
    trainer = Ordered(model, args, train_dataset=[{"x": torch.ones(4).double()}], callbacks=[callback])
    with pytest.raises(TypeError):
        trainer.train()
    first = callback.monitors[0]
    trainer.train_dataset = [{"x": x, "labels": y} for x, y in tensors(batches(6))]
    trainer.train()
    assert_equal(model.layer, after([[batch] for batch in batches(6)]))
    assert (first.closed, callback.monitors[0].closed) == (1, 1)


def test_adam_is_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="GradientLARS has next to no effect on AdamW"):
        train(arguments(tmp_path, optim="adamw_torch"), GradientLARSCallback(GradientLARS()))


@pytest.mark.parametrize(
    ("given", "settings", "error", "message"),
    [
        ({}, {}, ValueError, "`args.learning_rate` is 5e-05, the Trainer's default for Adam, at which LARS hardly"),
        (
            {"learning_rate": LR, "weight_decay": 0.2},
            {"weight_decay": 0.1},
            ValueError,
            "`weight_decay` is 0.1 among the settings and 0.2 in TrainingArguments. Leave it out in one",
        ),
        ({"learning_rate": LR}, {"momentum": -1.0}, ValueError, "`momentum` must be >= 0, got -1.0"),
        ({"learning_rate": LR}, {"trust": 1.0}, TypeError, "unexpected keyword argument 'trust'"),
    ],
)
def test_mistakes(tmp_path, given, settings, error, message):
    with pytest.raises(error, match=message):
        optimizer_cls_and_kwargs(arguments(tmp_path, **given), **settings)


def test_an_older_trainer(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.trainer_optimizer", None)
    with pytest.raises(RuntimeError, match="needs a Trainer that can be given a function of the model"):
        optimizer_cls_and_kwargs(arguments(tmp_path, learning_rate=LR))


def test_what_an_older_trainer_is_told_to_do(tmp_path):
    args = arguments(tmp_path, weight_decay=0.5)
    settings = {"lr": LR, "adapt": None, "trust_coefficient": 0.5}
    trainer = train(args, optimizer_cls_and_kwargs=(LARS, settings))
    reference = after([[batch] for batch in batches(6)], weight_decay=0.5, trust=0.5, lars_names=("weight",))
    assert_equal(trainer.model.layer, reference)
