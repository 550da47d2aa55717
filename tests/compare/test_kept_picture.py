"""kept.png: whatever stands in it fits."""

import copy
import json

import matplotlib.figure
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tokentrim.compare.pictures import kept_picture


@pytest.mark.parametrize("question", ["where ?", "where is the small green triangle that stands beside a second one ?"])
@pytest.mark.parametrize("methods", [("random",), None])
def test_words_run_neither_into_each_other_nor_over_the_edge(finished, tmp_path, monkeypatch, question, methods):
    gallery = json.loads((finished.folder / "gallery.json").read_text())
    for found in gallery["questions"]:
        found["question"] = question
        found["methods"] = [
            copy.deepcopy(line) for line in found["methods"] if not methods or line["method"] in methods
        ]
        for line in found["methods"]:
            line["prediction"], line["score"] = "row1 row1 col3", 0.0
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, *to, **how: (figures.append(figure), save(figure, *to, **how)),
    )
    model = gallery["questions"][0]["model"]
    kept_picture(gallery, model, tmp_path / "kept.png")
    figure = figures[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts if text.get_text()]
    assert len(boxes) > 3
    width, height = figure.get_size_inches() * figure.dpi
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)
    assert not [(a, b) for place, a in enumerate(boxes) for b in boxes[:place] if a.overlaps(b)]
