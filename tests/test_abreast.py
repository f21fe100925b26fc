"""Pages are executed side by side before they are read, where all results are finished."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest

from tests.conftest import ROOT

PAGES = ("one", "two")
OTHERS = ("FEATVIS_IMAGES", "FEATVIS_WEIGHTS", "FEATVIS_BUDGET", "FEATVIS_SHELF", "FEATVIS_RERENDER")
# Ends only when both pages are being executed.
WAITS = """
import os, time
from pathlib import Path
Path("{name}").touch()
end = time.monotonic() + 60
while not Path("{other}").exists():
    assert time.monotonic() < end, "nothing else is executed"
    time.sleep(0.05)
print(os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture
def abreast() -> ModuleType:
    pytest.importorskip("jupyter_book")
    spec = importlib.util.spec_from_file_location("abreast", ROOT / "book" / "_ext" / "abreast.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the extension asks of Sphinx's environment: a notebook, a page of MyST with code, and one without."""
    for name in ("FEATVIS_SUBJECT", *OTHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    code = nbformat.v4.new_code_cell(WAITS.format(name="one", other="two"))
    nbformat.write(nbformat.v4.new_notebook(cells=[code], metadata=kernel), tmp_path / "one.ipynb")
    top = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n# Two\n\n"
    text = f"{top}```{{code-cell}} ipython3\n{WAITS.format(name='two', other='one').strip()}\n```\n"
    (tmp_path / "two.md").write_text(text)
    (tmp_path / "plain.md").write_text("# Plain\n")
    files = {"one": "one.ipynb", "again": "again.ipynb", "two": "two.md", "plain": "plain.md"}
    return SimpleNamespace(
        mystnb_config=SimpleNamespace(
            execution_mode="cache", execution_cache_path=str(tmp_path / "cache"), execution_timeout=120
        ),
        doc2path=lambda name: str(tmp_path / files[name]),
    )


def finished(env: SimpleNamespace) -> dict[str, str]:
    """The pages in the cache, and what each one printed."""
    cache = importlib.import_module("jupyter_cache").get_cache(env.mystnb_config.execution_cache_path)
    records = cache.list_cache_records()
    return {Path(r.uri).stem: cache.get_cache_bundle(r.pk).nb.cells[-1].outputs[0].text.strip() for r in records}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
def test_pages_with_code_are_executed_at_the_same_time_and_share_the_threads(abreast, pages):
    shutil.copy(pages.doc2path("one"), pages.doc2path("again"))  # the same code, which would wait for nobody
    abreast.execute(None, pages, [*PAGES, "again", "plain"])
    share = str(max(1, os.cpu_count() // 2))
    assert finished(pages) == {"one": share, "two": share}
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.parametrize("name", ["FEATVIS_SUBJECT", *OTHERS])
def test_pages_about_anything_else_wait_for_each_other(abreast, pages, monkeypatch, name):
    monkeypatch.setenv(name, "other")
    abreast.execute(None, pages, [*PAGES, "plain"])
    assert not Path(pages.doc2path("one")).with_name("cache").exists()


def test_a_single_page_is_left_to_sphinx_and_so_are_all_where_none_is_to_be_executed(abreast, pages):
    abreast.execute(None, pages, ["one", "plain"])
    assert finished(pages) == {}
    pages.mystnb_config.execution_mode = "off"
    abreast.execute(None, pages, [*PAGES, "plain"])
    assert finished(pages) == {}
