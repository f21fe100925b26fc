"""What a reader must know before a chapter's numbers: that they belong to another network, or to the quick budget."""

from __future__ import annotations

from html import escape

from featvis import budget
from featvis.subjects import Subject

WRITTEN_ABOUT = "photonet"
ADMONITION = '<div class="admonition {kind}"><p class="admonition-title">{title}</p><p>{text}</p></div>'


def notices(subject: Subject) -> list[tuple[str, str, str]]:
    """(kind, title, text) of what is to be said; nothing for the network that the book was written about, in full."""
    found = []
    if subject.name != WRITTEN_ABOUT:
        text = (
            f"Figures, tables and sentences with numbers are computed for {subject.name}. The rest of the text was "
            "written about PhotoNet: what it says of particular classes, photographs and pictures need not hold here."
        )
        found.append(("note", f"This page is about {subject.name}", text))
    if budget.quick():
        text = (
            f"At most {budget.STEPS} steps of ascent or training, {budget.SEEDS} seeds, {budget.IMAGES} natural images "
            f"and {budget.UNITS} units of a hidden layer: this shows that everything runs. Its numbers and pictures "
            "say nothing; build the page without BUDGET=quick before you believe any of them."
        )
        found.append(("warning", "Built with the quick budget", text))
    return found


def notice(subject: Subject) -> None:
    """Show above a chapter what a reader must know of the subject and the budget, if there is anything."""
    from IPython.display import HTML, display

    for kind, title, text in notices(subject):
        display(HTML(ADMONITION.format(kind=kind, title=escape(title), text=escape(text))))
