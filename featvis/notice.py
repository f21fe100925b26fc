"""What a reader must know before a chapter's numbers: that they belong to another network, or to the quick budget."""

from __future__ import annotations

from html import escape

from featvis import budget
from featvis.subjects import Subject
from featvis.zoo import load

WRITTEN_ABOUT = "photonet"
ADMONITION = '<div class="admonition {kind}"><p class="admonition-title">{title}</p><p>{text}</p></div>'


def notices(subject: Subject) -> list[tuple[str, str, str]]:
    """(kind, title, text) of what is to be said; nothing for the network that the book was written about, in full."""
    found = []
    if subject.fingerprint != load(WRITTEN_ABOUT).fingerprint:
        other = f"other weights of {subject.name}" if subject.name == WRITTEN_ABOUT else subject.name
        text = (
            f"Figures, tables and sentences with numbers are computed for {subject.name}, unless they name another "
            "network. The rest of the text was written about PhotoNet: what it says of particular classes, photographs "
            "and pictures need not hold here."
        )
        found.append(("note", f"This page is about {other}", text))
    if budget.quick():
        text = (
            f"At most {budget.IMAGES} natural images of a kind, and few steps, seeds and units: this shows that "
            "everything runs. What was computed for this page says nothing; build it without BUDGET=quick before you "
            "believe any number or picture. Only what is said of another network by name was found in full."
        )
        found.append(("warning", "Built with the quick budget", text))
    return found


def notice(subject: Subject) -> None:
    """Show above a chapter what a reader must know of the subject and the budget, if there is anything."""
    from IPython.display import HTML, display

    for kind, title, text in notices(subject):
        display(HTML(ADMONITION.format(kind=kind, title=escape(title), text=escape(text))))
