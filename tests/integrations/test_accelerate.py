"""The real Accelerate with hook and `LARS`, beside a training in NumPy and float64."""

import pytest
import torch
from accelerate import Accelerator

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from integrations.plain import LR, MOMENTUM, assert_differ, assert_equal, batches, linear, plain, tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # Accelerate's own


def trained(make, *, scaler=None, clip=None, accumulate=1, dtype=torch.float64, after=None, count=6):
    """Return layer and wrapped optimizer; `after` is called with the optimizer that has been prepared."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    # What mixed_precision="fp16" makes, which is for GPUs only; the forward pass stays in `dtype`.
    accelerator.scaler = scaler
    layer = linear(dtype)
    loader = torch.utils.data.DataLoader(tensors(batches(count), dtype), batch_size=4)
    layer, optimizer, loader = accelerator.prepare(layer, make(layer.named_parameters()), loader)
    if scaler:
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    if after:
        after(optimizer)
    for x, y in loader:
        with accelerator.accumulate(layer):
            accelerator.backward(torch.nn.functional.mse_loss(layer(x), y))
            if clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(layer.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return layer, optimizer


def hooked(params, weight_decay=0.0, **settings):
    optimizer = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, **settings)
    hook = GradientLARS(weight_decay=weight_decay)
    add_hook(optimizer, hook, absorb_weight_decay="weight_decay" in settings)
    return optimizer


def hook_with_decay(params):
    return hooked(params, 0.5)


def hook_that_absorbs(params):
    return hooked(params, **{"weight_decay": 0.5})


def hook_on_fused(params):
    return hooked(params, 0.5, fused=True)


def lars(params):
    return LARS(params, lr=LR, momentum=MOMENTUM, trust_coefficient=1.0, weight_decay=0.5)


MAKE = [hook_with_decay, hook_that_absorbs, hook_on_fused, lars]


def scaler(scale=2.0**17):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulation(make, accumulate):
    layer, _ = trained(make, accumulate=accumulate)
    reference, data = plain(weight_decay=0.5), batches(6)
    for i in range(0, 6, accumulate):
        reference.step(*data[i : i + accumulate])
    assert_equal(layer, reference)


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_comes_before_lars_and_a_scaler_changes_nothing(make, clip, scaled):
    own = scaler() if scaled else None
    layer, _ = trained(make, clip=clip, scaler=own, dtype=torch.float32)
    reference, unclipped = plain(weight_decay=0.5, clip=clip), plain(weight_decay=0.5)
    for batch in batches(6):
        reference.step(batch)
        unclipped.step(batch)
    assert_equal(layer, reference)
    if clip:
        assert_differ(reference, unclipped)
    if own:
        assert own.get_scale() == 2.0**20


@pytest.mark.parametrize("make", MAKE)
def test_an_overflow_changes_nothing(make):
    own = scaler(scale=2.0**127)
    layer, optimizer = trained(make, scaler=own, dtype=torch.float32, count=1)
    assert_equal(layer, plain(), factor=0.1)
    assert own.get_scale() == 2.0**126
    # An optimizer that sees the overflow itself, on the device, is stepped: Accelerate does not learn of it.
    assert optimizer.step_was_skipped is (make not in (hook_on_fused, lars))


@pytest.mark.parametrize("scaled", [False, True])
def test_hook_added_to_what_has_been_prepared(scaled):
    def after(optimizer):
        add_hook(optimizer.optimizer, GradientLARS(), absorb_weight_decay=True)

    def make(params):
        return torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, weight_decay=0.5)

    layer, optimizer = trained(make, after=after, scaler=scaler() if scaled else None, dtype=torch.float32)
    reference = plain(weight_decay=0.5)
    for batch in batches(6):
        reference.step(batch)
    assert_equal(layer, reference)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


def test_the_wrapper_itself_is_refused():
    def after(optimizer):
        with pytest.raises(TypeError, match="no step hooks of its own. Pass the optimizer that it wraps"):
            add_hook(optimizer, GradientLARS())

    trained(hooked, after=after, count=1)
