"""How methods look in every picture: one colour and one marker each, the same in all of them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

INK: Final = "#1f2430"
FAINT: Final = "#8a90a0"
PAPER: Final = "#ffffff"


class Look(NamedTuple):
    """Colour and marker of one method."""

    color: str
    marker: str


# Greys for controls, green for the bound, saturated colours for methods. Distinct to colour-blind readers in pairs
# that are often compared, and by their markers in any case.
_KNOWN: Final = {
    "none": Look(INK, "s"),
    "random": Look("#9aa0ab", "o"),
    "uniform": Look("#c2a878", "D"),
    "pool": Look("#8c6d46", "P"),
    "oracle": Look("#2a9d5c", "^"),
    "fastv": Look("#e07b00", "o"),
    "pvtp": Look("#6c5ce0", "D"),
    "vta": Look("#0b88c6", "v"),
    "st3": Look("#d81b74", "s"),
    "text-only": Look(FAINT, "x"),
}
_COLORS: Final = (
    "#0aa6a6", "#b8860b", "#a23e48", "#5b8c00", "#7a4bb7", "#c75d9b", "#3f6fb5", "#8f5e3b", "#00897b", "#bf360c",
)  # fmt: skip
# As many as have no divisor in common with the colours, so that no pair comes twice among 70 methods.
_MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """The look of each method; methods that are not built in share out the remaining colours in their order."""
    others = [method for method in dict.fromkeys(methods) if method not in _KNOWN]
    shared = {
        method: Look(_COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)])
        for place, method in enumerate(others)
    }
    return {**_KNOWN, **shared}


@contextmanager
def figure_style() -> Generator[Any, None, None]:
    """matplotlib's pyplot without a display and with our fonts and lines, for the block alone."""
    import matplotlib as mpl
    from matplotlib import style

    mpl.use("Agg")
    with style.context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 9,
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "axes.titlesize": 10,
            "axes.titlecolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e7e9ee",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "legend.frameon": False,
            "text.color": INK,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "figure.dpi": 100,
            "savefig.dpi": 150,
        }
    ):
        import matplotlib.pyplot as plt

        yield plt
