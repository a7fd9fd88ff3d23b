"""The commands, their options and help."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradient_lars import __version__
from gradient_lars.cli import bench_settings
from gradient_lars.cli.advise_settings import RECIPE_BATCH, RECIPE_LR, AdviseSettings
from gradient_lars.cli.bench_results import check_file
from gradient_lars.cli.bench_workloads import WORKLOADS
from gradient_lars.cli.errors import INTERRUPTED, USAGE, CommandError, require
from gradient_lars.cli.launch import first, launched
from gradient_lars.cli.settings import DIGITS, FSDP2, UNSHARDED, Settings, parse_batch_sizes, parse_learning_rates

app = typer.Typer(
    help="Layer-wise adaptive rate scaling (LARS): compare it with plain SGD on real data, time its step, and see what "
    "is installed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
DEFAULT_OUT = Path("gradient-lars-compare")
_DATA = "`digits` (with scikit-learn, no download), `fashion-mnist` (with --data-dir), or the path of an .npz file."
_RATES = (
    "Learning rates to try: `0.1,0.3` for both, or `sgd:0.1,0.3` and `lars:0.01,0.03` (give the option twice); "
    "as many for one as for the other."
)


@contextmanager
def _mistakes() -> Iterator[None]:
    """Print a `CommandError` as one line on stderr and exit with 2."""
    try:
        yield
    except CommandError as error:
        typer.echo(f"gradient-lars: {error}", err=True)
        raise typer.Exit(USAGE) from None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"gradient-lars {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(
    "compare",
    epilog="""
**Examples**

    gradient-lars compare

    gradient-lars compare --batch-sizes 64,full --seeds 5 --out runs/digits

    gradient-lars compare --data fashion-mnist --data-dir DIR --device cuda

    gradient-lars compare --data mine.npz --learning-rates sgd:0.1,1
    --learning-rates lars:0.01,0.1

    gradient-lars compare --resume

    gradient-lars compare --replot gradient-lars-compare/results.csv

    torchrun --nproc-per-node 8 -m gradient_lars compare --device cuda
""",
)
def compare_command(
    data: Annotated[str, typer.Option(help=_DATA)] = DIGITS,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the four IDX files, gzip or not.")] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(help="Such as `32,256,full`.", show_default="all, and 2^k up to 1/2, 1/4, 1/16"),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split, for every run.")] = 20,
    seeds: Annotated[int, typer.Option(help="Final runs of each optimizer at each batch size.")] = 3,
    learning_rates: Annotated[list[str] | None, typer.Option(help=_RATES, show_default="6 for each")] = None,
    device: Annotated[str, typer.Option(help="Such as `cpu`, `cuda` or `cuda:1`.")] = "cpu",
    threshold: Annotated[float, typer.Option(help="GradientLARS: layers of a smaller norm keep rate 1.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="Of both optimizers.")] = 5e-4,
    eps: Annotated[float, typer.Option(help="GradientLARS: added to the denominator.")] = 1e-9,
    momentum: Annotated[float, typer.Option(help="Of both optimizers.")] = 0.9,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default=str(DEFAULT_OUT))] = None,
    shard: Annotated[
        str,
        typer.Option(
            help=f"Under torchrun: `{FSDP2}` divides each layer among the processes.",
            show_default=f"{UNSHARDED}: all have all of it",
        ),
    ] = UNSHARDED,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted comparison.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again in a used folder.")] = False,
    replot: Annotated[
        Path | None, typer.Option(help="Print and draw a finished comparison again, from its results.csv.")
    ] = None,
) -> None:
    """Train one network at several batch sizes, with SGD and with SGD + GradientLARS, and compare.

    Both get the same data, epochs, warm-up and decay, initial weights, and number of learning rates to choose from on
    a validation split; the test split is used for the final runs only. Prints a table; saves results.csv (one row per
    run), rates.csv (rate of each layer) and plot.png.

    An .npz file holds x_train, y_train, x_test, y_test: images (N, height, width) or, with the channels before the
    height, (N, channels, height, width), labels (N,) of an integer type.

    The processes that torchrun starts share every batch; the batch sizes stay those of all of them together.
    """
    with _mistakes():
        if resume and overwrite:
            raise CommandError("`--resume` and `--overwrite` exclude each other: give one of them.")
        if replot is not None:
            if first():
                _replot(replot, out, other=resume or overwrite)
            return
        settings = Settings(
            data=data,
            data_dir=data_dir,
            batch_sizes=parse_batch_sizes(batch_sizes),
            learning_rates=parse_learning_rates(learning_rates or []),
            epochs=epochs,
            seeds=seeds,
            momentum=momentum,
            weight_decay=weight_decay,
            threshold=threshold,
            eps=eps,
            device=device,
            out=out or DEFAULT_OUT,
            shard=shard,
        )
        _compare(settings, resume=resume, overwrite=overwrite)


def _compare(settings: Settings, *, resume: bool, overwrite: bool) -> None:
    require(
        ["torch", "numpy", "matplotlib", *(["sklearn"] if settings.data == DIGITS else [])],
        "`gradient-lars compare`",
    )
    log = Console(stderr=True, highlight=False)
    try:
        from gradient_lars.cli.compare import compare

        compare(settings, resume=resume, overwrite=overwrite, output=Console(highlight=False), log=log)
    except KeyboardInterrupt:
        if launched():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # torchrun passes on what the terminal may have sent already
        if first():
            log.print("Interrupted. The finished runs are kept: give the same command with `--resume` to go on.")
        raise typer.Exit(INTERRUPTED) from None


def _replot(results: Path, out: Path | None, *, other: bool) -> None:
    if other:
        raise CommandError("`--replot` trains nothing: leave `--resume` and `--overwrite` out.")
    require(["matplotlib"], "`gradient-lars compare --replot`")
    from gradient_lars.cli.files import check_writable, write_errors
    from gradient_lars.cli.report import report

    folder = out or results.parent
    check_writable(folder)
    with write_errors(folder):
        report(results, folder, Console(highlight=False))


@app.command(
    "bench",
    epilog="""
