"""docs/integrations.md: its blocks run one after the other, in an empty folder, and what they claim holds."""

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- not run: [^\n]* -->\n)?```python\n(.*?)```", PAGE, flags=re.DOTALL)

pytestmark = pytest.mark.filterwarnings("ignore")  # the frameworks' own


@pytest.fixture
def names(tmp_path, monkeypatch, timm_optim):
    """What the page's blocks leave behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["page"])
    namespace = {"__name__": "__main__"}
    for reason, block in BLOCKS:
        if not reason:
            exec(compile(block, "integrations.md", "exec"), namespace)
    return namespace


def test_blocks_run_one_after_the_other(names):
    assert len(BLOCKS) >= 8
    assert all("fit" not in name for name, _ in BLOCKS)
    assert torch.isfinite(names["handle"].rates().rate).all()


def test_every_example_is_on_the_page():
    for script in (ROOT / "examples" / "integrations").glob("*.py"):
        assert f"(../examples/integrations/{script.name})" in PAGE, script.name


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
