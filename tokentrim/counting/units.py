"""Amounts for people, in a unit that fits them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_BYTES: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_PREFIXES: Final = ("", "K", "M", "G", "T", "P")


def in_bytes(*amounts: float) -> list[str]:
    """Say amounts of bytes, all in the unit of the largest: ``["0.56 MiB", "1.17 MiB"]``."""
    return _said(amounts, 1024, _BYTES)


def in_operations(*amounts: float) -> list[str]:
    """Say numbers of operations, all with the prefix of the largest: ``["120.4 M", "240.8 M"]``; K is a thousand."""
    return _said(amounts, 1000, _PREFIXES)


def _said(amounts: Sequence[float], base: int, units: Sequence[str]) -> list[str]:
    largest, power = max(amounts, default=0), 0
    while largest >= base and power < len(units) - 1:
        largest, power = largest / base, power + 1
    return [f"{amount / base**power:,.2f} {units[power]}".rstrip() for amount in amounts]
