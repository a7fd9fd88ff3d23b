"""The page of ``gradient-lars inspect --html``: one file with everything in it, for light and dark screens."""

import base64
import io
import re
from html import escape

from gradient_lars import __version__
from gradient_lars.monitor import Records, Summary, plot_rates
from gradient_lars.monitor._summary import HEADINGS, LEGEND

_PLOTS = (
    ("rate", "map", "Rate of each layer and step"),
    ("rate", "curves", "Rate over the steps"),
    ("g_norm", "curves", "Norm of the gradient over the steps"),
    ("p_norm", "curves", "Norm of the weights over the steps"),
)
_KINDS = {
    "threshold": "Below the threshold",
    "bound": "Rate at a bound",
    "zero_norm": "Norm of zero",
    "not_finite": "Not finite",
    "never_moves": "Does not move",
    "lr": "Learning rate off the recipes",
    "no_decay": "Plain SGD",
}


def page(name: str, records: Records, *, drawable: bool) -> str:
    """Return the page.

    Args:
        name: of the record, for the title.
        records: what to show.
        drawable: whether there is a rate to draw.
    """
    summary = records.summary()
    return _PAGE.format(
        title=escape(name),
        subtitle=escape(summary.title),
        findings=_findings(summary),
        table=_table(summary),
        legend=escape(LEGEND),
        plots="\n".join(_plot(records, *plot) for plot in _PLOTS) if drawable else "",
        version=escape(__version__),
    )


def _findings(summary: Summary) -> str:
    if not summary.findings:
        return '<p class="fine">Nothing to remark.</p>'
    items = [
        f"<li><strong>{escape(_KINDS[finding.kind])}</strong><br>{_code(finding.text)}</li>"
        for finding in summary.findings
    ]
    return f"<ul class='findings'>\n{chr(10).join(items)}\n</ul>"


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(summary: Summary) -> str:
    marked = {layer for finding in summary.findings for layer in finding.layers}
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    lines = []
    for layer, *cells in summary.cells():
        style = " class='marked'" if layer in marked else ""
        body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr{style}><th>{escape(layer)}</th>{body}</tr>")
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>"


def _plot(records: Records, column: str, kind: str, title: str) -> str:
    """Return a figure with two pictures, of which the screen's theme chooses one."""
    try:
        light, dark = (_picture(records, column, kind, dark=dark) for dark in (False, True))
    except ValueError:  # norms of zeros have nothing to draw
        return ""
    return (
        f'<h2>{title}</h2>\n<div class="scroll"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{title}"></picture></div>'
    )


def _picture(records: Records, column: str, kind: str, *, dark: bool) -> str:
    buffer = io.BytesIO()
    plot_rates(records, column, kind=kind, dark=dark).savefig(buffer, format="png", dpi=150)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - gradient-lars inspect</title>
<style>
:root {{ --ink: #1f2328; --ground: #ffffff; --faint: #5c6570; --line: #d8dde3; --mark: #9a5700; --card: #fff6e5;
  --fine: #17693a; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e9ee; --ground: #16191f; --faint: #9aa4b1; --line: #343a44; --mark: #f0b35a; --card: #2b2418;
    --fine: #6fcf97; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; color: var(--ink); background: var(--ground);
  font: 15px/1.5 system-ui, sans-serif; }}
h1 {{ margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ margin: 2rem 0 0.5rem; font-size: 1.1rem; }}
p.subtitle, p.legend, footer {{ color: var(--faint); margin: 0.2rem 0 0; }}
p.legend, footer {{ font-size: 0.87rem; }}
p.legend {{ margin-top: 0.6rem; }}
p.fine {{ color: var(--fine); font-weight: 600; }}
footer {{ margin-top: 2.5rem; }}
ul.findings {{ list-style: none; margin: 0; padding: 0; display: grid; gap: 0.6rem; }}
ul.findings li {{ padding: 0.6rem 0.9rem; background: var(--card); border-left: 4px solid var(--mark);
  border-radius: 4px; overflow-wrap: anywhere; }}
ul.findings strong {{ color: var(--mark); }}
code {{ font-size: 0.92em; }}
.scroll {{ overflow-x: auto; }}
.table {{ max-height: 34rem; overflow: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.9rem; }}
th, td {{ padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }}
th:first-child {{ text-align: left; position: sticky; left: 0; background: var(--ground); }}
tbody th {{ font-weight: 500; }}
@media (max-width: 40rem) {{
  tbody th {{ white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 9rem; }}
}}
thead th {{ position: sticky; top: 0; background: var(--ground); color: var(--faint); font-weight: 600; }}
thead th:first-child {{ z-index: 1; }}
tr.marked th {{ color: var(--mark); }}
img {{ display: block; width: 100%; min-width: 40rem; height: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="subtitle">{subtitle}</p>
<h2>Findings</h2>
{findings}
<h2>Layers</h2>
<div class="table">
{table}
</div>
<p class="legend">{legend}</p>
{plots}
<footer>Made by gradient-lars {version} inspect.</footer>
</body>
</html>
"""
