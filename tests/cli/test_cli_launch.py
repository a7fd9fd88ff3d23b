"""The processes of ``torchrun`` one by one: which of them speaks, on which device each trains."""

import io
import sys
import time

import pytest
import torch

from gradient_lars.cli import launch
from gradient_lars.cli.cluster import ALONE
from gradient_lars.cli.errors import CommandError
from gradient_lars.cli.processes import Processes


def test_of_several_failures_the_first_is_told(monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", told)
    store = torch.distributed.HashStore()
    ends = [Processes(rank, 3, "none", store).failure(f"{rank} has no memory left.") for rank in (1, 0, 2)]
    assert [type(end) for end in ends] == [launch.Told, SystemExit, SystemExit]
    assert [end.code for end in ends] == [2, 2, 2]
    assert told.getvalue() == "gradient-lars: 1 has no memory left.\n"


def test_a_failure_is_told_where_the_store_is_lost(monkeypatch):
    told = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", told)

    class Lost:
        def add(self, *arguments):
            raise RuntimeError

    assert isinstance(Processes(1, 2, "none", Lost()).failure("alone."), launch.Told)
    assert told.getvalue() == "gradient-lars: alone.\n"


@pytest.mark.parametrize(
    ("name", "size", "own"), [("cpu", 4, "cpu"), ("cuda", 4, "cuda:3"), ("cuda:1", 1, "cuda:1"), ("cuda", 1, "cuda:3")]
)
def test_each_process_takes_its_own_device(monkeypatch, name, size, own):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Processes(0, size, "none", None).own_device(torch.device(name)) == torch.device(own)
    assert ALONE.own_device(torch.device(name)) == torch.device(name)


def test_one_device_for_several_processes_is_refused():
    with pytest.raises(CommandError, match="`--device cuda:1` is one device for 2 processes: give `cuda`, and each"):
        Processes(0, 2, "none", None).own_device(torch.device("cuda", 1))


@pytest.fixture
def second(monkeypatch):
    """This process as the second of two on its machine; the mistakes that it waits for."""
    waited = []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def test_the_second_process_is_silent_and_lets_the_first_end_before_it(cli, second):
    result = cli("compare", "--epochs", "0")
    assert (result.code, result.out, result.err) == (2, "", "")
    assert len(second) == 1
    assert cli("--version").out == ""
    assert len(second) == 1


def test_the_second_process_draws_nothing(cli, second, tmp_path):
    assert cli("compare", "--replot", tmp_path / "gone.csv").code == 0


def test_what_the_second_process_has_told_it_does_not_wait_for(second):
    with pytest.raises(launch.Told), launch.one_speaks():
        raise launch.Told(2)
    assert second == []


def test_errors_of_ours_are_not_silenced(second, capsys):
    with pytest.raises(ZeroDivisionError), launch.one_speaks():
        1 / 0  # noqa: B018
    print("heard")
    assert capsys.readouterr().out == "heard\n"
