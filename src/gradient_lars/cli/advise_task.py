"""Model, data and loss of ``gradient-lars advise``: from the user's function, or a built-in data set."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from gradient_lars.cli.advise_errors import enough_memory, reported
from gradient_lars.cli.advise_settings import AdviseSettings
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.settings import folder_of

Loss = Callable[[nn.Module, Any], Tensor]
_CONTRACT = "return (model, data, loss_fn): a torch.nn.Module, a DataLoader or Dataset, and loss_fn(model, batch)"
_NAMED = 4


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
        with reported(self.name, "the data"):
            for batch in self._loader(size, number, torch.Generator().manual_seed(seed)):
                yield to_device(batch, device)

    def _loader(self, size: int, number: int, generator: torch.Generator) -> DataLoader[Any]:
        own = self.data if isinstance(self.data, DataLoader) else None
        samples = cast(Sized, self.dataset)
        return DataLoader(
            self.dataset,
            batch_size=size,
            sampler=RandomSampler(samples, replacement=True, num_samples=size * number, generator=generator),
            collate_fn=own.collate_fn if own else None,
            num_workers=own.num_workers if own else 0,
            generator=generator,
        )


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
    with reported(task.name, "len(data)"):
        samples = len(task)
    if samples < settings.big_batch:
        raise CommandError(
            f"{task.name} has {samples} samples, fewer than the {settings.big_batch} of a step "
            f"({settings.micro_batches} batches of {settings.micro_batch}): give a smaller `--micro-batch` or "
            "`--micro-batches`, or more data."
        )
    if task.has_batch_norm and settings.micro_batch < 2:
        raise CommandError(
            "`--micro-batch 1` leaves batch normalisation nothing to average over: give at least 2, or better the "
            "samples that a device will have at once."
        )
    _check_model(task)
    return task


def _check_model(task: Task) -> None:
    values = [*task.model.parameters(), *task.model.buffers()]
    if any(is_lazy(value) for value in values):
        raise CommandError(
            f"{task.name} returned a model with lazy modules, whose weights have no shape yet: run one batch through "
            "it in the function first."
        )
    if any(value.is_meta for value in values):
        raise CommandError(
            f"{task.name} returned a model on the device meta, whose weights have no values: make it on the CPU."
        )
    if not any(parameter.requires_grad for parameter in task.model.parameters()):
        raise CommandError(f"{task.name} returned a model without parameters to train: leave some unfrozen.")


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy of a batch of images and labels: the loss of the built-in data sets."""
    x, y = batch
    return functional.cross_entropy(model(x), y)


def _built_in(settings: AdviseSettings) -> Task:
    from gradient_lars.cli.data import load
    from gradient_lars.cli.network import build_network

    found = load(cast(str, settings.data), folder_of(settings.data, settings.data_dir))
    data = TensorDataset(torch.from_numpy(found.train.x), torch.from_numpy(found.train.y))
    model = build_network(found.train.x.shape[1], found.n_classes, settings.seed)
    return Task(found.name, model, data, cross_entropy)


def _from_function(text: str) -> Task:
    path, colon, name = text.rpartition(":")
    if not (colon and path and name.isidentifier()):
        raise CommandError(f"`{text}` names no function: give `module:function` or `path/to/file.py:function`.")
    spent = f"`{text}` needs more memory than its device has: make the model smaller, or leave moving it to `--device`."
    with enough_memory(spent), _no_arguments(path):
        with reported(text, "its import"):
            module = _load_file(Path(path)) if path.endswith(".py") else _load_module(path)
            function = getattr(module, name, None)
        if not callable(function):
            raise CommandError(f"`{text}`: {path} has no function `{name}`: give the name of one that it defines.")
        with reported(text, f"{name}()"):
            found = function()
    if not (isinstance(found, tuple) and len(found) == 3):
        raise CommandError(f"`{text}` returned {_shown(found)}: it must {_CONTRACT}.")
    model, data, loss = found
    for part, right in ((model, isinstance(model, nn.Module)), (loss, callable(loss))):
        if not right:
            raise CommandError(f"`{text}` returned {_shown(part)} in the wrong place: it must {_CONTRACT}.")
    return Task(Path(text).name, model, _checked_data(text, data), loss)


def _checked_data(text: str, data: Any) -> Any:
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(dataset, Mapping) and 0 not in dataset:
        keys = ", ".join(map(repr, list(dataset)[:_NAMED])) or "nothing"
        raise CommandError(
            f"`{text}` returned a {type(dataset).__name__} with {keys} as data: give one data set, such as that of its "
            "training split."
        )
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise CommandError(
            f"`{text}` returned data of the type {type(dataset).__name__}, of which no sample can be drawn by its "
            "number: give a Dataset with __len__ and __getitem__, or a DataLoader of one."
        )
    if isinstance(data, DataLoader) and data.batch_sampler is None:
        raise CommandError(
            f"`{text}` returned a DataLoader with batch_size=None, which yields ready-made batches: give the data set "
            "of the single samples, or a loader with a batch_size."
        )
    return data


@contextmanager
def _no_arguments(path: str) -> Iterator[None]:
    """Let a script that reads its options find none: those of this process are ours."""
    ours = sys.argv
    sys.argv = [path]
    try:
        yield
    finally:
        sys.argv = ours


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


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} values"
    return "None" if value is None else f"a {type(value).__name__}"
