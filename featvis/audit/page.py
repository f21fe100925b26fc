"""The report as one page of HTML: it needs no other file and no connection, and follows light and dark."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from featvis.audit.calibration import LEVEL
from featvis.audit.checks import CHECKS

if TYPE_CHECKING:
    from featvis.audit.result import Audit

TEMPLATE = "page.html"
SIDE = 96  # pixels of a picture on the page
CAPTIONS = {
    "fourier": "Fourier",
    "pixels": "pixels",
    "maco": "MACO",
    "exemplar": "from an exemplar",
    "tuned": "after training",
    "pruned": "after pruning",
}
HEADS = {
    "do not trust": ("Do not trust these visualizations", "bad"),
    "unlike the reference networks": ("Unlike the networks it was compared with", "warn"),
    "do not trust some units": ("Do not trust the visualizations of some units", "warn"),
    "no sign of manipulation": ("No sign of manipulation", "good"),
}


def page(audit: Audit) -> str:
    """The whole report: verdict first, then checks, then every unit with its pictures."""
    about, (head, tone) = audit.about, HEADS[audit.verdict]
    template = Template(files("featvis.audit").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    left_out = f" {len(about.left_out)} files were left out." if about.left_out else ""
    return template.substitute(
        subject=escape(about.subject),
        head=escape(head),
        tone=tone,
        summary=escape(audit.summary()),
        caution=f'<p class="caution">{escape(audit.caution())}</p>' if audit.caution() else "",
        checks="\n".join(_check_row(audit, i) for i in range(len(audit.checks))),
        units="\n".join(_unit(audit, i) for i in np.argsort(audit.units["p"].fillna(2).to_numpy(), kind="stable")),
        judged=audit.judged,
        images=f"{about.images:,}",
        natural=escape(about.natural),
        left_out=escape(left_out),
        steps=about.steps,
        other=escape(about.other),
        honest=escape(", ".join(about.honest)),
        count=len(about.honest),
        blind="\n".join(f"<li><b>{escape(c.name)}</b>: {escape(c.blind)}.</li>" for c in CHECKS),
        fingerprint=about.fingerprint,
    )


def _check_row(audit: Audit, i: int) -> str:
    row, check = audit.checks.iloc[i], CHECKS[i]
    asked = np.isfinite(row["p_holm"])
    alarm = asked and row["p_holm"] <= LEVEL
    odd = audit.about.excess <= LEVEL and bool((audit.units[f"p {check.name}"] <= LEVEL).any())
    mark, tone = ("unlike honest networks", "bad") if alarm else ("some units unlike", "warn")
    if not alarm and not odd:
        mark, tone = ("like honest networks", "good") if asked else ("not asked", "none")
    score = f"{row['score']:+.1f}".replace("-", "−")
    numbers = f'{score}</td><td class="n">{chance(row["p_holm"])}' if asked else '</td><td class="n">'
    return (
        f'<tr><th scope="row">{escape(check.name)}<small>{escape(check.question)}</small></th>'
        f'<td><span class="mark {tone}">{mark}</span></td><td class="n">{numbers}</td>'
        f"<td>{escape(audit.finding(check.name))}.</td></tr>"
    )


def _unit(audit: Audit, i: int) -> str:
    row = audit.units.iloc[i]
    p = row["p"]
    tone = "none" if np.isnan(p) else "bad" if p <= LEVEL else "good"
    chips = "".join(
        f'<span class="chip{" bad" if value <= LEVEL else ""}">{escape(name)} {chance(value)}</span>'
        for name, value in ((c.name, row[f"p {c.name}"]) for c in CHECKS)
    )
    shown = "".join(
        _figure(audit.pictures[way][i, 0], caption) for way, caption in CAPTIONS.items() if way in audit.pictures
    )
    best = "".join(_figure(image, "") for image in audit.pictures["exemplars"][i])
    words = "never responded: nothing to judge" if np.isnan(p) else f"p {chance(p)}, all checks together"
    return (
        f'<article class="unit {tone}"><h3>{escape(str(row["label"]))}<small>{words}</small></h3>'
        f'<div class="row"><div class="group"><p>visualizations</p><div class="strip">{shown}</div></div>'
        f'<div class="group"><p>exemplars</p><div class="strip">{best}</div></div></div>'
        f'<p class="chips">{chips}</p></article>'
    )


def _figure(image: Tensor, caption: str) -> str:
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(caption or "exemplar")}" src="data:image/webp;base64,{data}">{words}</figure>'


def chance(p: float) -> str:
    """A p value in three digits, as a table shows it."""
    if np.isnan(p):
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"
