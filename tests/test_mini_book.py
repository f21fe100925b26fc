"""`make book` about a large network of torchvision's: from nothing, and again from the finished shelf alone."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image

import featvis as fv
from featvis import sheets
from featvis._torchvision import torchvision
from tests.conftest import ROOT

CHAPTERS = ("01_feature_visualization", "07_audit")
IMAGES = 51  # an audit takes 50


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it is, with its environment, a file of weights and a folder of images that is not a data set."""
    pytest.importorskip("jupyter_book")
    folder = tmp_path_factory.mktemp("project")
    for name in ("Makefile", "_config.yml", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("book", "notebooks"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("featvis", "results", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv" / "ready").touch()  # nothing is installed
    (folder / "two.yml").write_text(
        "format: jb-book\nroot: book/intro\nchapters:\n" + "".join(f"  - file: notebooks/{name}\n" for name in CHAPTERS)
    )
    torch.manual_seed(0)
    network = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(network.state_dict(), folder / "googlenet.pth")
    natural = fv.natural_images("photos", split="all", n=IMAGES, size=232)
    for i in range(IMAGES):
        image, label, _ = natural[i]
        file = folder / "photographs" / natural.classes[label] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheets.to_pixels(image[None])[0]).save(file)
    return folder


def made(source: Path, shelf: Path) -> dict[str, str]:
    """What a reader types, and the text of the chapters' pages. Fails with the whole output."""
    settings = ["SUBJECT=googlenet", "WEIGHTS=googlenet.pth", "IMAGES=photographs", "BUDGET=quick", "TOC=two.yml"]
    packages = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"FEATVIS_SHELF": str(shelf), "PYTHONPATH": packages}
    done = subprocess.run(
        ["make", "book", *settings], cwd=source, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    html = source / "_build" / "html"
    assert sorted(page.stem for page in (html / "notebooks").glob("*.html")) == sorted(CHAPTERS)
    return {name: (html / "notebooks" / f"{name}.html").read_text(encoding="utf-8") for name in CHAPTERS}


def contents(shelf: Path) -> dict[str, tuple[str, int]]:
    """Every file's hash and time: what is written again has another time even if it is the same."""
    files = (file for file in shelf.rglob("*") if file.is_file())
    return {
        str(file.relative_to(shelf)): (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
        for file in files
    }


@pytest.mark.slow
def test_two_chapters_about_googlenet_and_again_from_their_shelf(source, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    pages = made(source, first)
    for page in pages.values():
        assert "This page is about googlenet" in page
        assert "Built with the quick budget" in page
    entries = [json.loads(file.read_text()) for file in first.glob("*/*/entry.json")]
    assert {entry["subject"] for entry in entries} == {"googlenet"}
    assert {entry["function"] for entry in entries} >= {"render", "exemplars", "audit"}
    html = source / "_build" / "html"
    assert list(html.glob("googlenet/render-*/images.webp")), "the sheets that the unit explorer shows"
    executed = [nbformat.read(file, 4) for file in (source / "_build" / ".jupyter_cache").rglob("base.ipynb")]
    assert len(executed) >= len(CHAPTERS)

    # As on a machine without a GPU, with the weights and the images, to which the finished results were copied.
    shutil.copytree(first, second)
    shutil.rmtree(first)
    shutil.rmtree(source / "_build")
    before = contents(second)
    again = made(source, second)
    assert contents(second) == before, "nothing was computed that stands there"
    for name, page in again.items():
        assert page.count('class="cell_output') == pages[name].count('class="cell_output') > 5


def test_no_chapter_draws_anything_that_is_not_kept():
    """Else a machine without a GPU could not build from finished results."""
    for chapter in sorted((ROOT / "notebooks").glob("0*.ipynb")):
        for cell in nbformat.read(chapter, 4).cells:
            if cell.cell_type != "code":
                continue
            for call in (node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)):
                name = getattr(call.func, "attr", "")
                given = {keyword.arg for keyword in call.keywords}
                assert name not in ("render", "diverse") or given & {"shelf"}, f"{chapter.name}: {ast.unparse(call)}"
