"""Render the book's formulas as MathML while it is built, so that a page needs no script and no request for them.

Sphinx itself offers MathJax (a script from elsewhere) or pictures (a LaTeX installation). Every current browser draws
MathML natively; latex2mathml translates. What it does not understand is a warning, hence an error under `make book`:
never a raw backslash on a page.
"""

from __future__ import annotations

import html
import re
from typing import Any
from xml.etree.ElementTree import Element, tostring

from docutils import nodes
from latex2mathml.converter import convert_to_element
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

# LaTeX that latex2mathml 3.81 takes for plain letters, in words that it knows. Numbers and labels are Sphinx's work.
REWRITES = [
    (re.compile(r"\\label\{[^}]*\}|\\(?:notag|nonumber)(?![A-Za-z])"), ""),
    (re.compile(r"\\(begin|end)\{equation\*?\}"), ""),
    (re.compile(r"\\(begin|end)\{(?:aligned|align|split)\}"), r"\\\1{align*}"),
    (re.compile(r"\\operatorname\*?\{arg\s*(?:\\,)?\s*(max|min)\}|\\arg\s*\\(max|min)(?![A-Za-z])"), r"\\arg\1\2"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
]
LIMITS = re.compile("max|min|sup|inf|lim")  # operators whose subscript belongs below them in a displayed formula


def to_mathml(latex: str, display: bool = False) -> str:
    """One formula as a `<math>` element, a block of its own if `display`; ValueError names what is not understood."""
    for pattern, replacement in REWRITES:
        latex = pattern.sub(replacement, latex)
    try:
        root = convert_to_element(latex.strip(), display="block" if display else "inline")
    except Exception as error:  # a dozen unrelated types
        raise ValueError(type(error).__name__) from error
    for element in root.iter():
        element.text = html.unescape(element.text) if element.text else None
        if element.tag != "mtext" and element.text and re.search(r"\\|&", element.text):
            raise ValueError(f"unknown command {element.text}")
        _place_limits(element)
    return tostring(root, encoding="unicode")


def _place_limits(element: Element) -> None:
    if element.tag in ("msub", "msubsup") and element[0].tag == "mo" and LIMITS.search(element[0].text or ""):
        element.tag = "munder" if element.tag == "msub" else "munderover"
        element[0].set("movablelimits", "true")


def as_block(latex: str) -> str:
    r"""A displayed formula as Sphinx means it: blank lines part equations, a bare `\\` parts lines."""
    parts = [part.strip() for part in latex.split("\n\n") if part.strip()]
    if len(parts) == 1 and (r"\\" not in latex or r"\begin{" in latex):
        return parts[0]
    return r"\begin{align*}" + r"\\".join(parts) + r"\end{align*}"


def _render(node: nodes.math | nodes.math_block, display: bool) -> str:
    latex = node.astext()
    try:
        return to_mathml(as_block(latex) if display else latex, display)
    except ValueError as error:
        logger.warning("formula %s: %s", latex, error, location=node, type="mathml")
        return f"<code>{html.escape(latex)}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math notranslate nohighlight">{_render(node, False)}</span>')
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    self.body.append(_render(node, True))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
