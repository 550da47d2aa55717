"""The folder of ``tokentrim explain``: pictures and the numbers behind them, each file whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from tokentrim.drawing.style import figure_style
from tokentrim.explain.gather import Explanation
from tokentrim.runs.drawn_on import plain
from tokentrim.runs.files import make_folder, read_json, reading, write_atomic, write_json

_NUMBERS: Final = "explain.json"


def open_folder(path: Path) -> None:
    """Make a folder ready; files that are there already stay.

    Raises:
        ResultsError: when it cannot be written, or holds an ``explain.json`` that is not ours.
    """
    make_folder(path)
    _listed(path)


def write_folder(
    path: Path,
    explanations: Sequence[Explanation],
    images: Sequence[Image.Image],
    names: Sequence[str],
    question: str,
    *,
    model: str,
    reference: str | None,
) -> list[Path]:
    """Draw everything; returns the files, the overview first. Pictures of an earlier explanation go.

    Args:
        path: an opened folder.
        explanations: what each strategy did.
        images: the prompt's pictures; a plain one is drawn where the places of tokens are not known.
        names: what each of these is called; nothing, where that is plain.
        question: the prompt.
        model: name or folder of the model.
        reference: answer of the unpruned model, where it was asked.

    Raises:
        ResultsError: when a file cannot be written.
    """
    from tokentrim.explain.figures import decode_figure, stage_figure
    from tokentrim.explain.overview import overview_figure

    if any(explanation.in_order for explanation in explanations):
        images, names = [plain()], [""]
    earlier = _listed(path)
    files: list[Path] = []
    with figure_style() as plt:

        def save(name: str, figure: Any) -> None:
            write_atomic(path / name, lambda part: figure.savefig(part))
            plt.close(figure)
            files.append(path / name)

        save("side-by-side.png", overview_figure(plt, explanations, images, names, question, reference))
        for number, explanation in enumerate(explanations, 1):
            begin = f"{number}-{_slug(explanation.spec.get('name', 'composition'))}"
            for order, stage in enumerate(explanation.stages, 1):
                name = f"{begin}-{order:02d}-boundary-{stage.boundary:02d}.png"
                save(name, stage_figure(plt, explanation, stage, images, names))
            if explanation.evictions:
                save(f"{begin}-decode.png", decode_figure(plt, explanation, images))
    numbers = {
        "question": question,
        "model": model,
        "unpruned_answer": reference,
        "strategies": [explanation.to_dict() for explanation in explanations],
        "files": [file.name for file in files],
    }
    write_json(path / _NUMBERS, numbers)
    for name in earlier - {file.name for file in files}:
        (path / name).unlink(missing_ok=True)
    return [*files, path / _NUMBERS]


def _listed(path: Path) -> set[str]:
    """Pictures that an earlier explanation wrote into the folder."""
    file = path / _NUMBERS
    if not file.exists():
        return set()
    remedy = "choose another --out"
    data = read_json(file, remedy)
    with reading(file, remedy):
        names: list[str] = data["files"]
        return {name for name in names if Path(name).name == name and name.endswith(".png")}


def _slug(text: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "strategy"
