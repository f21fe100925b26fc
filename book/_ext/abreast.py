"""Execute the pages that have code side by side, before Sphinx reads them one after the other.

Only where all results are finished: of another subject the first chapter that needs a result makes it for the others.
A page that fails here is executed again when it is read, which says why.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from myst_nb.core.read import is_myst_markdown_notebook
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

OTHERS = ("FEATVIS_IMAGES", "FEATVIS_WEIGHTS", "FEATVIS_BUDGET", "FEATVIS_SHELF", "FEATVIS_RERENDER")
THREADS = "OMP_NUM_THREADS"


def execute(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    if os.environ.get("FEATVIS_SUBJECT", "photonet") != "photonet" or any(map(os.environ.get, OTHERS)):
        return
    cache = get_cache(env.mystnb_config.execution_cache_path)  # type: ignore[attr-defined]
    pages = []
    for path in (Path(env.doc2path(name)) for name in docnames):
        written = path.suffix == ".md" and is_myst_markdown_notebook(path.read_text())
        if written or path.suffix == ".ipynb":
            reader = {"type": "plugin", "name": "myst_nb_md" if written else "nbformat"}
            pages.append(cache.add_nb_to_project(str(path), read_data=reader).uri)
    waiting = len(cache.list_unexecuted(filter_uris=pages)) if pages else 0
    if waiting < 2:
        return
    threads = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // waiting)))  # the kernels' share
    try:
        load_executor("local-parallel", cache).run_and_cache(
            filter_uris=pages,
            timeout=env.mystnb_config.execution_timeout,  # type: ignore[attr-defined]
        )
    finally:
        if threads is None:
            del os.environ[THREADS]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-before-read-docs", execute)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