**Examples**

    gradient-lars bench

    gradient-lars bench --workloads resnet18 --implementations lars,open-lars

    gradient-lars bench --device cuda --dtype bfloat16 --plot steps.png

    gradient-lars bench --replot gradient-lars-bench.csv --plot steps.png
""",
)
def bench_command(
    workloads: Annotated[
        str | None,
        typer.Option(help=f"Some of {', '.join(WORKLOADS)}.", show_default="those that suit the device"),
    ] = None,
    implementations: Annotated[
        str | None, typer.Option(help="Such as `lars,sgd-loop`; sgd-fused is always there.", show_default="all")
    ] = None,
    device: Annotated[str, typer.Option(help="Such as `cpu`, `cuda` or `cuda:1`.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help=f"Of parameters, gradients and momentum: {', '.join(bench_settings.DTYPES)}.")
    ] = "float32",
    rounds: Annotated[int, typer.Option(help="Most rounds of each workload.")] = 20,
    seconds: Annotated[float, typer.Option(help="Begin no round of a workload after this time.")] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="CSV to add the results to.", show_default=str(bench_settings.DEFAULT_OUT))
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw what the CSV holds.")] = None,
    replot: Annotated[
        Path | None, typer.Option(help="Measure nothing: print, and draw with --plot, the last runs of this CSV.")
    ] = None,
) -> None:
    """Time the step of LARS beside that of PyTorch's SGD and of every other LARS that is installed.

    The parameter lists are those of well-known networks. All optimizers take turns in one run, a few steps each, so
    that they meet the same disturbances. Prints a table and adds a row for each measurement to a CSV.
    """
    with _mistakes():
        if replot is not None:
            if out is not None:
                raise CommandError("`--replot` writes no results: leave `--out` out.")
            _replot_bench(replot, plot)
            return
        settings = bench_settings.BenchSettings(
            workloads=bench_settings.parse_workloads(workloads),
            implementations=bench_settings.parse_implementations(implementations),
            device=device,
            dtype=dtype,
            rounds=rounds,
            seconds=seconds,
            out=out or bench_settings.DEFAULT_OUT,
            plot=plot,
        )
        _bench(settings)


def _bench(settings: bench_settings.BenchSettings) -> None:
    require(["torch", "numpy", *(["matplotlib"] if settings.plot else [])], "`gradient-lars bench`")
    log = Console(stderr=True, highlight=False)
    try:
        from gradient_lars.cli.bench import bench
        from gradient_lars.cli.bench_report import report

        rows, skipped = bench(settings, log=log)
        report(settings.out, rows, skipped, settings.plot, Console(highlight=False))
    except KeyboardInterrupt:
        log.print("Interrupted. The workloads that were finished are in the results file.")
        raise typer.Exit(INTERRUPTED) from None


def _replot_bench(results: Path, plot: Path | None) -> None:
    require(["matplotlib"] if plot else [], "`gradient-lars bench --plot`")
    from gradient_lars.cli.bench_report import replot

    if plot is not None:
        check_file(plot, "--plot")
    replot(results, plot, Console(highlight=False))


@app.command(
    "advise",
    epilog="""
