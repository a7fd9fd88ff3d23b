"""Where records go: files, TensorBoard, loggers, tables and plots; and what reading refuses."""

import sys

import pyarrow.parquet
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from gradient_lars.monitor import Monitor, Record, Records, plot_rates, read
from gradient_lars.monitor._records import COLUMNS
from monitor.networks import layers, recipe, train

NAN, INF = float("nan"), float("inf")


@pytest.fixture
def monitor():
    named = layers()
    optimizer = recipe(named)
    with Monitor(optimizer) as monitor:
        train(optimizer, named, 4)
    return monitor


ROWS = [
    Record(0, "a", 1.0, 2.0, 0.5, True, 0.1, 1.0, 0.0, 0.01, ""),
    Record(0, 'b "quoted", long', 3.0, INF, 0.0, False, NAN, 1.0, 0.0, INF, "adapt"),
    Record(5, "a", NAN, 1e-30, 1.0, False, INF, 1.0, 1e-4, 0.01, ""),
]


def same(rows, others):
    return [str(row) for row in rows] == [str(row) for row in others]


def test_csv_and_back(tmp_path):
    Records(ROWS).to_csv(tmp_path / "run.csv")
    assert same(read(tmp_path / "run.csv"), ROWS)
    assert (tmp_path / "run.csv").read_text().splitlines()[0].split(",") == list(COLUMNS)
    assert [file.name for file in tmp_path.iterdir()] == ["run.csv"]


def test_parquet(monitor, tmp_path):
    monitor.to_parquet(tmp_path / "run.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "run.parquet")
    assert table.column_names == list(COLUMNS)
    assert [str(table.schema.field(name).type) for name in ("step", "p_norm", "adapted")] == ["int64", "double", "bool"]
    rows = [Record(**row) for row in table.to_pylist()]
    assert rows == list(monitor.records())
    Records([]).to_parquet(tmp_path / "none.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_tensorboard(monitor, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        monitor.to_tensorboard(writer)
        monitor.to_tensorboard(writer)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    scalars = events.Scalars("lars/rate/dense.weight")
    expected = [(row.step, row.rate) for row in monitor.records() if row.layer == "dense.weight"]
    assert [(scalar.step, scalar.value) for scalar in scalars] == expected
    assert len(events.Tags()["scalars"]) == 3 * 4


class Logger:
    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step):
        self.logged.append((step, metrics))


def test_a_logger_gets_every_step_once():
    named = layers()
    optimizer = recipe(named)
    monitor, logger, other = Monitor(optimizer), Logger(), Logger()
    named[0][1].requires_grad_(False)
    train(optimizer, named[1:], 2)
    monitor.to_logger(logger)
    train(optimizer, named[1:], 2, start=2)
    monitor.to_logger(logger)
    monitor.to_logger(other)
    assert logger.logged == other.logged
    assert [step for step, _ in logger.logged] == [0, 1, 2, 3]
    rows = [row for row in monitor.records() if row.step == 3]
    names = ("rate", "p_norm", "g_norm", "update")
    expected = {f"lars/{name}/{row.layer}": getattr(row, name) for row in rows for name in names}
    assert logger.logged[-1] == (3, expected)
    with pytest.raises(TypeError, match="`logger` must have a method `log_metrics`, got int. Lightning's loggers have"):
        monitor.to_logger(3)


@pytest.mark.parametrize(
    ("package", "call", "match"),
    [
        ("pyarrow", lambda records: records.to_parquet("x"), "`to_parquet` needs pyarrow, not installed here"),
        ("matplotlib", plot_rates, "`plot_rates` needs matplotlib, not installed here"),
    ],
)
def test_missing_packages(monkeypatch, package, call, match):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=match):
        call(Records(ROWS))


HEAD = "step,layer,p_norm,g_norm,rate,adapted\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty. Give the CSV that a monitor has written"),
        ("step,layer,rate\n0,a,1\n", "is not a record of LARS: it has no column `p_norm`, `g_norm`, `adapted`"),
        (HEAD, "holds no row. Record a step first"),
        (HEAD + "0,a,1,1,1,true", "holds no row"),
        (HEAD + "0,a,1,1,1,true\n1,a,1,x,1,true\n", "line 3 is damaged (could not convert string to float: 'x')"),
        (HEAD + "0,a,1,1,1\n", "line 2 is damaged (5 cells, where there are 6 columns)"),
        (HEAD + "0.5,a,1,1,1,true\n", "line 2 is damaged (invalid literal for int()"),
        (HEAD + "0,a,1,1,1,yes\n", "line 2 is damaged (`adapted` is 'yes', neither true nor false). Remove that line"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not a text file"),
    ],
)
def test_what_reading_refuses(tmp_path, text, match):
    path = tmp_path / "run.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is looked at
        read(path)
    assert match in str(raised.value)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb", "a\r\nb", "a\rb", "größe", "重み", "", " = "])
