"""``none``: the reference that everything is compared with."""

from __future__ import annotations

from typing import ClassVar

from tokentrim import Parts, Stage, Strategy


class NoPruning(Strategy):
    """Keep every visual token, in every layer, at every step.

    The run is the untouched model's; only the accounting is added. It never fails and costs nothing.
    """

    name: ClassVar[str] = "none"
    stage: ClassVar[Stage] = "none"

    def parts(self) -> Parts:
        """No part at all."""
        return Parts()
