"""docs/integrations.md: its blocks run, section by section, in an empty folder, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}


def blocks(section):
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], flags=re.DOTALL)


pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_runs_without_the_others(section, tmp_path, monkeypatch, timm_optim):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    assert blocks(section)
    for block in blocks(section):
        exec(compile(block, "integrations.md", "exec"), names)
    if "handle" in names:
        assert torch.isfinite(names["handle"].rates().rate).all()


def test_every_framework_has_a_section():
    listed = re.findall(r"^\| \[([^]]+)\]\(#([^)]+)\)", PAGE, flags=re.MULTILINE)
    assert [name for name, _ in listed] == list(SECTIONS)[1:]
    for name, anchor in listed:
        assert anchor == name.lower().replace(" ", "-").replace(".", "")


def test_every_example_is_on_the_page():
    for script in (ROOT / "examples" / "integrations").glob("*.py"):
        assert f"(../examples/integrations/{script.name})" in PAGE, script.name


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
