"""What one training step of ``gradient-lars advise`` measures of its gradients."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradient_lars.cli.advise_errors import reported
from gradient_lars.cli.advise_noise import split_curvature
from gradient_lars.cli.advise_task import Task
from gradient_lars.cli.errors import CommandError

# What PyTorch says of operations that cannot be differentiated twice.
_NOT_TWICE = (
    "derivative for",
    "double backward",
    "twice differentiable",
    "once_differentiable",
    "trying to differentiate",
)


class Probe:
    """Gradients of micro-batches, and the five numbers that are kept of a step.

    Attributes:
        parameters: those that are trained.
        no_hessian: why B_noise is not measured; "" if it is.
    """

    def __init__(self, task: Task, *, hessian: bool) -> None:
        self.parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
        self.no_hessian = "" if hessian else "left out, as asked"
        self._task = task

    def step(self, batches: Iterator[Any], micro_batch: int, number: int) -> Tensor:
        """Take `number` micro-batches and one more, and leave the mean gradient in the parameters' `grad`.

        The Hessian is that of the one more: of the same one it would not be independent of the gradients.

        Returns:
            Loss, mean of ``|g|^2`` of the micro-batches, ``|g|^2`` of their mean, and the estimates of ``G^T H G`` and
            ``tr(H Sigma)``, float64, on the device.
        """
        losses: list[Tensor] = []
        squares: list[Tensor] = []
        mean: list[Tensor] = []
        first: list[Tensor] = []
        for _ in range(number):
            own = self._loss(next(batches))
            gradient = self._gradient(own)
            losses.append(own.detach().double())
            squares.append(_dot(gradient, gradient))
            if first:
                torch._foreach_add_(mean, gradient, alpha=1 / number)
            else:
                first, mean = gradient, [part / number for part in gradient]
        other = next(batches)
        forms = None if self.no_hessian else self._quadratic_forms(other, mean, first)
        signal, noise = split_curvature(*forms, micro_batch, number) if forms else [torch.zeros_like(squares[0])] * 2
        for parameter, part in zip(self.parameters, mean, strict=True):
            parameter.grad = part
        return torch.stack([torch.stack(losses).mean(), torch.stack(squares).mean(), _dot(mean, mean), signal, noise])

    def _loss(self, batch: Any) -> Tensor:
        with reported(self._task.name, "loss_fn(model, batch)"):
            loss = self._task.loss(self._task.model, batch)
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
            raise CommandError(
                f"`{self._task.name}`: loss_fn returned a value of {shown}: it must return the mean loss of the batch, "
                "one number that depends on the model's parameters."
            )
        return loss.reshape(())

    def _gradient(self, loss: Tensor, *, again: bool = False) -> list[Tensor]:
        found = torch.autograd.grad(
            loss, self.parameters, create_graph=again, allow_unused=True, materialize_grads=True
        )
        return [part.to_dense() if part.is_sparse else part for part in found]

    def _quadratic_forms(self, batch: Any, mean: list[Tensor], first: list[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return ``v^T H v`` of the mean gradient and of the first one's difference from it, or None."""
        try:
            with _buffers_kept(self._task.model):
                gradient = self._gradient(self._loss(batch), again=True)
                if _has_error(gradient):
                    self.no_hessian = "an operation of the model is marked as differentiable once only"
                    return None
                difference = torch._foreach_sub(first, mean)
                return self._quadratic_form(gradient, mean), self._quadratic_form(gradient, difference)
        except (RuntimeError, NotImplementedError) as error:
            if not any(text in str(error) for text in _NOT_TWICE):
                raise
            self.no_hessian = str(error).partition("\n")[0].rstrip(".")
            return None

    def _quadratic_form(self, gradient: Sequence[Tensor], v: Sequence[Tensor]) -> Tensor:
        along = torch.stack([(part * own).sum() for part, own in zip(gradient, v, strict=True)]).sum()
        if not along.requires_grad:  # the loss is linear in the parameters
            return torch.zeros((), dtype=torch.float64, device=along.device)
        product = torch.autograd.grad(
            along, self.parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return _dot(product, v)


def _has_error(gradient: Sequence[Tensor]) -> bool:
    """Say whether an operation without second derivative made `gradient`.

    PyTorch puts a node there that raises, but no path leads through it to the parameters: it would be left out of the
    derivative without a word.
    """
    seen: set[Any] = set()
    waiting: list[Any] = [part.grad_fn for part in gradient]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return False


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return torch.stack([(part * other).sum(dtype=torch.float64) for part, other in zip(a, b, strict=True)]).sum()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what the block's forward passes write into buffers, such as the statistics of batch normalisation."""
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in saved:
                buffer.copy_(old)
