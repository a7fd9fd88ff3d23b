"""From runs to the table, its footnotes and its conclusion."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from gradient_lars.cli.plot import save_plot
from gradient_lars.cli.records import Experiment, RateSample, Run
from gradient_lars.cli.summary import choose, conclusion, summarise
from gradient_lars.cli.table import print_report

EXPERIMENT = Experiment(
    data="shapes.npz",
    data_digest="0123456789ab",
    n_train=1024,
    n_val=300,
    n_test=500,
    batch_sizes=(64, 1024),
    sgd_learning_rates=(0.1, 1.0, 10.0),
    lars_learning_rates=(0.01, 0.1, 1.0),
    tuning_seeds=1,
    seeds=2,
    epochs=20,
    momentum=0.9,
    weight_decay=0.0,
    threshold=0.01,
    eps=1e-9,
    device="cpu",
    torch="2.13.0",
    gradient_lars="0.1.0",
)


def tune(lr, accuracy, loss=1.0, batch=64, optimizer="sgd", seed=0):
    return Run("tune", batch, 20480 // batch, optimizer, lr, seed, accuracy, loss, None, False, 1.0)


def cell_runs(batch, optimizer, best, accuracies, **final):
    """Tuning runs of which the one at `best` is the best, and one final run for each accuracy."""
    grid = EXPERIMENT.grid(optimizer)
    runs = [tune(lr, 0.9 if lr == best else 0.5, batch=batch, optimizer=optimizer) for lr in grid]
    plain = Run("final", batch, 20480 // batch, optimizer, best, 0, 0.9, 1.0, 0.0, False, 2.0)
    return runs + [
        replace(plain, seed=seed, test_accuracy=accuracy, **final) for seed, accuracy in enumerate(accuracies, start=1)
    ]


def runs_of(sgd_small, lars_small, sgd_large, lars_large, **final):
    return (
        cell_runs(64, "sgd", 1.0, sgd_small)
        + cell_runs(64, "lars", 0.1, lars_small)
        + cell_runs(1024, "sgd", 10.0, sgd_large, **final)
        + cell_runs(1024, "lars", 0.1, lars_large)
    )


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([tune(0.1, 0.8), tune(1.0, 0.9), tune(10.0, 0.7)], 1.0),
        ([tune(0.1, 0.9, 0.3), tune(1.0, 0.9, 0.2), tune(10.0, 0.8, 0.1)], 1.0),  # a tie: the lower loss
        ([tune(1.0, 0.9, 0.3), tune(0.1, 0.9, 0.3)], 0.1),  # in both: the smaller rate
        ([tune(0.1, 0.9, math.inf), tune(1.0, 0.9, 5.0)], 1.0),
        ([tune(0.1, 0.9, math.inf), tune(1.0, 0.8, 5.0)], 0.1),  # a diverged run counts as measured
        ([tune(0.1, 1.0), tune(0.1, 0.5, seed=1), tune(1.0, 0.8), tune(1.0, 0.8, seed=1)], 1.0),  # the mean over seeds
    ],
)
def test_rate_is_chosen_by_validation_accuracy_then_loss(runs, expected):
    assert choose(runs).lr == expected


def test_final_accuracies_do_not_decide_the_choice():
    runs = runs_of([0.2, 0.2], [0.9, 0.9], [0.1, 0.1], [0.9, 0.9], val_accuracy=0.0)
    assert [cell.lr for cell in summarise(EXPERIMENT, runs)] == [1.0, 0.1, 10.0, 0.1]


def test_cells_hold_mean_deviation_and_edge():
    cells = summarise(EXPERIMENT, runs_of([0.90, 0.94], [0.95, 0.95], [0.8, 0.8], [0.9, 0.9]))
    assert [(cell.batch_size, cell.optimizer, cell.steps) for cell in cells] == [
        (64, "sgd", 320),
        (64, "lars", 320),
        (1024, "sgd", 20),
        (1024, "lars", 20),
    ]
    assert cells[0].mean == pytest.approx(0.92)
    assert cells[0].deviation == pytest.approx(0.02 * math.sqrt(2))
    assert [cell.at_edge for cell in cells] == [False, False, True, False]
    assert cells[0].seconds == 2.0


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (
            ([0.95, 0.96], [0.95, 0.97], [0.80, 0.82], [0.90, 0.91]),
            "At the largest batch (1024, the whole training split) LARS is 9.5 points ahead of SGD. By batch size: "
            "LARS ahead at 1024; level at 64. From its own best batch size to the largest one, SGD loses 14.5 points "
            "and LARS 5.5.",
        ),
        (
            ([0.95, 0.96], [0.80, 0.94], [0.80, 0.82], [0.70, 0.71]),
            "At the largest batch (1024, the whole training split) LARS is 10.5 points behind SGD. By batch size: "
            "SGD ahead at 64, 1024. From its own best batch size to the largest one, SGD loses 14.5 points and LARS "
            "16.5.",
        ),
        (
            ([0.70, 0.70], [0.90, 0.90], [0.90, 0.94], [0.93, 0.99]),
            "At the largest batch (1024, the whole training split) LARS and SGD are level within the spread of the "
            "seeds (difference +4.0 points). By batch size: LARS ahead at 64; level at 1024. From its own best batch "
            "size to the largest one, SGD loses 0.0 points and LARS 0.0.",
        ),
    ],
)
def test_conclusion_is_what_the_numbers_say(accuracies, expected):
    assert conclusion(EXPERIMENT, summarise(EXPERIMENT, runs_of(*accuracies))) == expected


@pytest.mark.parametrize(
    ("sgd", "lars", "expected"),
    [
        ([0.900, 0.900], [0.902, 0.902], "LARS and SGD are level within one test image (difference +0.2 points)."),
        ([0.702, 0.702], [0.700, 0.700], "LARS and SGD are level within one test image (difference -0.2 points)."),
        ([0.900, 0.900], [0.902, 0.904], "LARS is 0.3 points ahead of SGD."),
        ([0.904, 0.904], [0.900, 0.900], "LARS is 0.4 points behind SGD."),
        ([0.900, 0.900], [0.900, 0.900], "LARS and SGD are level within the spread of the seeds (difference +0.0"),
    ],
)
def test_lead_is_more_than_one_of_500_test_images(sgd, lars, expected):
    setup = replace(EXPERIMENT, batch_sizes=(64,))
    text = conclusion(setup, summarise(setup, runs_of(sgd, lars, [], [])[:10]))
    assert text.startswith(f"At the largest batch (64) {expected}")


def test_single_seed_has_differences_and_no_winner():
    setup = replace(EXPERIMENT, seeds=1)
    text = conclusion(setup, summarise(setup, runs_of([0.9], [0.8], [0.1], [0.95])))
    assert text == (
        "At the largest batch (1024, the whole training split) LARS minus SGD is +85.0 points. By batch size: -10.0 at "
        "64, +85.0 at 1024. One seed shows no spread: whether this is more than chance takes several, such as "
        "`--seeds 3`."
    )


THREE = replace(EXPERIMENT, nesterov_learning_rates=(0.1, 1.0, 10.0))


def three_runs(large):
    """Runs of three optimizers, level at 64 and with `large` accuracies at 1024."""
    runs = []
    for batch, of in ((64, [[0.95, 0.96]] * 3), (1024, large)):
        for (optimizer, best), accuracies in zip({"sgd": 1.0, "nesterov": 10.0, "lars": 0.1}.items(), of, strict=True):
            runs += [
                replace(run, optimizer=optimizer)
                for run in cell_runs(batch, "lars" if optimizer == "lars" else "sgd", best, accuracies)
            ]
    return runs


def test_conclusion_sets_lars_against_each_baseline():
    cells = summarise(THREE, three_runs([[0.80, 0.82], [0.92, 0.94], [0.90, 0.91]]))
    assert conclusion(THREE, cells) == (
        "At the largest batch (1024, the whole training split) LARS is 9.5 points ahead of SGD. By batch size: LARS "
        "ahead at 1024; level at 64. At the largest batch (1024, the whole training split) LARS is 2.5 points behind "
        "Nesterov SGD. By batch size: Nesterov SGD ahead at 1024; level at 64. From its own best batch size to the "
        "largest one, SGD loses 14.5 points, Nesterov SGD 2.5 and LARS 5.0."
    )
    one = replace(THREE, seeds=1)
    text = conclusion(one, summarise(one, three_runs([[0.8], [0.9], [0.95]])))
    assert "LARS minus SGD is +15.0 points" in text
    assert "LARS minus Nesterov SGD is +5.0 points" in text
    assert text.count("One seed shows no spread") == 1


def test_table_and_plot_have_a_line_for_every_optimizer(tmp_path, figures):
    runs = three_runs([[0.80, 0.82], [0.92, 0.94], [0.90, 0.91]])
    lines = [line.split() for line in printed(THREE, runs).splitlines()]
    assert ["1024", "20", "SGD", "3", "1", "81.00", "±", "1.41", "2.00"] in lines
    assert ["Nesterov", "SGD", "3", "10*", "93.00", "±", "1.41", "2.00"] in lines
    assert ["LARS", "3", "0.1", "90.50", "±", "0.71", "2.00"] in lines
    save_plot(tmp_path / "plot.png", THREE, summarise(THREE, runs), [])
    labels = [container.get_label() for container in figures[0].axes[0].containers]
    assert labels == ["SGD", "Nesterov SGD", "SGD + GradientLARS"]


def test_choices_that_are_not_the_usual_ones_are_told():
    setup = replace(EXPERIMENT, network="vgg", micro_batch=32, halving=True, tuning_seeds=2)
    flat = " ".join(printed(setup, runs_of([0.9] * 2, [0.9] * 2, [0.8] * 2, [0.9] * 2)).split())
    assert "All of them with network vgg, micro batch 32." in flat
    assert "with 2 other seeds, each further one for the better half, and chosen on" in flat
    assert "5 tuning runs of 20 epochs each" in flat


def test_only_rates_with_every_seed_are_chosen():
    runs = [tune(0.1, 0.95), tune(1.0, 0.9), tune(1.0, 0.8, seed=1), tune(10.0, 0.9), tune(10.0, 0.7, seed=1)]
    assert choose(runs).lr == 1.0
    assert choose(runs[:1]).lr == 0.1


def test_conclusion_of_one_batch_size_is_one_sentence():
    setup = replace(EXPERIMENT, batch_sizes=(64,))
    cells = summarise(setup, runs_of([0.9] * 2, [0.8] * 2, [0.1] * 2, [0.1] * 2))
    assert conclusion(setup, cells) == "At the largest batch (64) LARS is 10.0 points behind SGD."


def printed(experiment, runs, encoding="utf-8", width=80):
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding=encoding)
    print_report(Console(file=text, width=width, highlight=False), experiment, summarise(experiment, runs))
    text.flush()
    return raw.getvalue().decode(encoding)


def test_table_shows_the_numbers_where_lars_loses_as_well():
    text = printed(EXPERIMENT, runs_of([0.95, 0.97], [0.90, 0.90], [0.8, 0.8], [0.9, 0.91]))
    lines = [line.split() for line in text.splitlines()]
    assert ["64", "320", "SGD", "3", "1", "96.00", "±", "1.41", "2.00"] in lines
    assert ["1024", "20", "SGD", "3", "10*", "80.00", "±", "0.00", "2.00"] in lines
    assert lines.count(["LARS", "3", "0.1", "90.00", "±", "0.00", "2.00"]) == 1
    assert lines.count(["LARS", "3", "0.1", "90.50", "±", "0.71", "2.00"]) == 1
    assert all(len(line) <= 80 for line in text.splitlines())
    flat = " ".join(text.split())
    assert "mean and standard deviation over 2 seeds; one of the 500 test images is 0.20 points" in flat
    assert "3 learning rates were tried with 1 other seed and chosen on 300 validation images" in flat
    assert "3 tuning runs of 20 epochs each" in flat
    assert "All of them with" not in flat
    assert "* at the edge of its grid: a better rate may lie outside" in flat
    assert "diverged" not in flat
    assert "SGD ahead at 64" in flat
    assert (
        "better with every seed than the other with any: of two that are alike, one or the other is so in 1 of 3"
        in flat
    )


def test_wide_numbers_still_fit_into_80_columns():
    setup = replace(EXPERIMENT, batch_sizes=(64, 50000), n_train=50000)
    large = [replace(run, batch_size=50000, steps=123456) for run in runs_of([1, 1], [1, 1], [0.1, 1], [0.5, 1])]
    large = [replace(run, seconds=1234.56, diverged=True) for run in large[8:]]
    runs = runs_of([1, 1], [1, 1], [1, 1], [1, 1])[:10] + large[2:]
    assert all(len(line) <= 80 for line in printed(setup, runs).splitlines())


@pytest.mark.parametrize("width", [20, 60, 75, 79])
def test_narrow_terminal_has_the_whole_table(width):
    runs = runs_of([0.95, 0.97], [0.90, 0.90], [0.8, 0.8], [0.9, 0.91])
    table, narrow = (printed(EXPERIMENT, runs, width=columns).splitlines()[:9] for columns in (80, width))
    assert any("0.00" in line and "1024" in line for line in table)
    assert [line.strip() for line in narrow[2:]] == [line.strip() for line in table[2:]]


@pytest.mark.parametrize("name", ["a$x^$.npz", "x[red].npz", "y[/b].npz", ":smile:.npz"])
def test_names_are_no_markup_and_no_mathematics(tmp_path, figures, name):
    setup = replace(EXPERIMENT, data=name)
    runs = runs_of([0.95, 0.97], [0.90, 0.90], [0.8, 0.8], [0.9, 0.91])
    assert f"{name}: 1024 training images, 20 epochs" in printed(setup, runs)
    samples = [RateSample(0, name, 1.0, 1.0, 1.0, True)]
    save_plot(tmp_path / "plot.png", setup, summarise(setup, runs), samples)
    assert figures[0].axes[0].get_title() == f"{name}, 20 epochs, 2 seeds"


def test_table_marks_diverged_runs_and_needs_no_unicode():
    text = printed(EXPERIMENT, runs_of([0.9] * 2, [0.9] * 2, [0.1, 0.1], [0.9] * 2, diverged=True), "ascii")
    lines = [line.replace("|", " ").split() for line in text.splitlines()]
    assert ["1024", "20", "SGD", "3", "10*", "10.00", "+-", "0.00!", "2.00"] in lines
    assert "! with 2 diverged runs, counted as measured" in " ".join(text.split())


def test_one_seed_has_no_spread():
    text = printed(replace(EXPERIMENT, seeds=1), runs_of([0.9], [0.9], [0.8], [0.9], seconds=123.4, diverged=True))
    lines = [line.split() for line in text.splitlines()]
    assert ["64", "320", "SGD", "3", "1", "90.00", "2.00"] in lines
    assert ["1024", "20", "SGD", "3", "10*", "80.00!", "123"] in lines
    assert "Test accuracy: one seed;" in text
    assert "Ahead is" not in text
    assert "! with 1 diverged run, counted" in " ".join(text.split())


def test_rates_inside_their_grids_have_no_mark():
    runs = [run for run in runs_of([0.9] * 2, [0.9] * 2, [0.8] * 2, [0.9] * 2) if run.batch_size == 64]
    assert "*" not in printed(replace(EXPERIMENT, batch_sizes=(64,)), runs)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, instead of their files' pixels."""
    from matplotlib.figure import Figure

    saved = []
    original = Figure.savefig

    def savefig(self, *arguments, **options):
        saved.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_plot_draws_the_numbers(tmp_path, figures):
    cells = summarise(EXPERIMENT, runs_of([0.90, 0.94], [0.95, 0.95], [0.8, 0.8], [0.9, 0.9]))
    samples = [
        RateSample(step, layer, 1.0, 1.0, rate * (step + 1), True)
        for step in range(3)
        for layer, rate in (("conv1.weight", 0.5), ("norm1.bias", 0.0))
    ]
    save_plot(tmp_path / "plot.png", EXPERIMENT, cells, samples)
    accuracy, rates = figures[0].axes
    means = {container.get_label(): list(container[0].get_ydata()) for container in accuracy.containers}
    assert means == {"SGD": pytest.approx([92, 80]), "SGD + GradientLARS": pytest.approx([95, 90])}
    assert [label.get_text() for label in accuracy.get_xticklabels()] == ["64", "1024\n(all)"]
    lines = {line.get_label(): line for line in rates.get_lines()}
    assert list(lines["conv1.weight"].get_ydata()) == [0.5, 1.0, 1.5]
    assert rates.get_yscale() == "log"
    assert all(math.isnan(y) for y in lines["norm1.bias"].get_ydata())  # a rate of zero has no logarithm
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in tmp_path.iterdir()] == ["plot.png"]


def test_plot_without_rates_has_one_panel(tmp_path, figures):
    setup = replace(EXPERIMENT, seeds=1)
    save_plot(tmp_path / "plot.png", setup, summarise(setup, runs_of([0.9], [0.9], [0.8], [0.9])), [])
    assert len(figures[0].axes) == 1
