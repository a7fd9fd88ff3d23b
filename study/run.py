"""Runs the comparisons of the study, each with ``gradient-lars compare``; what is finished is not run again.

python study/run.py small                  # digits: 2 CPU cores, under 10 minutes
python study/run.py cpu                    # Fashion-MNIST, a small network: one CPU core, about an hour
python study/run.py gpu                    # Fashion-MNIST, a VGG-like network: a CUDA device
python study/run.py small --show           # only the commands
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

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
FASHION_CPU = (
    f"{FASHION} --network medium --epochs 5 --learning-rates sgd:0.1,0.3,1,3 --learning-rates nesterov:0.1,0.3,1,3 "
    "--learning-rates lars:0.01,0.03,0.1,0.3"
)
FASHION_GPU = (
    f"{FASHION} --network vgg --device cuda --bf16 --batch-sizes 256,8192,16384 --epochs 60 --augment shift-flip "
    "--schedule polynomial --warm-up 0.15 --learning-rates sgd:0.03,0.1,0.3,1,3 "
    "--learning-rates nesterov:0.03,0.1,0.3,1,3 --learning-rates lars:0.003,0.01,0.03,0.1,0.3"
)
GROUPS = {
    "small": {"digits": DIGITS} | {f"digits-{name}": f"{VARIED} {own}".strip() for name, own in VARIATIONS.items()},
    "cpu": {
        "fashion-mnist-cpu": f"{FASHION_CPU} --micro-batch 256 --batch-sizes 256,2048,8192",
        "fashion-mnist-cpu-whole-norm": f"{FASHION_CPU} --batch-sizes 8192",
    },
    "gpu": {"fashion-mnist-gpu": FASHION_GPU},
}


def main() -> None:
    """Run or show a group of comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--out", type=Path, default=Path("build/study"), help="folder of the results")
    parser.add_argument("--show", action="store_true", help="print the commands and run nothing")
    options = parser.parse_args()
    for name, choices in GROUPS[options.group].items():
        arguments = ["compare", *shlex.split(choices), "--out", str(options.out / name), "--resume"]
        print(shlex.join(["gradient-lars", *arguments]), flush=True)
        if not options.show:
            subprocess.run([sys.executable, "-m", "gradient_lars", *arguments], check=True)


if __name__ == "__main__":
    main()
