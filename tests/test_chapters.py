"""Every chapter runs from top to bottom, and what it should show is there."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from featvis import budget, cifar

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
TEMPLATE = ROOT / "notebooks" / "_template.ipynb"  # what a contributor copies passes as it is


def executed(chapter: Path, **settings: str) -> list[nbformat.NotebookNode]:
    """The code cells of a chapter with what they put out, in an environment with these settings."""
    notebook = nbformat.read(chapter, as_version=4)
    here = {"metadata": {"path": str(chapter.parent)}}
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=here)
    code = [cell for cell in client.execute(env=os.environ | settings).cells if cell.cell_type == "code"]
    for cell in code:
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if cell.source.rstrip().endswith(";"):
            assert "image/png" in kinds, f"no figure below {cell.source!r}"
        if cell.source.startswith("from featvis.widgets"):
            assert "application/vnd.jupyter.widget-view+json" in kinds
    assert len(code) > 5
    return code


@pytest.mark.parametrize("chapter", [*CHAPTERS, TEMPLATE], ids=lambda path: path.stem)
def test_a_reader_sees_short_cells(chapter):
    """Code that only puts results into words is folded, in the page and in JupyterLab; what is seen is short."""
    first, *others = [cell for cell in nbformat.read(chapter, as_version=4).cells if cell.cell_type == "code"]
    assert first.source.count("\n") < 40
    for cell in others:
        folded = "hide-input" in cell.metadata.get("tags", [])
        assert folded == cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert folded == ("Markdown(" in cell.source), cell.source
        assert folded or cell.source.count("\n") < 20, cell.source


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_and_shows_its_figures(chapter, monkeypatch):
    monkeypatch.delenv("FEATVIS_RERENDER", raising=False)
    for cell in executed(chapter):
        assert not any(output.output_type == "stream" and output.name == "stderr" for output in cell.outputs)
        assert 'class="admonition' not in str(cell.outputs), "nothing to be said of the network the book is about"


def test_the_template_is_a_chapter(tmp_path):
    for cell in executed(TEMPLATE, FEATVIS_SHELF=str(tmp_path), **{budget.BUDGET: budget.QUICK}):
        assert not any(output.output_type == "stream" and output.name == "stderr" for output in cell.outputs)


@pytest.fixture(scope="module")
def empty_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_on_another_network(chapter, empty_shelf):
    """Another shape, size, number of classes and source of images, with nothing computed before; chapters share."""
    if not cifar.at_hand():
        pytest.skip(f"CIFAR-10 is not at hand; set {cifar.FOLDER} to a folder that holds it")
    settings = {"FEATVIS_SUBJECT": "cifarnet", "FEATVIS_IMAGES": "", budget.BUDGET: budget.QUICK}
    code = executed(chapter, **settings, FEATVIS_SHELF=str(empty_shelf))
    shown = [str(cell.outputs) for cell in code]
    assert any("This page is about cifarnet" in outputs for outputs in shown)
    assert any("Built with the quick budget" in outputs for outputs in shown)
    assert list(empty_shelf.glob("cifarnet/*/entry.json"))
