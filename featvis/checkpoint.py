"""Unfinished work on disk: one file that is whole or not there, and says what it belongs to."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from featvis.errors import disk_errors


def write(file: Path, key: str, found: dict[str, Any]) -> None:
    """Keep a dict of tensors, numbers and text under a key, in one step. Raises FeatvisError if the disk is full."""
    written = io.BytesIO()  # torch itself does not tell a full disk from any other failure
    torch.save({"key": key, "found": found}, written)
    unfinished = file.with_suffix(f".{os.getpid()}")  # two processes may write the same
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(written.getbuffer())
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)


def read(file: Path | None, key: str) -> dict[str, Any] | None:
    """What was kept under this key; None if there is nothing, it is cut short, or it belongs to another key."""
    if file is None or not file.exists():
        return None
    try:
        saved = torch.load(file, weights_only=True)
        return saved["found"] if saved["key"] == key else None
    except Exception:  # a file that was cut short fails in many ways
        return None
