"""A made-up network for the unit explorer (12 layers, 1,500 units, sheets of textures) and a circuit for the switch."""

from __future__ import annotations

import base64
import io
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


def _uri(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def circuit(c: float = 20.0, k: float = 60.0) -> dict[str, Any]:
    """The switch's data: discs turn into textures; the gate flips at t = 0.44, in the second pair at 0.31."""
    t = np.linspace(0, 1, 41)
    y, x = np.mgrid[:128, :128]
    ground = np.random.default_rng(0).normal(0, 8, (128, 128, 1))
    pictures = textures(2, 128, np.random.default_rng(1), decay=1.4)
    pairs = []
    for i, (name, decoy, at) in enumerate(
        (("coins -> moon", "fc:13 moon", 0.44), ("cat -> page", "the target image", 0.31))
    ):
        discs = sum(np.exp(-((np.hypot(x - u, y - v) / 17) ** 8)) for u in (25, 64, 103) for v in (25 + 6 * i, 64, 103))
        natural = (60 + 120 * discs[..., None] * [1, 0.85, 0.6] + ground).clip(0, 255).astype(np.uint8)
        score = 14 * (at - t)
        e = (score < 0).astype(int)
        f = 7.05 * np.exp(-(((t + 0.02) / 0.55) ** 2)) - 1.5 + 0.4 * np.sin(9 * t)
        d = 1 + 12 * t + 0.5 * np.cos(7 * t)
        b, c_ = np.maximum(f + c - k * e, 0), np.maximum(d + c + k * e - k, 0)
        series = {"t": t, "score": score, "e": e, "F": f, "D": d, "B": b, "C": c_, "A": b + c_ - c}
        pairs.append(
            {"name": name, "natural": _uri(natural), "synthetic": _uri(pictures[i])}
            | {"unit": "fc:12 coins" if i == 0 else "fc:1 cat", "decoy": decoy}
            | {key: values.tolist() for key, values in series.items()}
        )
    return {"c": c, "k": k, "pairs": pairs}


def matching(trials: int = 4, numbers: tuple[int, ...] = (1, 3)) -> dict[str, Any]:
    """Trials whose rows are told apart by colour: row i of the left side belongs to the same hue on the right."""
    generator = np.random.default_rng(0)
    pictures: dict[str, str] = {}

    def picture(hue: int) -> str:
        texture = textures(1, 48, generator)[0].astype(float)
        tint = np.array([[230, 60, 50], [60, 190, 80], [70, 90, 230], [220, 190, 60], [180, 60, 200]][hue])
        image = np.clip(0.45 * texture + 0.55 * tint, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", quality=80)
        key = f"p{len(pictures)}"
        pictures[key] = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        return key

    made = []
    for i in range(trials):
        answer = generator.permutation(3).tolist()
        n = numbers[i % len(numbers)]
        made.append(
            {
                "id": f"t{i}", "part": "main", "kind": ("exemplar", "visualization")[i % 2], "n": n, "depth": "late",
                "units": ["a:0", "b:1", "c:2"], "answer": answer,
                "left": [[picture(row) for _ in range(n)] for row in range(3)],
                "right": [[picture(row) for _ in range(n)] for row in answer],
                "machines": {"machine: pixels": answer, "machine: late features": [1, 2, 0]},
            }
        )  # fmt: skip
    return {"trials": made, "machines": ["machine: pixels", "machine: late features"], "pictures": pictures}
