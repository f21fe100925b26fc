"""How long many units take: the arithmetic of the page "How far does it scale?"."""

from __future__ import annotations

from typing import NamedTuple

from featvis.errors import FeatvisError


class Device(NamedTuple):
    """What a data sheet says of a processor: operations a second, and bytes a second to and from its memory."""

    rate: float
    bandwidth: float = float("inf")


def seconds(operations: float, device: Device, share: float, devices: int = 1, traffic: float = 0.0) -> float:
    """Seconds for so many operations on several devices at a `share` of their rate, all of them busy to the end.

    operations  floating-point operations: two for each multiply-add
    share       of the rate that the work reaches, more than 0 and at most 1
    traffic     bytes that pass through the memory at least; where these take longer, they decide
    """
    if not 0 < share <= 1:
        raise FeatvisError(f"share={share} was given; a share is more than 0 and at most 1.")
    if devices < 1:
        raise FeatvisError(f"devices={devices} was given; at least 1 is needed.")
    return max(operations / (device.rate * share), traffic / device.bandwidth) / devices
