"""Execute the pages that have code side by side, before Sphinx reads them one after the other.

Only those about the embedded network, whose results come with the project: of another subject the first chapter that
needs a result makes it for the others. A page that fails here is executed again when it is read, which says why.
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
from sphinx.util import logging

logger = logging.getLogger(__name__)

OTHERS = ("FEATVIS_IMAGES", "FEATVIS_WEIGHTS", "FEATVIS_BUDGET", "FEATVIS_SHELF", "FEATVIS_RERENDER")
THREADS = "OMP_NUM_THREADS"


def execute(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    settings = env.mystnb_config  # type: ignore[attr-defined]
    if os.environ.get("FEATVIS_SUBJECT", "photonet") != "photonet" or any(map(os.environ.get, OTHERS)):
        return
    if settings.execution_mode != "cache":
        return
    cache = get_cache(settings.execution_cache_path)
    pages: dict[str, str] = {}  # by the hash of their code: what is the same is executed once
    for path in (Path(env.doc2path(name)) for name in docnames):
        written = path.suffix == ".md" and is_myst_markdown_notebook(path.read_text(encoding="utf-8"))
        if written or path.suffix == ".ipynb":
            reader = {"type": "plugin", "name": "myst_nb_md" if written else "nbformat"}
            record = cache.add_nb_to_project(str(path), read_data=reader)
            pages.setdefault(cache.create_hashed_notebook(cache.get_project_notebook(record.pk).nb)[1], record.uri)
    uris = list(pages.values())
    waiting = len(cache.list_unexecuted(filter_uris=uris)) if uris else 0
    if waiting < 2:
        return
    logger.info(f"executing {waiting} pages side by side")
    threads = os.environ.get(THREADS)
    os.environ.setdefault(THREADS, str(max(1, (os.cpu_count() or 1) // waiting)))  # the kernels' share
    try:
        load_executor("local-parallel", cache).run_and_cache(filter_uris=uris, timeout=settings.execution_timeout)
    finally:
        if threads is None:
            del os.environ[THREADS]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-before-read-docs", execute)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
