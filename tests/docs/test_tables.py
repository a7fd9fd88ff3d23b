"""The tables of figures on the pages are those of the results files and of the presets."""

import importlib.util

import pytest

from docs.pages import DOCS, ROOT, text_of

spec = importlib.util.spec_from_file_location("make_readme", ROOT / "benchmarks" / "make_readme.py")
make_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_readme)
PAGES = [page for page in make_readme.PAGES if page.is_relative_to(DOCS)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_current(path):
    text = text_of(path.relative_to(DOCS))
    assert make_readme.filled(text, path) == text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_stale_table_is_noticed(path):
    text = text_of(path.relative_to(DOCS))
    for name in make_readme.PAGES[path]:
        end = text.index(f"<!-- end of {name} -->")
        place = text.rindex("|", 0, end)
        stale = f"{text[:place]}0{text[place:]}"
        assert make_readme.filled(stale, path) == text
