"""Runs the comparisons of the study, each with ``gradient-lars compare``; what is finished is not run again.

python study/run.py small --jobs 2         # digits: 2 CPU cores, under 10 minutes
python study/run.py cpu --jobs 3           # Fashion-MNIST, a small network: 2 CPU cores, about two hours
python study/run.py gpu                    # Fashion-MNIST, a VGG-like network: a CUDA device
python study/run.py small --show           # only the commands
"""

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from gradient_lars.cli.report import RATES, RESULTS
from gradient_lars.cli.results import ResultsFile, read_results

DIGITS = "--baseline both --batch-sizes 64,256,full"
# One change at a time of the comparison above, at its largest batch, with more seeds.
VARIED = "--baseline both --batch-sizes full --seeds 5"
VARIATIONS = {
    "as-it-is": "",
    "warm-up-0": "--warm-up 0",
    "warm-up-30": "--warm-up 0.3",
    "polynomial": "--schedule polynomial",
    "cosine": "--schedule cosine",
    "tvlars": "--schedule tvlars",
    "matrices": "--adapt matrices",
    "threshold-1": "--threshold 1",
    "threshold-3": "--threshold 3",
    "lr-in-momentum": "--lr-in-momentum",
    "running-statistics": "--no-recompute-norm",
    "micro-batch-64": "--micro-batch 64",
    "label-smoothing": "--label-smoothing 0.1",
}
FASHION = "--data fashion-mnist --baseline both --tuning-seeds 1"
FASHION_CPU = f"{FASHION} --network medium"
SHORT = (
    f"{FASHION_CPU} --epochs 5 --learning-rates sgd:0.1,0.3,1,3 --learning-rates nesterov:0.1,0.3,1,3 "
    "--learning-rates lars:0.01,0.03,0.1,0.3"
)
LONG = (
    f"{FASHION_CPU} --epochs 80 --bf16 --learning-rates sgd:0.06,0.25,1,4 --learning-rates nesterov:0.06,0.25,1,4 "
    "--learning-rates lars:0.003,0.012,0.048,0.19"
)
FASHION_GPU = (
    f"{FASHION} --network vgg --device cuda --bf16 --batch-sizes 256,8192,16384 --epochs 60 --augment shift-flip "
    "--schedule polynomial --warm-up 0.15 --learning-rates sgd:0.03,0.1,0.3,1,3 "
    "--learning-rates nesterov:0.03,0.1,0.3,1,3 --learning-rates lars:0.003,0.01,0.03,0.1,0.3"
)
GROUPS = {
    "small": {"digits": DIGITS} | {f"digits-{name}": f"{VARIED} {own}".strip() for name, own in VARIATIONS.items()},
    "cpu": {
        "fashion-mnist-80-epochs": f"{LONG} --micro-batch 256 --batch-sizes 256,8192,16384",
        "fashion-mnist-cpu": f"{SHORT} --micro-batch 256 --batch-sizes 256,2048,8192",
        "fashion-mnist-cpu-whole-norm": f"{SHORT} --batch-sizes 8192",
    },
    "gpu": {"fashion-mnist-gpu": FASHION_GPU},
}


@dataclass(frozen=True)
class Comparison:
    """One call of ``gradient-lars compare``."""

    choices: str
    out: Path

    @property
    def arguments(self) -> list[str]:
        """The arguments of the program."""
        return ["compare", *shlex.split(self.choices), "--out", str(self.out), "--resume"]

    @property
    def parts(self) -> "list[Comparison]":
        """This comparison, or if it has several batch sizes one of each."""
        option = re.search(r"--batch-sizes (\S+)", self.choices)
        if option is None or "," not in option[1]:
            return [self]
        folder = self.out.parent / "parts"
        return [
            Comparison(self.choices.replace(option[0], f"--batch-sizes {size}"), folder / f"{self.out.name}-{size}")
            for size in option[1].split(",")
        ]

    def run(self, log: Path | None = None) -> None:
        """Run or resume it; what it prints goes to `log`, if given."""
        command = [sys.executable, "-m", "gradient_lars", *self.arguments]
        if log is None:
            subprocess.run(command, check=True)
            return
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(command, check=False, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            raise OSError(f"{log} ends with\n{log.read_text(encoding='utf-8')[-2000:]}")
        print(f"finished {self.out.name}", flush=True)


def at_once(comparisons: Sequence[Comparison], jobs: int) -> None:
    """Run comparisons `jobs` at a time, each batch size as one of its own, and join their results."""
    new = [one for one in comparisons if not (one.out / RESULTS).exists()]
    with ThreadPoolExecutor(jobs) as pool:
        started = []
        for part in (part for one in new for part in one.parts):
            part.out.parent.mkdir(parents=True, exist_ok=True)
            started.append(pool.submit(part.run, part.out.with_suffix(".log")))
        try:
            for task in started:
                task.result()
        except OSError as error:
            pool.shutdown(cancel_futures=True)
            sys.exit(str(error))
    for one in new:
        if len(one.parts) > 1:
            join([part.out for part in one.parts], one.out)


def join(parts: Sequence[Path], out: Path) -> None:
    """Write the runs of comparisons that differ in their batch sizes alone as one; the rates are those of the last."""
    read = [read_results(part / RESULTS) for part in parts]
    sizes = tuple(size for experiment, _ in read for size in experiment.batch_sizes)
    whole = replace(read[0][0], batch_sizes=sizes)
    for part, (experiment, _) in zip(parts, read, strict=True):
        if replace(experiment, batch_sizes=sizes) != whole:
            sys.exit(f"{part} was run with other settings than {parts[0]}: remove one of them.")
    out.mkdir(parents=True, exist_ok=True)
    results = ResultsFile.create(out / f"{RESULTS}.joining", whole)
    for _, runs in read:
        for run in runs:
            results.append(run)
    (out / RATES).write_bytes((parts[-1] / RATES).read_bytes())
    results.path.replace(out / RESULTS)


def main() -> None:
    """Run or show a group of comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--out", type=Path, default=Path("build/study"), help="folder of the results")
    parser.add_argument("--jobs", type=int, default=1, help="how many comparisons, or batch sizes of one, run at once")
    parser.add_argument("--show", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args()
    comparisons = [Comparison(choices, options.out / name) for name, choices in GROUPS[options.group].items()]
    if options.jobs > 1 and not options.show:
        at_once(comparisons, options.jobs)
    for one in comparisons:
        print(shlex.join(["gradient-lars", *one.arguments]), flush=True)
        if not options.show:
            one.run()


if __name__ == "__main__":
    main()
