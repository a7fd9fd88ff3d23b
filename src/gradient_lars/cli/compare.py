"""``gradient-lars compare``: the runs of a comparison, one after the other, kept as they finish."""

import importlib.metadata
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

import gradient_lars
from gradient_lars.cli.bench_results import processor_name, source_commit
from gradient_lars.cli.cluster import Cluster, joined
from gradient_lars.cli.data import Dataset, Split, load
from gradient_lars.cli.device import resolve_device, try_compiler
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.files import check_writable, write_errors
from gradient_lars.cli.recipe import Recipe
from gradient_lars.cli.records import FINAL, TUNE, Experiment, RateSample, Run
from gradient_lars.cli.report import PLOT, RATES, RESULTS, recorded_rates, report
from gradient_lars.cli.results import ResultsFile, write_rates
from gradient_lars.cli.settings import LARS, NESTEROV, SGD, Settings, n_steps, resolve_batch_sizes
from gradient_lars.cli.summary import LABELS, Tuned, check_choices, ranked
from gradient_lars.cli.training import Batch, evaluate, fit

SMALL = 2**20


def compare(settings: Settings, *, resume: bool, overwrite: bool, output: Console, log: Console) -> None:
    """Run what is missing of a comparison, then print and draw it.

    Where ``torchrun`` started several processes they train together, and the first of them prints and writes.

    Args:
        settings: the checked options.
        resume: go on with the runs that `settings.out` has.
        overwrite: begin again, in place of what `settings.out` has.
        output: where the table goes.
        log: where the progress goes.

    Raises:
        CommandError: a mistake of the user's; nothing was written if it was there from the beginning.
        KeyboardInterrupt: the runs that ended are kept.
    """
    with joined(settings.shard) as cluster:
        with cluster.agree():
            device = resolve_device(settings.device, cluster)
            if settings.compiled:
                try_compiler(device)
            data = load(settings.data, settings.folder, settings.train_size)
            experiment = describe(settings, data, cluster)
        with cluster.agree():
            _check_same(cluster, experiment)
        with cluster.agree():
            cluster.use(device)
        log = log if cluster.rank == 0 else Console(quiet=True)
        with write_errors(settings.out):
            runs = cluster.once(
                lambda: _open_results(settings.out, experiment, resume=resume, overwrite=overwrite, log=log).runs
            )
            results = ResultsFile(settings.out / RESULTS, experiment, runs)
            with torch.backends.cudnn.flags(benchmark=False, deterministic=True), _threads(data):
                _Session(experiment, data, device, results, log, cluster).run()
            cluster.once(lambda: report(results.path, settings.out, output))


def describe(settings: Settings, data: Dataset, cluster: Cluster) -> Experiment:
    """Return what identifies the comparison, for its results file."""
    return Experiment(
        data=data.name,
        data_digest=data.digest,
        n_train=len(data.train),
        n_val=len(data.val),
        n_test=len(data.test),
        batch_sizes=resolve_batch_sizes(settings.batch_sizes, len(data.train), cluster.size),
        sgd_learning_rates=settings.learning_rates.get(SGD, ()),
        nesterov_learning_rates=settings.learning_rates.get(NESTEROV, ()),
        lars_learning_rates=settings.learning_rates[LARS],
        tuning_seeds=settings.tuning_seeds,
        halving=settings.halving,
        seeds=settings.seeds,
        epochs=settings.epochs,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        threshold=settings.threshold,
        eps=settings.eps,
        device=str(torch.device(settings.device)),
        torch=importlib.metadata.version("torch"),
        gradient_lars=gradient_lars.__version__,
        world_size=cluster.size,
        shard=cluster.shard,
        **settings.choices(),
    )


def _check_same(cluster: Cluster, experiment: Experiment) -> None:
    first = cluster.gather(experiment)[0]
    for field in fields(Experiment):
        own, other = getattr(experiment, field.name), getattr(first, field.name)
        if own != other:
            raise CommandError(
                f"process {cluster.rank} has {field.name} = {own}, process 0 has {other}: "
                "give the same command, data and versions on every machine."
            )


def _open_results(out: Path, experiment: Experiment, *, resume: bool, overwrite: bool, log: Console) -> ResultsFile:
    path = out / RESULTS
    check_writable(out)
    if path.exists() and not (resume or overwrite):
        raise CommandError(
            f"`--out`: {out} already holds the results of a comparison: "
            "add `--resume` to go on with it, `--overwrite` to begin again, or name another folder."
        )
    with write_errors(out):
        if path.exists() and resume:
            results = ResultsFile.resume(path, experiment)
            check_choices(path, experiment, results.runs)
            recorded_rates(path, experiment, results.runs)
            log.print(f"Resuming: {len(results.runs)} of {experiment.n_runs} runs are there.")
            return results
        if resume:
            log.print(Text(f"Nothing to resume in {out}: beginning there."))
        out.mkdir(parents=True, exist_ok=True)
        for stale in (out / RATES, out / PLOT):
            stale.unlink(missing_ok=True)
        return ResultsFile.create(path, experiment)


