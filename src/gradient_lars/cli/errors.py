"""What the command line tells its user when something is wrong."""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
USAGE = 2


class CommandError(Exception):
    """A mistake of the user's: its text is printed as it is, without a traceback, and the exit code is 2."""


@contextmanager
def mistakes() -> Iterator[None]:
    """Print a `CommandError` as one line on stderr and exit with 2."""
    import typer

    try:
        yield
    except CommandError as error:
        typer.echo(f"gradient-lars: {error}", err=True)
        raise typer.Exit(USAGE) from None


def require(packages: Iterable[str], purpose: str) -> None:
    """Raise `CommandError` naming those of `packages` (import names) that are not installed.

    Args:
        packages: import names of top-level packages; they are looked up, not imported.
        purpose: what needs them, for the message.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"{purpose} needs {', '.join(f'`{name}`' for name in missing)}, not installed here: "
            "install with `pip install 'gradient-lars[cli]'`."
        )
