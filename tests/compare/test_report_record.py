"""What a cell records of its visual tokens: small, and enough to walk through layers and decode steps."""

import copy
import csv
import json

import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from tokentrim.compare.gallery import opened, stored
from tokentrim.compare.report import FORMATS, publish, require_formats
from tokentrim.compare.summary import Summary
from tokentrim.contracts.token_places import Cells, Plane
from tokentrim.engine.tokens.trace import Trace
from tokentrim.errors import ConfigError
from tokentrim.runs.kept import Kept, from_runs, pieces, to_runs


@given(st.sets(st.integers(0, 600)))
def test_runs_say_the_same_numbers(numbers):
    assert from_runs(to_runs(sorted(numbers))) == sorted(numbers)


def test_runs_are_short():
    assert to_runs([0, 1, 2, 5, 7, 8]) == "0-2 5 7-8"
    assert to_runs([]) == ""


def rows(*sets):
    width = max(len(ids) for ids in sets)
    return torch.tensor([[*ids, *[-1] * (width - len(ids))] for ids in sets])


def trace():
    """Two rows over three layers: the second one's answer is longer."""
    made = Trace((6, 6), 3, steps=3)
    made.prefill = [(0, rows(range(6), range(6))), (1, rows([0, 2, 4, 5], [1, 2, 3, 5]))]
    made.evictions = {
        1: [(1, rows([0, 2, 4], [1, 2, 3, 5])), (3, rows([0], [1]))],
        2: [(1, rows([0, 2, 4], [1, 2, 3])), (2, rows([0, 2, 4], [1, 2, 3, 5]))],
    }
    return made


@pytest.mark.parametrize(("row", "steps"), [(0, 3), (0, 2), (1, 3), (1, 0)])
def test_a_record_says_what_the_trace_says(row, steps):
    made = trace()
    kept = Kept.from_dict(json.loads(json.dumps(Kept.of(made, row, steps).as_dict())))
    assert kept.steps == steps
    for layer in range(3):
        for step in range(steps + 1):
            assert kept.at(layer, step) == made.cached(layer, step, row).tolist()
    assert kept.end == made.cached(2, steps, row).tolist()


def test_a_record_ends_with_its_own_answer():
    assert Kept.of(trace(), 0, 1).as_dict()["evictions"] == [["1-2", [[1, "5"]]]]


def test_a_grid_is_recorded_as_runs():
    cells = Cells((Plane(0, 0, 0, 2, 2), Plane(0, 0, 1, 2, 3)), (0, 0, 0, 0, 1, 1, 1, -1, 1, 1, 1, -1),
                  (0, 1, 2, 3, 0, 1, 2, 0, 3, 4, 5, 0))  # fmt: skip
    written = cells.as_dict()
    assert written["runs"] == [[0, 0, 4], [1, 0, 3], [-1, 0, 1], [1, 3, 3], [-1, 0, 1]]
    again = Cells.from_dict(written)
    assert again.planes == cells.planes
    assert all(again.inside(number, range(12)) == cells.inside(number, range(12)) for number in (0, 1))


def test_an_answer_can_be_followed_token_by_token():
    class Bytes:
        def decode(self, ids, skip_special_tokens):
            return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    ids = [*"né!".encode(), 999]
    assert pieces(Bytes(), ids) == ["n", "", "é", "!", ""]


@pytest.mark.parametrize(("size", "kind"), [((80, 80), "png"), ((900, 600), "jpeg")])
def test_pictures_are_stored_small(size, kind):
    found = stored(Image.linear_gradient("L").resize(size))
    assert found["src"].startswith(f"data:image/{kind};base64,")
    assert (found["width"], found["height"]) == size
    assert opened(found).size == ((80, 80) if kind == "png" else (640, 427))


def test_the_gallery_holds_every_method_once(finished):
    gallery = json.loads((finished.folder / "gallery.json").read_text())
    assert [question["task"] for question in gallery["questions"]] == ["where", "list-all"]
    for question in gallery["questions"]:
        assert len(question["cells"]) == 1
        assert len(gallery["images"][question["images"]]) == 1
        methods = [(line["method"], line["boundary"]) for line in question["methods"]]
        assert {"none", "random", "fastv", "oracle", "text-only"} <= {name for name, _ in methods}
        assert len(set(methods)) == len(methods)
        for line in question["methods"]:
            assert "".join(line["tokens"]).strip() == line["prediction"]
            assert Kept.from_dict(line).steps == len(line["tokens"]) - 1
    listed = next(question for question in gallery["questions"] if question["task"] == "list-all")
    faded = Kept.from_dict(next(line for line in listed["methods"] if line["method"] == "vta"))
    assert len(faded.at(3, 0)) == 100 > len(faded.at(3, faded.steps))


def test_only_the_formats_that_were_asked_for_are_written(finished, tmp_path):
    gallery = json.loads((finished.folder / "gallery.json").read_text())
    written = publish(Summary(tmp_path, finished.data), gallery, ("csv",)).files
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "gallery.json", "summary.csv"}
    with written["csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["key"] for line in lines] == [row["key"] for row in finished.cells]
    assert json.loads(lines[1]["strategy"]) == finished.cells[1]["strategy"]


def test_formats_are_checked_before_anything_runs():
    assert require_formats([]) == FORMATS
    assert require_formats(["png", "md", "png"]) == ("md", "png")
    with pytest.raises(ConfigError, match="'pgn'. Did you mean 'png'?"):
        require_formats(["pgn"])


def test_no_text_of_a_table_is_a_formula(finished, tmp_path):
    data, gallery = copy.deepcopy(finished.data), {"schema": 1, "images": {}, "questions": []}
    texts = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", " -1", "a=1"]
    for row, text in zip(data["cells"], texts, strict=False):
        row["method"], row["accuracy"], row["=later()"] = text, -0.5, text
    written = publish(Summary(tmp_path, data), gallery, ("csv",)).files
    with written["csv"].open(newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header[-1] == "'=later()"
    for text, line in zip(texts, lines, strict=False):
        quoted = text if text == "a=1" else f"'{text}"
        assert (line[header.index("method")], line[-1]) == (quoted, quoted)
        assert line[header.index("accuracy")] == "-0.5", "a number stays one"
