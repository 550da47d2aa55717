"""How methods look in every picture: one colour and one marker each, the same in all of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, NamedTuple

INK: Final = "#1f2430"
FAINT: Final = "#646b7a"
PAPER: Final = "#ffffff"
Role = Literal["method", "control", "bound", "reference", "text"]


class Look(NamedTuple):
    """How one method is drawn.

    Attributes:
        color: on white paper.
        marker: matplotlib's letter for it.
        role: what the method is to a reader; only ``method`` is drawn filled and with solid lines.
    """

    color: str
    marker: str
    role: Role = "method"

    @property
    def dark(self) -> str:
        """The colour on dark paper."""
        shades = [int(self.color[place : place + 2], 16) for place in (1, 3, 5)]
        return "#" + "".join(f"{round(shade + _LIGHTER * (255 - shade)):02x}" for shade in shades)


# Muted colours for controls, green for the bound, saturated colours for methods. Every one stands out from white paper
# by 3:1, and its lighter version from dark paper. Distinct to colour-blind readers in pairs that are often compared,
# and by their markers in any case.
_LIGHTER: Final = 0.42
_KNOWN: Final = {
    "none": Look(INK, "s", "reference"),
    "random": Look("#737a87", "o", "control"),
    "uniform": Look("#9a7b3c", "D", "control"),
    "pool": Look("#7d5f3c", "P", "control"),
    "downscale": Look("#56788c", "v", "control"),
    "oracle": Look("#1f8a4d", "^", "bound"),
    "text-only": Look("#737a87", "x", "text"),
    "fastv": Look("#cf6a00", "o"),
    "pvtp": Look("#6c5ce0", "D"),
    "vta": Look("#0b7fb8", "v"),
    "st3": Look("#d81b74", "s"),
}
_COLORS: Final = (
    "#078b8b", "#a97a06", "#a23e48", "#4f7d00", "#7a4bb7", "#bb4a8d", "#3f6fb5", "#8f5e3b", "#00806f", "#bf360c",
)  # fmt: skip
# As many as have no divisor in common with the colours, so that no pair comes twice among 70 methods.
_MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X")


def looks(methods: Sequence[str], strategies: Mapping[str, str] | None = None) -> dict[str, Look]:
    """The look of each method; methods that are not built in share out the remaining colours in their order.

    Args:
        methods: labels of the methods.
        strategies: the strategy behind each label, where it is known: a control stays one under any label.
    """
    others = [method for method in dict.fromkeys(methods) if method not in _KNOWN]
    shared = {
        method: Look(_COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)], _role(method, strategies))
        for place, method in enumerate(others)
    }
    return {**_KNOWN, **shared}


def _role(method: str, strategies: Mapping[str, str] | None) -> Role:
    known = _KNOWN.get((strategies or {}).get(method, ""))
    return known.role if known is not None else "method"


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
