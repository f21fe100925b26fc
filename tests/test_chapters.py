"""Every chapter runs from top to bottom, and what it should show is there."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_runs_and_shows_its_figures(chapter, monkeypatch):
    monkeypatch.delenv("FEATVIS_RERENDER", raising=False)
    notebook = nbformat.read(chapter, as_version=4)
    here = {"metadata": {"path": str(chapter.parent)}}
    done = NotebookClient(notebook, timeout=900, kernel_name="python3", resources=here).execute(env=dict(os.environ))
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    for cell in code:
        kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
        if cell.source.rstrip().endswith(";"):
            assert "image/png" in kinds, f"no figure below {cell.source!r}"
        if cell.source.startswith("from featvis.widgets"):
            assert "application/vnd.jupyter.widget-view+json" in kinds
        assert not any(output.output_type == "stream" and output.name == "stderr" for output in cell.outputs)
    assert len(code) > 5
