"""The commands beside ``compare``: their options and help."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gradient_lars.cli import bench_settings
from gradient_lars.cli.advise_settings import RECIPE_BATCH, RECIPE_LR, AdviseSettings
from gradient_lars.cli.bench_results import check_file
from gradient_lars.cli.bench_workloads import WORKLOADS
from gradient_lars.cli.errors import INTERRUPTED, CommandError, mistakes, require
from gradient_lars.cli.settings import DIGITS

tools = typer.Typer(rich_markup_mode="markdown")


@tools.command(
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
    with mistakes():
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


@tools.command(
    "inspect",
    epilog="""
**Examples**

    gradient-lars inspect run.csv

    gradient-lars inspect run.csv --html run.html
""",
)
def inspect_command(
    record: Annotated[Path, typer.Argument(metavar="RUN.csv", help="What `Monitor(..., csv=...)` has written.")],
    html: Annotated[Path | None, typer.Option(help="One page with summary and plots, nothing beside it.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG to draw.", show_default="RUN.png beside it; none with --html")
    ] = None,
) -> None:
    """Show what LARS did to each layer of a recorded training, and what is wrong with it.

    Prints one line a layer, and a warning for each fault: layers below the threshold, rates at a bound, norms that are
    zero or not finite, layers that never move, a learning rate far from the recipes, a decay of 0 that makes LARS SGD.
    """
    with mistakes():
        require(["torch", "matplotlib"], "`gradient-lars inspect`")
        from gradient_lars.cli.inspect import inspect

        if plot is None and html is None:
            plot = record.with_suffix(".png")
        inspect(record, plot, html, Console(highlight=False))


@tools.command(
    "variants",
    epilog="""
**Examples**

    gradient-lars variants

    gradient-lars variants --only larc,timm

    gradient-lars variants --out steps.png

    gradient-lars variants --out steps-of-biases.png --bias --lr 0.1
""",
)
def variants_command(
    only: Annotated[str | None, typer.Option(help="Such as `larc,timm`.", show_default="all")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG or SVG to draw the steps to.", show_default="no plot")] = None,
    bias: Annotated[bool, typer.Option("--bias", help="Draw the steps of a bias, not of a weight matrix.")] = False,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of the steps drawn; LARC's clipping goes by it.", show_default="1"),
    ] = None,
) -> None:
    """Show in which settings the published LARS variants differ, and draw the steps they take.

    The settings are those of `gradient_lars.presets`, by the names that `gradient_lars.torch.LARS` has for them. The
    plot has the first step of one layer, relative to its weights, as weight decay, gradient norm and weight norm vary.
    """
    with mistakes():
        from gradient_lars.cli.variants import chosen, print_variants

        shown = chosen(only)
        if out is not None:
            _draw_variants(shown, out, bias=bias, lr=1.0 if lr is None else lr)
        elif bias or lr is not None:
            raise CommandError(f"`{'--bias' if bias else '--lr'}` is of the plot: add `--out PLOT.png`.")
        print_variants(Console(highlight=False), shown)
        if out is not None:
            typer.echo(f"\nPlot: {out}")


def _draw_variants(shown: list[Any], out: Path, *, bias: bool, lr: float) -> None:
    if not (math.isfinite(lr) and lr > 0):
        raise CommandError(f"`--lr` must be > 0 and finite, got {lr:g}: recipes use 0.1 to 30.")
    require(["torch", "numpy", "matplotlib"], "`gradient-lars variants --out`")
    from gradient_lars.cli.variants_plot import check_plot, save_variants_plot

    check_plot(out)
    save_variants_plot(out, shown, bias=bias, lr=lr)


@tools.command(
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
        str | None, typer.Option(help="Instead of a function: `digits`, or `fashion-mnist` (see compare).")
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV if it is there.")] = False,
) -> None:
    """Say up to which batch size more parallelism pays, from a few hundred training steps on your model and data.

    Measures the gradient noise scale (McCandlish et al., arXiv 1812.06162) at the start, middle and end of the steps,
    with error bars, and proposes batch size, learning rate, warm-up and preset of LARS, with the reasons.

    Your function takes nothing and returns (model, data, loss_fn): a torch.nn.Module; a DataLoader, or a Dataset with a
    length; and loss_fn(model, batch), which returns the mean loss of a batch. Samples are drawn with replacement.
    """
    with mistakes():
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
            overwrite=overwrite,
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


@tools.command("info", epilog="**Example**\n\n    gradient-lars info")
def info_command() -> None:
    """Show the installed versions, the devices, and the path that the hook takes on each."""
    from gradient_lars.cli.info import print_info

    print_info(Console(highlight=False))
