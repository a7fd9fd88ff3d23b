"""One network trained in one process and on several ranks, the two compared after every step."""

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from gradient_lars import GradientLARS
from gradient_lars.torch import LARS, add_hook
from lars.expected import PATHS as LARS_PATHS
from sharded.layouts import assert_close, full

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SETTINGS = {"lr": 0.5, "trust_coefficient": 0.25, "weight_decay": 0.125}

STEPS = 3
# Divided by 1, 2, 3 and 4 ranks.
ROWS = 12


class Network(nn.Module):
    """Layers of all kinds, some with fewer rows than there are ranks; the block is what tensor parallelism spreads."""

    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(3, 5)
        self.block = Block(5, 12)
        self.out = nn.Linear(5, 1)

    def forward(self, x):
        return torch.tanh(self.out(self.block(torch.tanh(self.inp(x)))))


class Block(nn.Module):
    """A residual feed-forward block behind a norm."""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def network(dtype=torch.float64, seed=3):
    """Return a `Network` with fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Network().to(dtype)


def batch(step, dtype=torch.float64, part=(0, 1)):
    """Return inputs and targets of this step: the whole batch, or the given part of so many."""
    generator = torch.Generator().manual_seed(50 + step)
    x = torch.randn(ROWS, 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(ROWS, 4, 1, generator=generator, dtype=torch.float64)
    index, parts = part
    rows = slice(index * ROWS // parts, (index + 1) * ROWS // parts)
    return x[rows].to(dtype), y[rows].to(dtype)


def this_part():
    """Return the part of a batch that is this rank's."""
    return dist.get_rank(), dist.get_world_size()


def backward(model, step, dtype, part):
    """Leave the gradients of this step in the parameters of `model`."""
    x, y = batch(step, dtype, part)
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    return loss.detach()


def named(model):
    """Return the parameters of `model` under their names in the network itself."""
    return [(name.removeprefix("module."), param) for name, param in model.named_parameters()]


def lars(params, path="chosen", **settings):
    """Return a LARS on `path`, and its rates."""
    optimizer = LARS(params, **{**SETTINGS, **settings}, **LARS_PATHS[path])
    return optimizer, optimizer.rates


def hook(params, path=None, **settings):
    """Return an SGD with the hook on `path`, and the hook's rates."""
    optimizer = torch.optim.SGD(params, **{"lr": 0.125, "momentum": 0.9, **settings})
    return optimizer, add_hook(optimizer, GradientLARS(weight_decay=0.125), path=path).rates


def follows_one_process(spread, make, *, dtype=torch.float64, part=None, collectives=None, steps=STEPS, **how):
    """Assert that training on these ranks gives the parameters and rates of one process.

    Args:
        spread: makes a network parallel, in place or not, and returns it.
        make: returns optimizer and rates for named parameters.
        dtype: of the network.
        part: of each batch that this rank sees; by default its own.
        collectives: number of collectives in a step of the optimizer.
        steps: how many.
        how: `gradients(model, step, dtype, part)` in place of `backward`; `after(model)`, called before the step of
            the parallel optimizer; `both(model)`, called before the step of either; `module`, true if `make` takes the
            network itself.
    """
    part = part or this_part()
    gradients, nothing = how.get("gradients", backward), lambda model: None
    whole = network(dtype)
    parallel = spread(network(dtype))
    of = (lambda model: model) if how.get("module") else named
    whole_optimizer, whole_rates = make(of(whole))
    optimizer, rates = make(of(parallel))
    for step in range(steps):
        whole_optimizer.zero_grad()
        gradients(whole, step, dtype, (0, 1))
        how.get("both", nothing)(whole)
        whole_optimizer.step()
        optimizer.zero_grad()
        gradients(parallel, step, dtype, part)
        how.get("after", nothing)(parallel)
        how.get("both", nothing)(parallel)
        with CommDebugMode() as communication:
            optimizer.step()
        if collectives is not None:
            assert communication.get_total_counts() == collectives, communication.get_comm_counts()
        assert_same_network(parallel, whole, TOLERANCE[dtype])
        assert_same_rates(rates(), whole_rates(), TOLERANCE[dtype])
    return parallel, optimizer


def assert_same_network(parallel, whole, tolerance):
    """Assert that the parameters are the same, to `tolerance` of a tensor's scale."""
    expected = dict(named(whole))
    assert {name for name, _ in named(parallel)} == expected.keys()
    for name, param in named(parallel):
        assert_close(name, full(param), expected[name].detach(), tolerance)


def assert_same_rates(rates, whole, tolerance):
    """Assert that norms and rates are the same, to `tolerance` of the largest."""
    assert rates.names == whole.names
    for name in ("p_norm", "g_norm", "rate"):
        assert_close(name, getattr(rates, name), getattr(whole, name), tolerance)
    assert torch.equal(rates.adapted, whole.adapted)
