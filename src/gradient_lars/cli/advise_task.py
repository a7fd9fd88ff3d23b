"""Model, data and loss of ``gradient-lars advise``: from the user's function, or a built-in data set."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from gradient_lars.cli.advise_settings import AdviseSettings
from gradient_lars.cli.errors import CommandError

Loss = Callable[[nn.Module, Any], Tensor]
_CONTRACT = "return (model, data, loss_fn): a torch.nn.Module, a DataLoader or Dataset, and loss_fn(model, batch)"


@dataclass(frozen=True)
class Task:
    """What is trained while it is measured.

    Attributes:
        data: a data set with a length, or a loader of one, of which that, `collate_fn` and `num_workers` are used.
        loss: ``loss(model, batch)``, the mean over the samples of `batch`, a scalar.
    """

    name: str
    model: nn.Module
    data: Dataset[Any] | DataLoader[Any]
    loss: Loss

    @property
    def dataset(self) -> Dataset[Any]:
        """Return the data set, of the loader if there is one."""
        return self.data.dataset if isinstance(self.data, DataLoader) else self.data

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(cast(Sized, self.dataset))

    @property
    def has_batch_norm(self) -> bool:
        """Say whether the gradient of a sample depends on the others of its batch."""
        return any(isinstance(module, _BatchNorm) for module in self.model.modules())

    def batches(self, size: int, number: int, seed: int, device: torch.device) -> Iterator[Any]:
        """Yield `number` batches of `size` samples, drawn independently and uniformly with replacement."""
        generator = torch.Generator().manual_seed(seed)
        sampler = RandomSampler(
            cast(Sized, self.dataset), replacement=True, num_samples=size * number, generator=generator
        )
        loader = self.data if isinstance(self.data, DataLoader) else None
        for batch in DataLoader(
            self.dataset,
            batch_size=size,
            sampler=sampler,
            collate_fn=loader.collate_fn if loader else None,
            num_workers=loader.num_workers if loader else 0,
            generator=generator,
        ):
            yield to_device(batch, device)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with its tensors, in tuples, lists and mappings too, on `device`."""
    if callable(getattr(batch, "to", None)):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def load_task(settings: AdviseSettings) -> Task:
    """Return the task that the user's function or `--data` names, checked against the batch sizes.

    Raises:
        CommandError: it cannot be loaded, does not keep to the contract, or has too few samples.
    """
    task = _built_in(settings) if settings.task is None else _from_function(settings.task)
    if len(task) < settings.big_batch:
        raise CommandError(
            f"{task.name} has {len(task)} samples, fewer than the {settings.big_batch} of a step "
            f"({settings.micro_batches} batches of {settings.micro_batch}): give a smaller `--micro-batch` or "
            "`--micro-batches`, or more data."
        )
    if task.has_batch_norm and settings.micro_batch < 2:
        raise CommandError(
            "`--micro-batch 1` leaves batch normalisation nothing to average over: give at least 2, or better the "
            "samples that a device will have at once."
        )
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        raise CommandError(f"{task.name} returned a model without parameters to train: leave some unfrozen.")
    return task


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of a batch of images and labels: the loss of the built-in data sets."""
    x, y = batch
    return functional.cross_entropy(model(x), y)


def _built_in(settings: AdviseSettings) -> Task:
    from gradient_lars.cli.data import load
    from gradient_lars.cli.network import build_network

    found = load(cast(str, settings.data), settings.data_dir)
    data = TensorDataset(torch.from_numpy(found.train.x), torch.from_numpy(found.train.y))
    model = build_network(found.train.x.shape[1], found.n_classes, settings.seed)
    return Task(found.name, model, data, cross_entropy)


def _from_function(text: str) -> Task:
    path, colon, name = text.rpartition(":")
    if not (colon and path and name.isidentifier()):
        raise CommandError(f"`{text}` names no function: give `module:function` or `path/to/file.py:function`.")
    with _reported(text):
        module = _load_file(Path(path)) if path.endswith(".py") else _load_module(path)
        function = getattr(module, name, None)
        if not callable(function):
            raise CommandError(f"`{text}`: {path} has no function `{name}`: give the name of one that it defines.")
        found = function()
    if not (isinstance(found, tuple) and len(found) == 3):
        raise CommandError(f"`{text}` returned {_shown(found)}: it must {_CONTRACT}.")
    model, data, loss = found
    for part, right in ((model, isinstance(model, nn.Module)), (loss, callable(loss))):
        if not right:
            raise CommandError(f"`{text}` returned {_shown(part)} in the wrong place: it must {_CONTRACT}.")
    return Task(text, model, _checked_data(text, data), loss)


def _checked_data(text: str, data: Any) -> Any:
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise CommandError(
            f"`{text}` returned data of the type {type(dataset).__name__}, of which no sample can be drawn by its "
            "number: give a Dataset with __len__ and __getitem__, or a DataLoader of one."
        )
    return data


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CommandError(f"there is no file {path}: give the path of a Python file that exists.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path} is no Python file: give one.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as `python file.py` would: it may import its neighbours
    sys.modules[path.stem] = module  # for pickling: by workers of a loader
    spec.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` would
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise CommandError(
            f"there is no module `{name}` here or installed: give `path/to/file.py:function`, or change the folder."
        ) from None


class _reported:  # noqa: N801
    """Turn what the user's code raises into a `CommandError` that says where."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, CommandError):
            raise failed(self._name, error) from None


def failed(name: str, error: Exception) -> CommandError:
    """Return what is said of an error that the user's code raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "torch" not in Path(frame.filename).parts]
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}"
    else:
        where = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else "unknown"
    reason = str(error).partition("\n")[0].rstrip(".")
    return CommandError(f"`{name}` failed at {where}: {type(error).__name__}: {reason}.")


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} values"
    return "None" if value is None else f"a {type(value).__name__}"
