"""What is on the pages of docs/: their blocks of code, and which of them are not to be run, and why."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Pages whose blocks need more than one process, or are run section by section: the test that runs them.
ELSEWHERE = {
    "distributed.md": "tests/sharded/test_distributed_page.py",
    "integrations.md": "tests/integrations/test_page.py",
}
# Blocks that Sphinx reads, and output.
NOT_CODE = ("{eval-rst}", "{toctree}", "text")

_BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<reason>[^\n]*) -->\n)?(?P<indent> *)```(?P<language>\S+)\n(?P<code>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run, and is None if it is."""

    language: str
    code: str
    line: int
    reason: str | None


def pages():
    """Return the names of all pages, without the folders that Sphinx makes."""
    found = (page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
    return sorted(page for page in found if not page.startswith("_"))


def text_of(page):
    return (DOCS / page).read_text(encoding="utf-8")


def blocks_of(text):
    """Return the blocks of a page in their order."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"], textwrap.dedent(match["code"]), line, match["reason"]))
    return found


def indented_code(text):
    """Return the lines of indented blocks outside of fenced ones: what a reader types into a shell."""
    outside = _BLOCK.sub("", text)
    paragraphs = re.split(r"\n\s*\n", outside)
    return [line.strip() for lines in paragraphs if re.match(r" {4}\S", lines) for line in lines.splitlines()]
