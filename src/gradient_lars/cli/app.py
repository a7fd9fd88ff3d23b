"""The command line: its options of its own, `compare`, and the commands of `tools`."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gradient_lars import __version__
from gradient_lars.cli.errors import INTERRUPTED, CommandError, mistakes, require
from gradient_lars.cli.launch import first, launched
from gradient_lars.cli.recipe import (
    ADAPTED,
    ALL_LAYERS,
    AUGMENTATIONS,
    LINEAR,
    NETWORKS,
    PLAIN,
    SCHEDULES,
    SMALL_NETWORK,
)
from gradient_lars.cli.settings import (
    DIGITS,
    FSDP2,
    SGD,
    UNSHARDED,
    Settings,
    compared,
    parse_batch_sizes,
    parse_learning_rates,
)
from gradient_lars.cli.tools import tools

app = typer.Typer(
    help="Layer-wise adaptive rate scaling (LARS): compare it with plain SGD on real data, time its step, see "
    "what it did to each layer, and what is installed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
DEFAULT_OUT = Path("gradient-lars-compare")
_DATA = (
    "`digits` (with scikit-learn, no download), `fashion-mnist` (Debian's dataset-fashion-mnist, or with --data-dir), "
    "or the path of an .npz file."
)
_RATES = (
    "Learning rates to try: `0.1,0.3` for all, or `sgd:0.1,0.3` and `lars:0.01,0.03` (give the option twice); "
    "as many for one as for the other."
)


def _one_of(what: str, values: tuple[str, ...]) -> str:
    return f"{what}: {', '.join(f'`{value}`' for value in values)}."


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

    gradient-lars compare --data fashion-mnist --device cuda --network vgg --baseline both
    --batch-sizes 256,8192 --schedule polynomial --augment shift-flip --bf16

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
    train_size: Annotated[
        int | None, typer.Option(help="Train on so many of the images only.", show_default="all")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training split, for every run.")] = 20,
    seeds: Annotated[int, typer.Option(help="Final runs of each optimizer at each batch size.")] = 3,
    baseline: Annotated[
        str, typer.Option(help="What LARS is compared with, tuned equally: `sgd`, `nesterov` or `both`.")
    ] = SGD,
    learning_rates: Annotated[list[str] | None, typer.Option(help=_RATES, show_default="6 for each")] = None,
    tuning_seeds: Annotated[int, typer.Option(help="Runs of each learning rate, with other seeds.")] = 2,
    halving: Annotated[
        bool, typer.Option("--halving", help="Each further tuning seed for the better half of the rates only.")
    ] = False,
    network: Annotated[str, typer.Option(help=_one_of("The network", NETWORKS))] = SMALL_NETWORK,
    schedule: Annotated[str, typer.Option(help=_one_of("How the learning rate falls", SCHEDULES))] = LINEAR,
    warm_up: Annotated[float, typer.Option(help="Share of the steps before it falls.")] = 0.1,
    label_smoothing: Annotated[float, typer.Option(help="Of the training loss, in [0, 1).")] = 0.0,
    augment: Annotated[str, typer.Option(help=_one_of("Random changes of the training images", AUGMENTATIONS))] = PLAIN,
    micro_batch: Annotated[
        int,
        typer.Option(
            help="Images at once, for large batches; batch normalisation sees so many.", show_default="the batch"
        ),
    ] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Forward and backward in bfloat16 (autocast).")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Forward and backward compiled by torch.compile: worth it in long runs.")
    ] = False,
    recompute_norm: Annotated[
        bool, typer.Option(help="Recompute the statistics of batch normalisation after training.")
    ] = True,
    device: Annotated[str, typer.Option(help="Such as `cpu`, `cuda` or `cuda:1`.")] = "cpu",
    adapt: Annotated[str, typer.Option(help=_one_of("GradientLARS: the layers it rescales", ADAPTED))] = ALL_LAYERS,
    lr_in_momentum: Annotated[
        bool, typer.Option("--lr-in-momentum", help="GradientLARS: the learning rate inside the momentum (the paper).")
    ] = False,
    threshold: Annotated[float, typer.Option(help="GradientLARS: layers of a smaller norm keep rate 1.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(help="Of all optimizers.")] = 5e-4,
    eps: Annotated[float, typer.Option(help="GradientLARS: added to the denominator.")] = 1e-9,
    momentum: Annotated[float, typer.Option(help="Of all optimizers.")] = 0.9,
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

    All get the same data, epochs, warm-up and decay, initial weights, and number of learning rates to choose from on
    a validation split; the test split is used for the final runs only. Prints a table; saves results.csv (one row per
    run), rates.csv (rate of each layer) and plot.png.

    An .npz file holds x_train, y_train, x_test, y_test: images (N, height, width) or, with the channels before the
    height, (N, channels, height, width), labels (N,) of an integer type.

    The processes that torchrun starts share every batch; the batch sizes stay those of all of them together.
    """
    with mistakes():
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
            learning_rates=parse_learning_rates(learning_rates or [], compared(baseline)),
            epochs=epochs,
            seeds=seeds,
            momentum=momentum,
            weight_decay=weight_decay,
            threshold=threshold,
            eps=eps,
            device=device,
            out=out or DEFAULT_OUT,
            shard=shard,
            train_size=train_size,
            tuning_seeds=tuning_seeds,
            halving=halving,
            network=network,
            schedule=schedule,
            warm_up=warm_up,
            label_smoothing=label_smoothing,
            augment=augment,
            micro_batch=micro_batch,
            bf16=bf16,
            compiled=compiled,
            recompute_norm=recompute_norm,
            adapt=adapt,
            lr_in_momentum=lr_in_momentum,
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


app.add_typer(tools)
