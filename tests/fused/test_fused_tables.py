"""What the kernels are told, without them: the table, what of it is sent, and which tensors it can describe."""

import struct

import pytest
import torch

from gradient_lars.torch import LARS
from gradient_lars.torch import _fused_tables as tables
from gradient_lars.torch._fused_tables import COLUMNS, SETTINGS, Column, Setting, Switch, Table

CPU = torch.device("cpu")


def _table(layers=6, groups=2):
    columns = [[100 * c + i for i in range(layers)] for c in range(COLUMNS)]
    return Table(columns, [[-g] * SETTINGS for g in range(groups)], CPU)


def test_the_table_holds_columns_and_then_settings():
    values = _table().on_device(capturing=False).tolist()
    assert values[:6] == [0, 1, 2, 3, 4, 5]
    assert values[6 * Column.GRAD : 6 * Column.GRAD + 6] == [900, 901, 902, 903, 904, 905]
    assert values[6 * COLUMNS :] == [0] * SETTINGS + [-1] * SETTINGS


def test_only_what_changed_is_sent():
    table = _table()
    on_device = table.on_device(capturing=False)
    assert table.sent == 0
    table.set_column(Column.GRAD, [900, 901, 902, 903, 904, 905])
    assert table.on_device(capturing=False) is on_device
    assert table.sent == 0
    table.set_column(Column.GRAD, [900, 1, 902, 3, 904, 905])
    table.on_device(capturing=False)
    assert table.sent == 3
    table.set_column(Column.GRAD, [900, 1, 902, 3, 904, 9])
    table.set_settings(0, [7] * SETTINGS)
    values = table.on_device(capturing=False).tolist()
    assert values[6 * Column.GRAD :] == [900, 1, 902, 3, 904, 9] + [7] * SETTINGS + [-1] * SETTINGS
    assert table.sent == 3 + 1 + SETTINGS


def test_a_captured_table_is_never_written_again():
    table = _table()
    eager = table.on_device(capturing=False)
    # Nothing has changed: the graph may read the table there is, and later changes go to another.
    captured = table.on_device(capturing=True)
    assert captured is eager
    before = captured.tolist()
    table.set_column(Column.GRAD, [1, 2, 3, 4, 5, 6])
    later = table.on_device(capturing=False)
    assert captured.tolist() == before
    assert later.tolist()[6 * Column.GRAD :][:6] == [1, 2, 3, 4, 5, 6]
    # The gradients have moved again before the next capture.
    table.set_column(Column.GRAD, [6, 5, 4, 3, 2, 1])
    second = table.on_device(capturing=True)
    assert second is not later
    assert second.tolist()[6 * Column.GRAD :][:6] == [6, 5, 4, 3, 2, 1]
    # What was copied within the graph has not happened yet: outside it is sent once more.
    assert table.on_device(capturing=False).tolist() == second.tolist()
    table.set_column(Column.GRAD, [0, 0, 0, 0, 0, 0])
    table.on_device(capturing=False)
    assert second.tolist()[6 * Column.GRAD :][:6] == [6, 5, 4, 3, 2, 1]


def test_the_row_of_a_group():
    group = LARS(
        [torch.nn.Parameter(torch.ones(1))], 0.5, dampening=0.25, weight_decay=0.125, max_rate=3.0
    ).param_groups[0]
    row = tables.settings_row(group, 0.1)
    assert len(row) == SETTINGS
    as_float = {s: struct.unpack("d", struct.pack("q", row[s]))[0] for s in Setting if s != Setting.SWITCHES}
    assert as_float[Setting.LR] == 0.1
    assert as_float[Setting.KEEP] == 0.75
    assert as_float[Setting.WEIGHT_DECAY] == 0.125
    assert as_float[Setting.MAX_RATE] == 3.0
    assert row[Setting.LR_ADDRESS] == 0
    assert row[Setting.SWITCHES] == Switch.LR_IN_MOMENTUM
    lr = torch.tensor(0.1, dtype=torch.float64)
    row = tables.settings_row({**group, "maximize": True, "lr_in_momentum": False}, lr)
    assert row[Setting.LR_ADDRESS] == lr.data_ptr()
    assert row[Setting.SWITCHES] == Switch.MAXIMIZE | Switch.LR_IS_DOUBLE


@pytest.mark.parametrize(
    ("numel", "expected"),
    [
        (0, (1, 1)),
        (1, (1, 1)),
        (8192, (1, 1)),
        (8193, (2, 1)),
        (8192 * 2048, (2048, 1)),
        (8192 * 2048 + 1, (1025, 2)),
        (2**31 + 5, (1025, 256)),
        (2**36, (2048, 2**36 // 8192 // 2048)),
    ],
)
def test_chunks(numel, expected):
    chunks, span = tables.chunks_of(numel)
    assert (chunks, span) == expected
    assert 1 <= chunks <= tables.MOST_CHUNKS
    assert (chunks - 1) * span * tables.CHUNK < max(numel, 1) <= chunks * span * tables.CHUNK


DENSE = torch.empty(4, 3, 5, 6)


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (DENSE, True),
        (DENSE.contiguous(memory_format=torch.channels_last), True),
        (DENSE.permute(2, 0, 3, 1), True),
        (DENSE[1:], True),
        (DENSE[:, 1:], False),
        (DENSE[..., ::2], False),
        (DENSE[:, :1, :1, :1], False),
        (DENSE[:1, 1:2], True),
        (torch.empty(3).expand(4, 3), False),
        (torch.empty(1).expand(4, 1), False),
        (torch.empty(1, 1).expand(1, 1), True),
        (torch.empty(()), True),
        (torch.empty(0, 3), True),
        (torch.empty(8)[::2][:0], True),
        (torch.empty(8).as_strided((2, 3), (3, 2)), False),
    ],
)
def test_dense(tensor, dense):
    assert tables.is_dense(tensor) is dense
    addresses = {sum(i * s for i, s in zip(index, tensor.stride(), strict=True)) for index in _indices(tensor.shape)}
    assert dense is (len(addresses) == tensor.numel() and (max(addresses, default=-1) == tensor.numel() - 1))


def _indices(shape):
    return [()] if not shape else [(i, *rest) for i in range(shape[0]) for rest in _indices(shape[1:])]


def test_same_order():
    channels_last = DENSE.contiguous(memory_format=torch.channels_last)
    assert tables.same_order(DENSE, torch.empty_like(DENSE))
    assert not tables.same_order(DENSE, channels_last)
    assert not tables.same_order(DENSE, DENSE.view(4, 3, 30))
    # Where a dimension has one entry its stride is never used.
    assert tables.same_order(torch.empty(4, 1).as_strided((4, 1), (1, 7)), torch.empty(4, 1))
    assert not tables.same_order(torch.empty(3).expand(4, 3), torch.empty(4, 3))


def test_few_bytes_beyond_parameters_gradients_and_momentum():
    # 1 MB per 2 billion bytes of parameters: an index and three sums per chunk of 8192 entries of four bytes.
    assert (4 + 3 * 4) / (tables.CHUNK * 4) <= 1e6 / 2e9
