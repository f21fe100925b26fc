"""A made-up network for the unit explorer: 12 layers, 1,500 units, sheets of 1/f textures, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LAYERS = {
    "conv1": 32, "conv2": 96, "inception3a": 96, "inception3b": 128, "inception4a": 144, "inception4b": 144,
    "inception4c": 144, "inception4d": 160, "inception4e": 176, "inception5a": 176, "inception5b": 187, "fc": 17,
}  # fmt: skip
CLASSES = [
    "astronaut",
    "cat",
    "coffee",
    "hubble",
    "tissue",
    "retina",
    "motorcycle",
    "rocket",
    "brick",
    "grass",
    "gravel",
    "cameraman",
    "coins",
    "moon",
    "page",
    "china",
    "flower",
]
TILE, THUMB, COLUMNS = 96, 64, 16
THUMBS, PER_SHEET, THUMB_COLUMNS = 700, 512, 32
DEAD = {("conv2", 5), ("inception4b", 3), ("inception5b", 100)}
STOPPED = {("inception4b", 7)}
FAR = ("inception4b", 17)  # its visualization lies far outside of what nature shows


def textures(n: int, side: int, generator: np.random.Generator, decay: float = 1.7) -> np.ndarray:
    """(n, side, side, 3) uint8: coloured noise with a 1 / f ** decay spectrum, like a visualization from afar."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    weight = 1 / np.maximum(frequency, 1 / side) ** decay
    spectrum = generator.normal(size=(n, 3, side, side // 2 + 1, 2)) @ np.array([1, 1j])
    waves = np.fft.irfft2(spectrum * weight, s=(side, side))
    waves /= waves.std(axis=(1, 2, 3), keepdims=True)
    waves = waves + generator.normal(size=(n, 3, 1, 1)) * 0.7
    return (255 / (1 + np.exp(-1.4 * waves))).astype(np.uint8).transpose(0, 2, 3, 1)


def sheet(tiles: np.ndarray, columns: int) -> Image.Image:
    """Tiles (n, side, side, 3) in rows of `columns`."""
    n, side = len(tiles), tiles.shape[1]
    rows = -(-n // columns)
    full = np.zeros((rows * columns, side, side, 3), np.uint8)
    full[:n] = tiles
    grid = full.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * side, columns * side, 3))


def _row(layer: str, unit: int, g: np.random.Generator, seeds: int = 2) -> dict[str, Any]:
    if (layer, unit) in DEAD:
        nothing = {"hist": [0] * 23 + [5000], "lo": 0.0, "hi": 0.0, "q": [0.0] * 5}
        top = [[int(i), 0.0] for i in g.choice(THUMBS, 12, replace=False)]
        return {"a": [0.0] * seeds, "b": [0.0], "s": "dead", "top": top[:9], "bottom": top[9:], **nothing}
    values = g.gamma(2, 0.4, 5000) - g.uniform(0, 1)
    counts, edges = np.histogram(values, 24)
    values = np.sort(values).round(4)
    far = 40.0 if (layer, unit) == FAR else g.uniform(0.9, 3)
    theme = g.integers(len(CLASSES)) if g.random() < 0.5 else None
    pick = g.choice(THUMBS // len(CLASSES), 9, replace=False) * len(CLASSES)
    pick = pick + (theme if theme is not None else g.integers(len(CLASSES), size=9))
    return {
        "a": [round(float(values[-1] * far * s), 4) for s in g.uniform(0.9, 1.1, seeds)],
        "b": [round(float(values[0] - g.uniform(0, 2)), 4)],
        "s": "stopped 40" if (layer, unit) in STOPPED else "ok",
        "top": [[int(i), float(v)] for i, v in zip(pick, values[::-1], strict=False)],
        "bottom": [[int(i), float(v)] for i, v in zip(g.choice(THUMBS, 3, replace=False), values, strict=False)],
        "hist": counts.tolist(), "lo": float(edges[0]), "hi": float(edges[-1]),
        "q": np.quantile(values, [0.01, 0.25, 0.5, 0.75, 0.99]).round(4).tolist(),
    }  # fmt: skip


def make(
    folder: Path, layers: dict[str, int] | None = None, columns: int = COLUMNS
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Write the sheets to `folder` -> the explorer's data, and its files: sheet name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(0)
    base = textures(64, TILE, g)
    files: dict[str, Path] = {}

    def save(name: str, tiles: np.ndarray, columns: int) -> str:
        files[name] = folder / name
        sheet(tiles, columns).save(files[name], quality=60, method=0)
        return name

    entries = []
    for layer, units in (layers or LAYERS).items():
        entry: dict[str, Any] = {"name": layer, "units": units, "labels": CLASSES if layer == "fc" else None}
        for which, seeds in (("max", 2), ("min", 1)):
            n = units * seeds
            tiles = base[g.integers(len(base), size=n)]
            # Mirrored, rolled and with colours swapped, 64 textures look like thousands.
            tiles = np.stack([np.roll(t, g.integers(TILE, size=2), (0, 1))[:, :, g.permutation(3)] for t in tiles])
            entry[which] = {"sheet": save(f"{which}-{layer}.webp", tiles, columns), "seeds": seeds}
        entry["rows"] = [_row(layer, unit, g) for unit in range(units)]
        entries.append(entry)
    looks = textures(len(CLASSES), 2 * THUMB, g, decay=1.3)
    thumbs = [np.roll(looks[i % len(CLASSES)], g.integers(2 * THUMB, size=2), (0, 1)) for i in range(THUMBS)]
    sheets = [
        save(
            f"thumbs-{i}.webp", np.stack([t[:THUMB, :THUMB] for t in thumbs[start : start + PER_SHEET]]), THUMB_COLUMNS
        )
        for i, start in enumerate(range(0, THUMBS, PER_SHEET))
    ]
    labels = [CLASSES[i % len(CLASSES)] for i in range(THUMBS)]
    data = {
        "subject": "mocknet", "tile": TILE, "thumb": THUMB, "columns": columns, "layers": entries,
        "thumbs": {"sheets": sheets, "per_sheet": PER_SHEET, "columns": THUMB_COLUMNS, "labels": labels},
    }  # fmt: skip
    return data, files
