"""How a check ends unless it passes."""

from __future__ import annotations


class Failed(Exception):
    """What a check saw instead of what it must see."""


class Skipped(Exception):
    """Why a check cannot be made, or does not apply."""