**Examples**

    gradient-lars advise --data digits

    gradient-lars advise train.py:task --micro-batch 64 --device cuda

    gradient-lars advise mypackage.training:task --steps 600 --out noise.csv

    gradient-lars advise train.py:task --base-lr 2 --base-batch 1024 --epochs 90
""",
)
def advise_command(
    task: Annotated[
        str | None,
        typer.Argument(help="Your function, `module:function` or `path/to/file.py:function`.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Instead of a function: `digits`, or `fashion-mnist` with --data-dir.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the four IDX files, gzip or not.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Training steps to measure.", show_default="those of the epochs, from 90 to 300"),
    ] = None,
    micro_batch: Annotated[int, typer.Option(help="Samples in a small batch, and for batch normalisation.")] = 32,
    micro_batches: Annotated[int, typer.Option(help="Small batches in a step.")] = 8,
    epochs: Annotated[int, typer.Option(help="Of the training to propose for.")] = 20,
    base_lr: Annotated[
        float,
        typer.Option(help="Learning rate of LARS that served at --base-batch; the measured steps use it, scaled."),
    ] = RECIPE_LR,
    base_batch: Annotated[int, typer.Option(help="Batch size of --base-lr.")] = RECIPE_BATCH,
    hessian: Annotated[bool, typer.Option(help="Measure B_noise too, with Hessian-vector products.")] = True,
    device: Annotated[str, typer.Option(help="Such as `cpu`, `cuda` or `cuda:1`.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, samples and intervals.")] = 0,
    out: Annotated[Path | None, typer.Option(help="CSV to write the noise scales to.", show_default="none")] = None,
) -> None:
    """Say up to which batch size more parallelism pays, from a few hundred training steps on your model and data.

    Measures the gradient noise scale (McCandlish et al., arXiv 1812.06162) at the start, middle and end of the steps,
    with error bars, and proposes batch size, learning rate, warm-up and preset of LARS, with the reasons.

    Your function takes nothing and returns (model, data, loss_fn): a torch.nn.Module; a DataLoader, or a Dataset with a
    length; and loss_fn(model, batch), which returns the mean loss of a batch. Samples are drawn with replacement.
    """
    with _mistakes():
        settings = AdviseSettings(
            task=task,
            data=data,
            data_dir=data_dir,
            steps=steps,
            micro_batch=micro_batch,
            micro_batches=micro_batches,
            epochs=epochs,
            base_lr=base_lr,
            base_batch=base_batch,
            hessian=hessian,
            device=device,
            seed=seed,
            out=out,
        )
        needed = ["numpy", *(["sklearn"] if data == DIGITS else [])] if data else []
        require(["torch", *needed], "`gradient-lars advise`")
        log = Console(stderr=True, highlight=False)
        try:
            from gradient_lars.cli.advise import advise

            advise(settings, output=Console(highlight=False), log=log)
        except KeyboardInterrupt:
            log.print("Interrupted. Nothing was written.")
            raise typer.Exit(INTERRUPTED) from None


@app.command("info", epilog="**Example**\n\n    gradient-lars info")
def info_command() -> None:
    """Show the installed versions, the devices, and the path that the hook takes on each."""
    from gradient_lars.cli.info import print_info

    print_info(Console(highlight=False))
