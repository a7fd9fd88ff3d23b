"""``LARS``: layer-wise adaptive rate scaling as one ``torch.optim.Optimizer``."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gradient_lars.torch import _dispatch, _from_peer, _lars_state
from gradient_lars.torch._flattened import MadeWith
from gradient_lars.torch._lars_bucket import LarsLayer
from gradient_lars.torch._lars_layers import layers_of
from gradient_lars.torch._layers import LossScale, check_parameter, named_parameters
from gradient_lars.torch._settings import check_group, check_place_of_rate, check_switches, check_whole_optimizer
from gradient_lars.torch._sharding import Sharding
from gradient_lars.torch.rates import LayerRates

_FIGURES = ("p_norm", "g_norm", "rate")
# Settings of the optimizer that are in no group.
_OWN = ("skip_nonfinite", "master_weights", "carry_norms")

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


@dataclass
class LastStep:
    """What a step leaves to be asked for. In an object of its own: torch.compile loses what is assigned to `self`."""

    rates: LayerRates | None = None
    skipped: Tensor | None = None
    fused: _dispatch.FusedStep | None = None
    sharding: Sharding | None = None
    made_with: MadeWith = field(default_factory=MadeWith)


class LARS(torch.optim.Optimizer):
    r"""Momentum SGD whose learning rate is scaled, layer by layer, to the norm of the weights (LARS).

    With ``p_norm = ||p||_2`` and ``g_norm = ||g||_2`` of the raw gradient, one pair of numbers per parameter tensor::

        rate = trust_coefficient * p_norm / (eps + g_norm + weight_decay * p_norm)   if p_norm > threshold, else 1
        d    = rate * (g + weight_decay * p)
        v   <- momentum * v + (1 - dampening) * lr * d;  p <- p - v         with lr_in_momentum=True, as in the paper
        v   <- momentum * v + (1 - dampening) * d;       p <- p - lr * v    with lr_in_momentum=False, as in SGD

    The first step has no dampening, as in ``torch.optim.SGD`` (see `dampen_first_step`). With `nesterov` the step looks
    ahead as it does there. ``p.grad`` is left untouched. With ``trust_coefficient=1`` this is `GradientLARS` on
    ``torch.optim.SGD``. `gradient_lars.presets` has the settings of the published variants.

    Args:
        params: parameters, named parameters or groups; every setting but `skip_nonfinite`, `master_weights`,
            `carry_norms` and the choice of path may differ per group. A group's `adapt` says which of its layers are
            adapted: True all, False none, None those with two or more dimensions.
        lr: learning rate, >= 0; a float, or a tensor of one element on the device. The paper's gamma.
        momentum: >= 0; with 0 there is no momentum buffer.
        dampening: of what enters the momentum, from 0 to 1; 0 with `nesterov`.
        weight_decay: coefficient of the decay inside the rate, >= 0.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        trust_coefficient: factor of an adapted layer's rate, > 0. The paper's eta.
        threshold: a layer is adapted only if its weight norm is strictly greater, >= 0.
        eps: added to the denominator, >= 0.
        adapt: the groups' default for `adapt`.
        lr_in_momentum: where `lr` enters. The two differ whenever `lr` changes.
        trust_clip: LARC's clipping, ``rate <- min(rate / lr, 1)`` for adapted layers, so that ``lr * rate`` is the
            smaller of the rate and lr.
        min_rate: least rate of an adapted layer, >= 0.
        max_rate: greatest rate of an adapted layer, above `min_rate`.
        norm_of: what the ratio divides by. "gradient" is the paper's ``eps + ||g|| + weight_decay * ||p||``, "decayed"
            the ``eps + ||g + weight_decay * p||`` of SimCLR, Barlow Twins, VICReg, BYOL and optax. "update" is the norm
            after the momentum, ``v <- momentum * v + g + weight_decay * p; p <- p - lr * rate * v``, as in SimCLR's
            optimizer with ``classic_momentum=False``: it needs ``lr_in_momentum=False``, and no fused path has it.
            `rates` shows the norm taken.
        zero_gradient_rate: rate of an adapted layer whose gradient (with "decayed": gradient and decay) has the norm
            zero, >= 0. None is the formula's, 1 that of torchlars, timm and open-lars; with 0 the decay is left out as
            well, as in LARC and bolts.
        adapt_without_decay: whether a group without weight decay is adapted. False is what timm and bolts do:
            ``weight_decay=0`` makes it plain SGD.
        decay_excluded: whether layers that `adapt` excludes keep their decay.
        dampen_first_step: whether `dampening` acts in the first step too, in which the momentum then begins at zero.
        skip_nonfinite: a step in which any gradient has an infinity or a NaN changes nothing. Decided on the device;
            `skipped_steps` counts them.
        master_weights: keep a float32 copy of float16 and bfloat16 parameters in the state and step that one.
            It is made in the first step: weights loaded into the parameters later are overwritten by it.
        carry_norms: on CUDA and ROCm, take the weights' norms from the step before, which had the weights at hand when
            it wrote them; 24 bytes of memory traffic per parameter instead of 28. Changes in place are noticed and
            exact; a change through ``.data`` or raw memory costs one step at the norms from before it, and a warning.
            None chooses, False computes all norms anew in every step.
        foreach: the multi-tensor path. None chooses.
        fused: the fastest path of the device: Triton's kernels on CUDA and ROCm, PyTorch's fused SGD on the CPU (or,
            with ``TRITON_INTERPRET=1`` in the environment, the kernels in Triton's interpreter, which is how the tests
            prove them). None chooses; True where it cannot run is an error.
        capturable: allow the step in a CUDA graph; `lr` should then be a tensor, or it is fixed in the graph.
        maximize: climb instead of descend; the decay still shrinks the weights.
        differentiable: let autograd go through the step; the loop path.

    Raises:
        TypeError: a setting is not a number.
        ValueError: a setting is out of its range.
        RuntimeError: the paths asked for exclude each other or cannot run.

    Example:
        Both layers' gradients are far too long; each layer moves by about ``lr * trust_coefficient`` of its norm:

        >>> import torch
        >>> from gradient_lars.torch import LARS
        >>> layer = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = LARS([layer], lr=10.0, trust_coefficient=0.01)
        >>> layer.grad = torch.tensor([[300.0, -400.0]])
        >>> optimizer.step()
        >>> layer.data
        tensor([[2.7000, 4.4000]])
        >>> [f"{layer.rate:.4f}" for layer in optimizer.rates()]
        ['0.0001']

    It is not LARC (see `trust_clip`), not LAMB, and not timm's ``Lars``, which is plain SGD at ``weight_decay=0``.

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", arXiv 1708.03888.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coefficient: float = 1e-3,
        threshold: float = 0.01,
        eps: float = 1e-9,
        adapt: bool | None = True,
        lr_in_momentum: bool = True,
        trust_clip: bool = False,
        min_rate: float = 0.0,
        max_rate: float = math.inf,
        norm_of: Literal["gradient", "decayed", "update"] = "gradient",
        zero_gradient_rate: float | None = None,
        adapt_without_decay: bool = True,
        decay_excluded: bool = True,
        dampen_first_step: bool = False,
        skip_nonfinite: bool = False,
        master_weights: bool = False,
        carry_norms: bool | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "threshold": threshold,
            "eps": eps,
            "adapt": adapt,
            "lr_in_momentum": lr_in_momentum,
            "trust_clip": trust_clip,
            "min_rate": min_rate,
            "max_rate": max_rate,
            "norm_of": norm_of,
            "zero_gradient_rate": zero_gradient_rate,
            "adapt_without_decay": adapt_without_decay,
            "decay_excluded": decay_excluded,
            "dampen_first_step": dampen_first_step,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        _dispatch.check_lars_path(foreach=foreach, fused=fused, differentiable=differentiable)
        check_switches({"skip_nonfinite": skip_nonfinite, "master_weights": master_weights})
        if carry_norms is not None:
            check_switches({"carry_norms": carry_norms})
        self.skip_nonfinite = skip_nonfinite
        self.master_weights = master_weights
        self.carry_norms = carry_norms
        self._last = LastStep()
        # GradScaler then leaves the scale in the gradients and hands it over: no path waits for the host.
        self._step_supports_amp_scaling = True
        super().__init__(params, defaults)

    @classmethod
    def from_peer(cls, peer: Any, *, lr_in_momentum: bool | None = None, **options: Any) -> "LARS":
        """Return a LARS that goes on where another one is: the same parameters, settings and momentum.

        Its next step is the one that `peer` would have taken, but for rounding. Schedules hold on to `peer`: make them
        anew, or set their `optimizer`. Zero, one and ten steps into training are all the same.

        Args:
            peer: the LARS of torchlars, apex (LARC), timm, Lightning Bolts, lightly, solo-learn, open-lars,
                pytorch_optimizer, Barlow Twins or VICReg. It is left as it is, and must not be stepped any more.
            lr_in_momentum: where `lr` enters from now on; None leaves it where the peer has it. What the momentum holds
                is converted by each group's present `lr`.
            options: of `LARS` itself, which no peer has: `fused`, `foreach`, `capturable`, `skip_nonfinite`,
                `master_weights`, `carry_norms`.

        Raises:
            TypeError: `peer` is no LARS that is known.
            ValueError: a setting of its has no counterpart here, or a momentum cannot be converted at an `lr` of 0.

        Example:
            >>> import torch
            >>> from open_lars import LARS as Peer
            >>> from gradient_lars.torch import LARS
            >>> layer = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
            >>> peer = Peer([layer], lr=10.0, trust_coefficient=0.01)
            >>> layer.grad = torch.tensor([[300.0, -400.0]])
            >>> peer.step()
            >>> optimizer = LARS.from_peer(peer)
            >>> optimizer.step()
            >>> layer.data
            tensor([[2.1203, 5.1730]])
        """
        optimizer: LARS = _from_peer.take_over(cls, peer, lr_in_momentum, options)
        return optimizer

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its settings are checked as the constructor's are.

        Raises:
            TypeError: a setting is not of its type.
            ValueError: a setting is out of its range or cannot differ per group, or FSDP1 or DeepSpeed's ZeRO has made
                one vector of several layers.
            RuntimeError: the paths asked for exclude each other.
        """
        if isinstance(param_group, dict):
            check_whole_optimizer(param_group, {**self.defaults, **{name: getattr(self, name) for name in _OWN}})
            group = {**self.defaults, **param_group}
            check_group(group)
            _dispatch.check_lars_path(**{name: group[name] for name in ("foreach", "fused", "differentiable")})
        super().add_param_group(param_group)
        try:
            for _, name, _, param in named_parameters(self):
                check_parameter(name, param)
            self._last.made_with.check(self.param_groups)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step and return the closure's loss, if there is one.

        Raises:
            ValueError: a gradient is sparse, or the parameters have been flattened since (DeepSpeed's ZeRO); nothing
                was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            self._step()
        # The step has written to the pieces: autograd looks at the versions of the DTensors around them.
        if self._last.sharding is not None and self._last.sharding.dtensors:
            increment_version([param for param in self._last.sharding.dtensors if param.grad is not None])
        return loss

    def rates(self) -> LayerRates:
        """Return norms and rates of the last step; they stay on the device until they are read.

        Raises:
            RuntimeError: no step was taken yet.
        """
        if self._last.rates is None:
            raise RuntimeError("`rates` has nothing to show yet. Take a step first.")
        return self._last.rates

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped for gradients that were not finite; reading it waits for the device."""
        return 0 if self._last.skipped is None else int(self._last.skipped.item())

    def state_dict(self) -> dict[str, Any]:
        """Return the state, and with it the number of skipped steps, which other optimizers overlook."""
        self._forget_unstarted()
        state = super().state_dict()
        if self._last.skipped is not None:
            state["skipped_steps"] = self._last.skipped.clone()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a LARS or of a ``torch.optim.SGD``, whose momentum is carried over.

        SGD holds the momentum without the learning rate. Groups with ``lr_in_momentum=True`` take it times their `lr`.
        As in every PyTorch optimizer the groups take the settings that `state_dict` holds. SGD's `lr` is not one for
        LARS: set it, and what else is to differ, in ``param_groups`` afterwards, before a schedule is made. There must
        be as many groups, with as many parameters each: those of `param_groups` fit an SGD made with such groups.
        The count of skipped steps goes on from that of `state_dict`, from 0 if that holds none.

        Raises:
            ValueError: the groups are others; `state_dict` has the learning rate in the momentum and no `norm_of`,
                which is 'update' here. Nothing was changed then.
        """
        own = [{k: v for k, v in group.items() if k not in ("params", "param_names")} for group in self.param_groups]
        from_sgd = ["lr_in_momentum" not in group for group in state_dict["param_groups"]]
        # A state from before `norm_of` leaves this as it is here. PyTorch refuses other numbers of groups.
        for settings, loaded in zip(own, state_dict["param_groups"], strict=False):
            check_place_of_rate({**settings, **loaded})
        super().load_state_dict(state_dict)
        self._last.skipped = _lars_state.skipped_in(state_dict, self)
        if self.master_weights:
            _lars_state.load_wide(self, state_dict)
        for group, settings, is_sgd in zip(self.param_groups, own, from_sgd, strict=True):
            if is_sgd:
                group.pop("initial_lr", None)  # a schedule made afterwards would start from it, and not from `lr`
            for key, value in settings.items():
                group.setdefault(key, value)
            if is_sgd:
                group["foreach"], group["fused"] = settings["foreach"], settings["fused"]
                _lars_state.take_sgd_momentum(self, group)

    def __getstate__(self) -> dict[str, Any]:
        self._forget_unstarted()
        own = (*_OWN, "_step_supports_amp_scaling")
        last = LastStep(skipped=self._last.skipped)
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}, "_last": last}

    def _step(self) -> None:
        last = self._last
        if last.fused is not None and not torch.compiler.is_compiling():
            rates = last.fused.step(self, LossScale.of(self), last)
            if rates is not None:
                last.rates = rates
                return
            self._forget_unstarted()
        layers, sharding = self._layers()
        try:
            last.fused = _dispatch.fused_step(layers, self, sharding)
            if last.fused is not None:
                last.rates = last.fused.step(self, LossScale.of(self), last)
                return
        except RuntimeError:
            last.fused = None
            self._forget_fresh(layers)
            raise
        figures: list[Any] = []
        # Where nothing has a gradient here, other ranks may wait for this one's word all the same.
        if layers or sharding:
            try:
                take = _dispatch.lars_path(layers)
                figures, skip = take(layers, LossScale.of(self), skip_nonfinite=self.skip_nonfinite, sharding=sharding)
            except RuntimeError:
                self._forget_fresh(layers)
                raise
            if skip is not None and self.skip_nonfinite:
                if self._last.skipped is None:
                    self._last.skipped = torch.zeros((), dtype=torch.int64, device=skip.device)
                self._last.skipped += skip.to(self._last.skipped.device, non_blocking=True)
            # Waits for the device, but only in a first step, and where the answer makes a difference.
            if skip is not None and any(layer.seeded and layer.group["dampening"] for layer in layers) and bool(skip):
                self._forget_fresh(layers)
        if self.defaults["differentiable"]:
            figures = [
                figure._replace(**{name: getattr(figure, name).detach() for name in _FIGURES}) for figure in figures
            ]
        self._last.rates = LayerRates([layer.name for layer in layers], figures)

    def _forget_unstarted(self) -> None:
        """Do what `_forget_fresh` does, for the kernels: whether a step was taken only the device knows."""
        if self._last.fused is not None:
            self._last.fused.forget_unstarted(self)

    def _forget_fresh(self, layers: list[LarsLayer]) -> None:
        """Drop the state made for a step that was not taken: the next one is then the first, without dampening."""
        params = (param for *_, param in named_parameters(self) if param.grad is not None)
        for param, layer in zip(params, layers, strict=True):
            if layer.fresh:
                del self.state[param]["momentum_buffer"]
            if layer.fresh_master:
                del self.state[param]["master"]

    def _layers(self) -> tuple[list[LarsLayer], Sharding]:
        """Return the layers that have gradients, with their state, and how all parameters are sharded."""
        named = list(named_parameters(self))
        sharding = self._last.sharding
        if sharding is None or not sharding.holds_for([param for *_, param in named]):
            self._last.made_with.check(self.param_groups)
            for _, name, _, param in named:
                check_parameter(name, param)
            sharding = self._last.sharding = Sharding([(name, param) for _, name, _, param in named])
        return layers_of(named, sharding, self.state, master_weights=self.master_weights), sharding
