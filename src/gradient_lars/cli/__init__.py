"""The command line ``gradient-lars``: ``compare``, ``bench``, ``advise`` and ``info``."""

import sys

from gradient_lars.cli.launch import one_speaks

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point of the console script ``gradient-lars``.

    Exit code 0 for success, 2 for a mistake of the user's, 130 for an interrupted run. Of the processes that
    ``torchrun`` starts on one machine the first speaks, and the others are silent.
    """
    with one_speaks():
        _run()


def _run() -> None:
    try:
        from gradient_lars.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.stderr.write(
            f"gradient-lars: the command line needs the package `{error.name}`: "
            "install it with `pip install 'gradient-lars[cli]'`.\n"
        )
        raise SystemExit(2) from None
    app(prog_name="gradient-lars")
