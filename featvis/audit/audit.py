"""`audit`: from a network and natural images to a report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from tqdm.auto import tqdm

from featvis import photographs
from featvis.audit.calibration import Calibration, version
from featvis.audit.checks import scored
from featvis.audit.evidence import PARTS, gather
from featvis.audit.result import About, Audit
from featvis.audit.sample import sampled
from featvis.engine import LOCAL, Engine, cluster_of, ready
from featvis.errors import FeatvisError
from featvis.images import NaturalImages
from featvis.shelf import shelved
from featvis.subjects import Subject

COUNT = 24  # units
STEPS = 64
FEWEST = 50  # natural images
SHOWN = 3  # exemplars that a report shows


@shelved(version(), Audit, free=("engine", "progress"))
def audit(
    subject: Subject,
    natural: NaturalImages,
    *,
    layers: Sequence[str] | None = None,
    units: int = COUNT,
    steps: int = STEPS,
    seed: int = 0,
    calibration: Calibration | None = None,
    engine: Engine = LOCAL,
    progress: bool = True,
) -> Audit:
    """Look for signs that the visualizations of a network do not tell the truth about it.

    natural      natural images that suit the subject; labels of its classes allow one more check
    layers       whose units to sample; by default all blocks, a third of the units logits
    units        how many units to sample
    steps        of each visualization; what scores mean was found with 64
    seed         of the sample and of all visualizations
    calibration  scores of honest networks; by default those that come with the package
    engine       "local", "ray" or `featvis.engine.Ray(...)`: where visualizations and exemplars are made; with
                 `featvis.engine.Local(folder)`, or a folder of Ray's, an interrupted audit goes on

    Raises FeatvisError for fewer than 50 natural images or 3 units, an unknown layer, images of another size, and a
    network that cannot take its own input.
    """
    if len(natural) < FEWEST:
        raise FeatvisError(f"{len(natural)} natural images are too few for an audit; {FEWEST} are needed.")
    subject.check_size(natural)
    honest = calibration or Calibration.read()
    chosen = sampled(subject, units, layers, seed)
    with tqdm(total=len(PARTS), desc=f"audit {subject.name}", unit="part", disable=not progress, leave=False) as bar:

        def tick(part: str) -> None:
            bar.update(PARTS.index(part) - bar.n)
            bar.set_postfix_str(part)

        cluster = cluster_of(engine)
        with nullcontext() if cluster is None else ready(cluster):  # Ray starts once, not for every part
            evidence = gather(subject, natural, chosen, steps=steps, seed=seed, engine=engine, tick=tick)
    scores = scored(evidence)
    shown = evidence.pictures["fourier"]
    table = scores.merge(honest.units(scores), on="unit")
    table.insert(1, "label", [subject.label(unit) for unit in evidence.units])
    table.insert(3, "status", shown.status[:, 0])
    table.insert(4, "activation", shown.activation.max(1))
    table.insert(5, "best_natural_activation", evidence.best.top_values[:, 0])
    about = About(
        subject.name,
        subject.fingerprint,
        natural.name,
        evidence.seen,
        evidence.left_out,
        steps,
        seed,
        evidence.other_network,
        tuple(honest.networks),
        calibration is not None or subject.classes == photographs.CLASSES,
        honest.excess(table["p"].to_numpy()),
        evidence.unused,
    )
    pictures = {name: found.images[:, :1] for name, found in evidence.pictures.items()}
    pictures["exemplars"] = evidence.exemplars[:, :SHOWN]
    return Audit(about, table, honest.checks(scores), pictures)
