"""Every block of code on every page runs, in the order of the page, in an empty folder."""

import re
import shlex
import sys

import numpy as np
import pytest

from docs.pages import DOCS, ELSEWHERE, NOT_CODE, ROOT, blocks_of, indented_code, pages, text_of
from gradient_lars.cli import main

# What makes a command quick. typer takes the last of an option that is given twice.
_RATES = ["--learning-rates", "sgd:0.1", "--learning-rates", "lars:0.01"]
QUICK = {
    "compare": ["--epochs", "1", "--seeds", "1", "--batch-sizes", "full", *_RATES],
    "bench": ["--rounds", "1", "--seconds", "1"],
    "info": [],
    "advise": ["--steps", "30", "--micro-batches", "2"],
    "variants": [],
}
# What a page claims of the numbers that its blocks compute.
CLAIMS = {
    "start.md": lambda names: min(names["accuracy"], names["accuracy_of_lars"]) > 0.9,
}
PAGES = [page for page in pages() if page not in ELSEWHERE]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder but for mine.npz, small images as `compare` takes them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(7)
    arrays = {f"x_{part}": rng.normal(size=(n, 8, 8)).astype(np.float32) for part, n in (("train", 96), ("test", 32))}
    arrays |= {f"y_{part}": np.arange(n) % 2 for part, n in (("train", 96), ("test", 32))}
    np.savez("mine.npz", **arrays)
    return tmp_path


def _commands(code):
    return [line.split("#")[0].strip() for line in code.replace("\\\n", "").splitlines() if line.split("#")[0].strip()]


def _run_command(command, monkeypatch):
    program, *arguments = shlex.split(command)
    assert program == "gradient-lars", f"{command!r} is not run: mark the block, with a reason."
    monkeypatch.setattr(sys, "argv", [program, *arguments, *QUICK[arguments[0]]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, command


def _run(page, text, monkeypatch):
    namespace = {"__name__": "__main__"}
    for block in blocks_of(text):
        if block.reason is not None or block.language in NOT_CODE:
            continue
        if block.language == "python":
            # Lines before the code, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), namespace)
        elif block.language == "sh":
            for command in _commands(block.code):
                _run_command(command, monkeypatch)
        else:
            pytest.fail(f"{page}:{block.line}: no rule for a block of {block.language!r}.")
    return namespace


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_one_after_the_other(page, folder, monkeypatch):
    names = _run(page, text_of(page), monkeypatch)
    assert page not in CLAIMS or CLAIMS[page](names)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nvalue = 1\n```\n\n```python\nassert value == 2\n```\n", AssertionError),
        ("```sh\ngradient-lars compare --data absent.npz\n```\n", AssertionError),
        ("```sh\npip install gradient-lars\n```\n", AssertionError),
        ("```bash\ntrue\n```\n", pytest.fail.Exception),
    ],
)
def test_a_block_that_fails_is_noticed(text, error, folder, monkeypatch):
    with pytest.raises(error):
        _run("page.md", text, monkeypatch)


def test_a_marked_block_is_not_run(folder, monkeypatch):
    _run("page.md", "<!-- not run: needs a GPU -->\n```python\nraise ValueError\n```\n", monkeypatch)


@pytest.mark.parametrize("page", pages())
def test_no_block_is_overlooked(page):
    text = text_of(page)
    assert len(blocks_of(text)) == len(re.findall(r"^ *```\S+$", text, flags=re.M))
    assert len(blocks_of(text)) == len(re.findall(r"^ *(?:```|~~~)\s*$", text, flags=re.M))
    marks = [block for block in blocks_of(text) if block.reason is not None]
    assert len(marks) == len(re.findall(r"^ *<!-- not run", text, flags=re.M))
    assert all(len(block.reason.split()) > 1 for block in marks)


@pytest.mark.parametrize("page", pages())
def test_indented_lines_are_commands_that_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.M)
    for line in indented_code(text_of(page)):
        words = line.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.M), line
        else:
            assert words[:2] == ["pip", "install"], line
            assert all(name in extras for name in re.findall(r"\[(\w+)\]", line)), line


def test_pages_that_run_elsewhere_exist():
    for page, test in ELSEWHERE.items():
        assert (DOCS / page).exists()
        assert page in (ROOT / test).read_text(encoding="utf-8")