@contextmanager
def _threads(data: Dataset) -> Iterator[None]:
    """Use one thread for small data, and the usual number otherwise.

    On digits (65,536 values) a second core saves a fifth of the time where nothing else runs, and doubles it where
    something does, as the threads then wait for each other. With one thread the sums, and so the results, do not
    depend on the number of cores either.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1 if data.train.x.size <= SMALL else usual)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@dataclass
class _Session:
    """The runs of one comparison, in order: for each batch size and optimizer first `TUNE`, then `FINAL`."""

    experiment: Experiment
    data: Dataset
    device: torch.device
    results: ResultsFile
    log: Console
    cluster: Cluster

    def run(self) -> None:
        """Run everything that the results file does not hold yet."""
        self._done = {run.key: run for run in self.results.runs}
        cuda = self.device.type == "cuda"
        self._machine = torch.cuda.get_device_name(self.device) if cuda else processor_name()
        self._commit = source_commit()
        self._splits = {name: self._on_device(getattr(self.data, name)) for name in ("train", "val")}
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        shown = self.log.is_terminal and self.cluster.rank == 0
        with Progress(*columns, console=self.log, transient=True, disable=not shown) as progress:
            self._progress = progress
            self._task = progress.add_task("", total=self.experiment.n_runs)
            for batch_size in self.experiment.batch_sizes:
                for optimizer in self.experiment.optimizers:
                    self._cell(batch_size, optimizer)

    def _cell(self, batch_size: int, optimizer: str) -> None:
        grid = self.experiment.grid(optimizer)
        best = self._tuned(batch_size, optimizer)
        seeds = self.experiment.seed_range(FINAL)
        finals = [self._once(FINAL, batch_size, optimizer, best.lr, seed) for seed in seeds]
        mean = statistics.fmean(run.tested for run in finals)
        among = f"the best of {len(grid)}" if len(grid) > 1 else "the only one tried"
        self.log.print(
            f"batch {batch_size}, {LABELS[optimizer]}: lr {best.lr:g}, {among} "
            f"(validation {100 * best.val_accuracy:.2f} %), test {100 * mean:.2f} %"
        )

    def _tuned(self, batch_size: int, optimizer: str) -> Tuned:
        """Return the best learning rate; where halving is asked for, each seed is for the better half of the last."""
        grid, seeds = self.experiment.grid(optimizer), self.experiment.seed_range(TUNE)
        if not self.experiment.halving:
            return ranked([self._once(TUNE, batch_size, optimizer, lr, seed) for lr in grid for seed in seeds])[0]
        runs: list[Run] = []
        left = list(grid)
        for seed in seeds:
            left = sorted(left[: self.experiment.n_tried(seed)])
            runs += [self._once(TUNE, batch_size, optimizer, lr, seed) for lr in left]
            order = ranked(runs)
            left = [one.lr for one in order]
        return order[0]

    def _once(self, phase: str, batch_size: int, optimizer: str, lr: float, seed: int) -> Run:
        """Return the run from the results file, or train it and add it there."""
        self._progress.update(self._task, description=f"batch {batch_size} {LABELS[optimizer]} lr {lr:g} {phase}")
        found = self._done.get((phase, batch_size, optimizer, lr, seed))
        if found is not None:
            self._progress.advance(self._task)
            return found
        try:
            run, rates = self._train(phase, batch_size, optimizer, lr, seed)
        except torch.OutOfMemoryError:
            raise self.cluster.failure(
                f"`--batch-sizes`: a batch of {batch_size} does not fit into the memory of {self.device}: "
                "leave it out, or give `--micro-batch` a number that does; the finished runs are kept."
            ) from None
        # All go on with the first process's figures, so that they choose the same learning rate.
        return self.cluster.once(lambda: self._keep(run, rates))

    def _keep(self, run: Run, rates: Sequence[RateSample]) -> Run:
        if rates:
            # Before the row: a results file that has the row then has the rates as well.
            write_rates(self.results.path.with_name(RATES), rates)
        self.results.append(run)
        return run

    def _train(
        self, phase: str, batch_size: int, optimizer: str, lr: float, seed: int
    ) -> tuple[Run, tuple[RateSample, ...]]:
        setup = self.experiment
        recipe = Recipe(
            optimizer,
            lr,
            batch_size,
            setup.epochs,
            seed,
            setup.momentum,
            setup.weight_decay,
            setup.threshold,
            setup.eps,
            **setup.choices(),
        )
        recorded = (FINAL, LARS, setup.batch_sizes[-1], setup.seed_range(FINAL)[0])
        record = (phase, optimizer, batch_size, seed) == recorded
        fitted = fit(
            recipe,
            self._splits["train"],
            self.data.n_classes,
            record_rates=record,
            on_epoch=self._epoch_callback(),
            cluster=self.cluster,
        )
        accuracy, loss = evaluate(fitted.network, self._splits["val"], self.cluster)
        # The test split is looked at here only: once for each final run.
        tested = evaluate(fitted.network, self._on_device(self.data.test), self.cluster)[0] if phase == FINAL else None
        steps = n_steps(setup.n_train, batch_size, setup.epochs)
        diverged = fitted.diverged or loss == float("inf")
        run = Run(
            phase,
            batch_size,
            steps,
            optimizer,
            lr,
            seed,
            accuracy,
            loss,
            tested,
            diverged,
            round(fitted.seconds, 3),
            self._machine,
            self._commit,
        )
        return run, fitted.rates

    def _epoch_callback(self) -> Callable[[], None]:
        share = 1 / self.experiment.epochs
        return lambda: self._progress.advance(self._task, share)

    def _on_device(self, split: Split) -> Batch:
        x = torch.from_numpy(split.x).to(self.device, memory_format=torch.channels_last)
        return Batch(x, torch.from_numpy(split.y).to(self.device))
