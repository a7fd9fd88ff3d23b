"""Rows of ``gradient-lars bench`` as a run would make them, and a parameter list of no size."""

from dataclasses import replace

from gradient_lars.cli.bench_results import Environment, Row
from gradient_lars.cli.bench_workloads import Workload

TINY = Workload("tiny", "Tiny", lambda: [(4, 3, 3, 3), (4,), (5, 36), (5,)])

CPU = Environment("2026-01-02T03:04:05Z", "abc1234", "cpu", "A processor", "3.11.0", "2.13.0", "3.9.0", "0.1.0", 2)
GPU = replace(CPU, device="cuda", device_name="A GPU")


def row(implementation="lars", quantity="eager", p50=3.0, *, where=CPU, workload="resnet50", to_sgd=1.5, to_floor=2.0):
    return Row(
        environment=where,
        dtype="float32",
        workload=workload,
        parameters=25557032,
        tensors=161,
        implementation=implementation,
        package="",
        quantity=quantity,
        samples=5,
        p20=round(0.9 * p50, 6),
        p50=p50,
        p80=round(1.2 * p50, 6),
        unit="ms",
        ratio_to_fused_sgd=to_sgd,
        ratio_to_floor=to_floor,
    )


def gpu_run(workload="resnet50"):
    """A run with every quantity; open-lars has no graph."""
    rows = [row("copy", "bandwidth", 3000.0, where=GPU, workload=workload, to_sgd=None, to_floor=None)]
    for name, eager in (("sgd-fused", 2.0), ("lars", 1.0), ("open-lars", 20.0)):
        rows.append(row(name, "eager", eager, where=GPU, workload=workload, to_sgd=eager / 2, to_floor=eager / 0.17))
        rows.append(row(name, "host", eager / 2, where=GPU, workload=workload, to_sgd=eager / 2, to_floor=None))
        rows.append(row(name, "memory", 1.5, where=GPU, workload=workload, to_sgd=None, to_floor=None))
        if name != "open-lars":
            rows.append(row(name, "graph", 0.21, where=GPU, workload=workload, to_sgd=1.03, to_floor=1.24))
    return rows