def test_odd_names(tmp_path, name):
    records = Records([Record(step, name, 1.0, 2.0, 0.5, True) for step in range(2)])
    records.to_csv(tmp_path / "run.csv")
    assert [(row.step, row.layer) for row in read(tmp_path / "run.csv")] == [(0, name), (1, name)]


def test_a_file_cut_anywhere(tmp_path):
    path = tmp_path / "run.csv"
    Records([Record(step, "重み,1", 1.0, 2.0, 0.5, True) for step in range(2)]).to_csv(path)
    whole = path.read_bytes()
    last = whole.index(b"\n1,") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        assert read(path).steps == (0,)


def test_a_file_without_settings_is_read(tmp_path):
    """The rates that `gradient-lars compare` saves have no learning rate."""
    (tmp_path / "rates.csv").write_text(HEAD + "0,a,1.5,3,0.5,true\n0,b,0,1,1,False\n")
    first, second = read(tmp_path / "rates.csv")
    assert same([first], [Record(0, "a", 1.5, 3.0, 0.5, True)])
    assert (second.adapted, second.held_by) == (False, "")
    assert "-" in str(read(tmp_path / "rates.csv").summary())


def test_unknown_columns():
    with pytest.raises(ValueError, match="`column` must be one of 'p_norm', 'g_norm', .* got 'layer'"):
        Records(ROWS).matrix("layer")
    with pytest.raises(ValueError, match="`column` must be one of 'rate', .* got 'lr'"):
        plot_rates(Records(ROWS), "lr")
    with pytest.raises(ValueError, match="`kind` must be one of 'both', 'map', 'curves', got 'pie'"):
        plot_rates(Records(ROWS), kind="pie")
    with pytest.raises(ValueError, match="`source` has no `rate` above 0 to draw. Record a step with gradients first"):
        plot_rates(Records([]))


def test_summary_of_nothing():
    summary = Records([]).summary()
    assert (summary.layers, summary.findings, summary.steps) == ([], [], None)
    assert "no step recorded" in str(summary)
    assert "Nothing to judge yet" in str(summary)


def test_summary_figures():
    rows = [
        Record(step, "a", 1.0 + step, 2.0, rate, step > 0, rate / 10, 1.0, 0.0, 0.0, "")
        for step, rate in enumerate([4.0, 1.0, 2.0])
    ]
    (line,) = Records(rows).summary().layers
    assert line == ("a", 3, 3.0, 2.0, 2.0, 1.0, 4.0, 0.2, pytest.approx(2 / 3))


def test_plain_and_rich_tables(monitor):
    summary = monitor.summary()
    assert "3 layers, 4 steps recorded from 0 to 3" in str(summary)
    assert "dense.weight" in str(summary)
    assert str(summary).endswith("Nothing to remark.")
    for width, wide in ((80, False), (120, True)):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
        with console.file:
            console.print(summary)
            text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert ("from" in text.splitlines()[2]) is wide
        assert "Nothing to remark." in text


@pytest.mark.parametrize("kind", ["both", "map", "curves"])
@pytest.mark.parametrize("dark", [False, True])
def test_plots(monitor, tmp_path, kind, dark):
    figure = plot_rates(monitor, kind=kind, dark=dark)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == (2 if kind == "both" else 1)
    ground = sum(figure.get_facecolor()[:3]) / 3
    assert (ground < 0.2) is dark
    figure.savefig(tmp_path / "rates.png")
    if kind == "map":
        (mesh,) = figure.axes[0].collections
        drawn = torch.tensor(mesh.get_array().filled(NAN))
        assert torch.equal(drawn, monitor.records().matrix("rate"))
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(monitor.records().layers)
    if kind == "curves":
        lines = [line.get_ydata().tolist() for line in figure.axes[0].lines]
        assert lines == monitor.records().matrix("rate").tolist()


def test_plot_of_many_layers_with_gaps_and_odd_names(tmp_path):
    names = [f"blocks.{i}.a_rather_long_name_$of$_a_layer.weight" for i in range(130)]
    rows = [
        Record(7 * step, name, 1.0, 1.0, [0.0, NAN, INF, 10.0 ** -(i % 9)][(i + step) % 4], True)
        for step in range(3)
        for i, name in enumerate(names)
    ]
    figure = plot_rates(Records(rows))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 33
    assert max(map(len, labels)) == 32
    figure.savefig(tmp_path / "many.png")


def test_plot_of_one_step_and_one_rate(tmp_path):
    plot_rates(Records(ROWS[:1])).savefig(tmp_path / "one.png")
