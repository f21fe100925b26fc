"""The repository keeps its own rules: clean notebooks, commands that exist, files that parse, formulas that render."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def toc_files() -> list[str]:
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    return [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_hold_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    dirty = [i for i, c in enumerate(cells) if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])]
    assert dirty == [], "run `make strip`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_chapters_have_all_their_parts(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    for part in ("{exercise}", "{solution}", ":class: dropdown", "What it means for practice", "{cite"):
        assert part in prose


@pytest.mark.parametrize("name", toc_files())
def test_every_page_of_the_contents_exists(name: str) -> None:
    assert any((ROOT / (name + suffix)).is_file() for suffix in (".md", ".ipynb"))


def test_every_chapter_is_in_the_contents_but_not_the_template() -> None:
    chapters = {f"notebooks/{p.stem}" for p in NOTEBOOKS if not p.name.startswith("_")}
    assert chapters == {name for name in toc_files() if name.startswith("notebooks/")}


def test_every_page_has_sections() -> None:
    """A page without sections breaks a script of the theme."""
    for name in toc_files():
        path = ROOT / f"{name}.md"
        if path.exists() and "{include}" not in path.read_text():
            assert re.search(r"^## ", path.read_text(), re.M), name


def test_configuration_loads_nothing_from_elsewhere() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    sphinx = config["sphinx"]["config"]
    assert sphinx["html_math_renderer"] == "mathml"
    assert list(sphinx["nb_ipywidgets_js"]) == ["widgets.js"]
    assert "sphinx_thebe" not in sphinx["extensions"]
    assert not re.search(r"cdn|jsdelivr|unpkg|googleapis|mathjax_path", (ROOT / "_config.yml").read_text(), re.I)


def test_commands_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
    named = {m for p in pages for m in re.findall(r"(?:`|\$ )make ([a-z]+)", p.read_text(encoding="utf-8"))}
    assert {"book", "test"} <= named <= targets


def test_links_of_the_front_pages_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_citation_file() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert [r["authors"][0]["family-names"] for r in citation["references"]] == ["Geirhos", "Klein"]


def test_citations_of_the_pages_are_in_the_bibliography() -> None:
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.M))
    for path in [*NOTEBOOKS, *(ROOT / "book").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        cited = {k.strip() for m in re.findall(r"\{cite(?::[a-z]+)?\}`([^`]+)`", text) for k in m.split(",")}
        assert cited <= keys, path.name


def test_pins_cover_every_requirement() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.M))
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[ ]", r)[0]).lower() for r in wanted}
    assert names - pinned == set()


def test_help_lists_every_command() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("book", "test", "lab", "serve", "fresh", "bench", "clean"):
        assert re.search(rf"^  {command} +\w", done.stdout, re.M), command


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"\arg\max_{x} f", "arg\u2009max"),
        (r"\operatorname*{arg\,min}_{x} f", "arg\u2009min"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"\lVert w \rVert_2 < 1 \label{eq-x}", "&lt;"),
        (r"\max_{x} f", "<munder>"),
    ],
)
def test_formulas_become_mathml(latex: str, expected: str) -> None:
    import mathml

    rendered = mathml.to_mathml(latex, display=True)
    assert expected in rendered
    assert "\\" not in rendered


def test_an_unknown_command_is_named() -> None:
    import mathml

    with pytest.raises(ValueError, match="nosuchcommand"):
        mathml.to_mathml(r"\nosuchcommand{x}")


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    """A command's help, and an interrupt while one waits for it, must not meet torch."""
    told = "import sys, featvis.cli; print(sorted({'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_the_package_has_what_its_stub_says_whoever_imports_first() -> None:
    told = (
        "import importlib, pathlib, types, featvis\n"
        "for file in pathlib.Path(featvis.__file__).parent.glob('[a-z]*.py'):\n"
        "    importlib.import_module('featvis.' + file.stem)\n"
        "for name in featvis.__all__:\n"
        "    found = getattr(featvis, name)\n"
        "    kind = 'module' if isinstance(found, types.ModuleType) else 'value'\n"
        "    print(name, kind)\n"
    )
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, cwd=ROOT)
    kinds = dict(line.split() for line in found.stdout.splitlines())
    stub = (ROOT / "featvis" / "__init__.pyi").read_text()
    modules = set(re.search(r"from \. import \((.*?)\)", stub, re.S)[1].replace(",", " ").split())
    assert {name for name, kind in kinds.items() if kind == "module"} == modules
    assert {"atlas", "audit", "exemplars", "linearity", "load", "notice", "structured"} <= set(kinds) - modules
