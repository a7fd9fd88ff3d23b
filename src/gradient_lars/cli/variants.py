"""``gradient-lars variants``: in which settings the published variants differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradient_lars import presets
from gradient_lars.cli.errors import CommandError
from gradient_lars.presets import Preset

# The settings of a preset in the order of the table: numbers, then where and when the rate acts.
MEANINGS = {
    "trust_coefficient": "factor of the rate; the paper's eta",
    "weight_decay": "of the recipe, or the source's default",
    "momentum": "of the recipe, or the source's default",
    "dampening": "of what enters the momentum",
    "nesterov": "Nesterov momentum",
    "threshold": "a layer is adapted if its weight norm is above",
    "eps": "added to what the ratio divides by",
    "norm_of": "what the ratio divides by: 'gradient' its norm and the decay's, 'decayed' the norm of both together",
    "zero_gradient_rate": "rate where the gradient is zero; None: the formula's; 0: no decay there either",
    "adapt": "which layers are adapted; None: those of two dimensions or more",
    "decay_excluded": "whether layers that are not adapted keep their decay",
    "adapt_without_decay": "False: without weight decay it is plain SGD",
    "trust_clip": "LARC's clipping: rate * lr is at most lr",
    "lr_in_momentum": "lr acts before the momentum (True) or after it",
    "dampen_first_step": "dampening acts in the first step too",
}
_GAP = 2


def chosen(only: str | None) -> list[Preset]:
    """Read ``larc,timm``; None gives all presets.

    Raises:
        CommandError: a name is no preset's, or there is none.
    """
    if only is None:
        return [presets.named(name) for name in presets.names()]
    names = list(dict.fromkeys(name.strip() for name in only.split(",") if name.strip()))
    if not names:
        raise CommandError(f"`--only` is an empty list: give some of {', '.join(presets.names())}.")
    for name in names:
        if name not in presets.names():
            raise CommandError(f"`--only` has the item `{name}`: the variants are {', '.join(presets.names())}.")
    return [presets.named(name) for name in names]


def differing(shown: Sequence[Preset]) -> list[str]:
    """Return the settings in which the presets differ; of a single one all."""
    if len(shown) == 1:
        return list(MEANINGS)
    return [setting for setting in MEANINGS if len({preset[setting] for preset in shown}) > 1]


def print_variants(output: Console, shown: Sequence[Preset]) -> None:
    """Print the table, what its columns mean, and of a few variants what they are."""
    settings = differing(shown)
    if len(shown) == 1:
        output.print(_of_one(shown[0]))
    else:
        for table in _tables(output, shown, settings):
            output.print(table)
            output.print()
        if settings:
            output.print(_meanings(settings))
        else:
            output.print("They have the same settings.")
    if len(shown) < len(presets.names()):
        for preset in shown:
            output.print()
            output.print(Text(f"{preset.name}: {preset.about}"))
            output.print(Text(f"Learning rate: {preset.lr}."))
            output.print(Text(f"Source: {preset.source}."))


def cell(value: Any) -> str:
    """Return a setting as Python writes it, numbers short."""
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def _tables(output: Console, shown: Sequence[Preset], settings: Sequence[str]) -> list[Table]:
    """Return as many tables as it takes for none to be wider than the console, about as wide each."""
    first = max(len("variant"), *(len(preset.name) for preset in shown))
    widths = {
        setting: _GAP + max(*map(len, _heading(setting)), *(len(cell(preset[setting])) for preset in shown))
        for setting in settings
    }
    room = output.width - first
    count = len(_packed(widths, room))
    while room > max(widths.values(), default=room) and len(_packed(widths, room - 1)) == count:
        room -= 1
    return [_table(shown, part) for part in _packed(widths, room)]


def _packed(widths: Mapping[str, int], room: int) -> list[list[str]]:
    """Return the settings in their order, in lists whose widths are at most `room` together."""
    packed: list[list[str]] = []
    left = 0
    for setting, width in widths.items():
        if not packed or width > left:
            packed.append([])
            left = room
        packed[-1].append(setting)
        left -= width
    return packed


def _table(shown: Sequence[Preset], settings: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("variant", no_wrap=True, vertical="bottom")
    for setting in settings:
        table.add_column("\n".join(_heading(setting)), no_wrap=True, justify="right", vertical="bottom")
    for preset in shown:
        table.add_row(preset.name, *(cell(preset[setting]) for setting in settings))
    return table


def _heading(setting: str) -> list[str]:
    """Return the name in lines that end in an underscore."""
    *parts, last = setting.split("_")
    lines = [f"{part}_" for part in parts] + [last]
    # "lr_in_", "norm_of" and the like stay together.
    joined = lines[:1]
    for line in lines[1:]:
        if len(joined[-1]) + len(line) <= 8:
            joined[-1] += line
        else:
            joined.append(line)
    return joined


def _meanings(settings: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, _GAP, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for setting in settings:
        table.add_row(setting, MEANINGS[setting])
    return table


def _of_one(preset: Preset) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("setting", "value", "meaning"):
        table.add_column(heading, no_wrap=heading != "meaning")
    for setting, meaning in MEANINGS.items():
        table.add_row(setting, cell(preset[setting]), meaning)
    return table
