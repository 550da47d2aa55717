"""What kept tokens are drawn on: the prompt's pictures where their places are known, else a plain ground, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from tokentrim.contracts.token_places import IN_ORDER, Cells

if TYPE_CHECKING:
    from PIL import Image

    from tokentrim.engine.session import Session
    from tokentrim.reading import Video

_PLAIN: Final = 288  # pixels


class DrawnOn(NamedTuple):
    """What kept tokens are drawn on.

    Attributes:
        cells: where the tokens are drawn.
        images: what lies below them: the prompt's pictures, or a plain one.
        names: what each of these is called; nothing, where that is plain.
        note: why the tokens stand in their order and not in their places; empty where they stand in their places.
    """

    cells: Cells
    images: list[Image.Image]
    names: list[str]
    note: str = ""


def canvas_of(session: Session, images: Sequence[Image.Image], videos: Sequence[Video] = ()) -> DrawnOn:
    """What is drawn of the latest prompt of a session, which was about ``images`` and ``videos``."""
    found = session.placed(None if videos else len(images))
    if isinstance(found, Cells):
        return DrawnOn(*found.drawn(images, videos))
    return DrawnOn(Cells.in_order(session.trace.n_visual[0]), [plain()], [""], f"{IN_ORDER}: {found}")


def plain() -> Image.Image:
    """What is drawn below tokens that stand in their order."""
    from PIL import Image

    return Image.new("RGB", (_PLAIN, _PLAIN), "#c9d1e0")
