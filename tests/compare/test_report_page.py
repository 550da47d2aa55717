"""report.html as text: one file, nothing fetched, every value escaped, and nothing of the summary left out."""

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tests.compare.hostile import HOSTILE, hostile
from tokentrim.compare.fronts import chart
from tokentrim.compare.page import columns, page
from tokentrim.compare.summary import Summary
from tokentrim.compare.tables import task_grid
from tokentrim.drawing.style import looks
from tokentrim.runs.figures import CHARTED, Figure

NO_CHILDREN = {"meta", "link", "input", "br", "img"}


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in NO_CHILDREN:
            self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


def gallery_of(finished):
    return json.loads((finished.folder / "gallery.json").read_text())


@pytest.fixture
def html(finished):
    return (finished.folder / "report.html").read_text()


def test_the_file_is_the_whole_report(html):
    for tag, attributes in read(html).tags:
        for name in ("src", "href"):
            link = attributes.get(name)
            assert link is None or link.startswith(("#", "data:")), (tag, link)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_only_our_script_may_run(html):
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(scripts) == 1
    policy = next(attributes["content"] for _, attributes in read(html).tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_every_number_of_the_summary_is_there(finished, html):
    text = " ".join(read(html).text)
    for row in finished.cells:
        assert row["key"] in text
        assert f"{100 * row['accuracy']:.1f}" in text
    for note in finished.data["notes"]:
        assert note in text
    for name, number in finished.data["versions"].items():
        assert name in text
        assert number in text
    assert finished.data["command"] in text
    assert finished.data["models"]["testbed-plain"]["fingerprint"] in text


def test_what_a_later_version_adds_is_shown(finished):
    data = copy.deepcopy(finished.data)
    for row in (*data["cells"], *data["overall"]):
        row |= {"p_vs_random_corrected": 0.0421, "verdict": "no net saving", "by_difficulty": {"hard_accuracy": 0.317}}
        row |= {"prefill_seconds_median": 0.12345, "peak_share": 0.777}
    data["verdicts"] = [{"method": "fastv", "verdict": "costs more than it saves", "seconds": 1.25}]
    data["machine"] = {"cores": 2}
    data["remarks"] = ["one remark"]
    text = " ".join(read(page(Summary(finished.folder, data), gallery_of(finished))).text)
    for said in (
        "0.042", "no net saving", "31.7", "p vs random corrected", "by difficulty: hard accuracy", "123", "77.7",
        "costs more than it saves", "1.25", "cores", "one remark",
    ):  # fmt: skip
        assert said in text, said


def test_values_are_text_whatever_they_hold(finished):
    data, gallery = hostile(finished.data, gallery_of(finished))
    written = page(Summary(finished.folder, data), gallery)
    clean, found = read(page(finished, gallery_of(finished))), read(written)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in clean.tags]
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert HOSTILE in " ".join(found.text)
    assert written.count("</script>") == 2


def test_a_page_without_pictures_or_methods_is_still_a_page(finished):
    nothing = {"schema": 1, "images": {}, "questions": []}
    data = {**finished.data, "overall": [], "cells": [], "skipped": [], "failures": 3, "first_failure": "no luck"}
    text = " ".join(read(page(Summary(finished.folder, data), nothing)).text)
    assert "3 failed" in text
    assert "no luck" in text


def rows(scores, unit="%"):
    base = {
        "metric": "exact", "tasks": ["t"], "seed": None, "seeds": [], "boundary": 2, "matched_by": "fixed",
        "unit": unit, "failures": 0, "kv_mean_ratio": None, "flops_ratio": 0.5,
    }  # fmt: skip
    return [
        {**base, "method": method, "budget_requested": x, "layer_mean_ratio": x, "accuracy": y, "accuracy_low": None,
         "accuracy_high": None}
        for method, x, y in scores
    ]  # fmt: skip


def test_a_chart_begins_at_zero_and_its_labels_do_not_touch():
    names = [f"method-{n}" for n in range(24)]
    found = chart(rows([("none", 1.0, 1.0), *((name, 0.3, 0.9) for name in names)]), "layer_mean_ratio", looks(names))
    assert found.x_ticks[0].text == found.y_ticks[0].text == "0%"
    assert (found.x_ticks[-1].text, found.y_ticks[-1].text) == ("100%", "100%")
    heights = sorted(label.y for label in found.labels)
    assert all(below - above >= 14 for above, below in pairwise(heights))
    assert found.top <= heights[0]
    assert heights[-1] <= found.bottom
    assert chart(rows([("fastv", 0.3, 0.9)]), "kv_mean_ratio", looks(["fastv"])) is None


def test_the_front_holds_what_nothing_as_cheap_beats():
    scores = [
        ("none", 1.0, 1.0),
        ("a", 0.2, 0.5),
        ("a", 0.4, 0.6),
        ("b", 0.3, 0.4),
        ("b", 0.5, 0.9),
        ("oracle", 0.1, 1),
    ]
    found = chart(rows(scores), "layer_mean_ratio", looks(["a", "b"]))
    corners = set(found.front)
    on = {series.method: [(point.x, point.y) in corners for point in series.points] for series in found.series}
    assert on == {"a": [True, True], "b": [False, True], "oracle": [False]}


def test_a_score_on_a_scale_of_its_own_keeps_it():
    found = chart(rows([("none", 1.0, 1500.0), ("a", 0.2, 900.0)], unit=""), "layer_mean_ratio", looks(["a"]))
    assert [tick.text for tick in found.y_ticks] == ["0", "500", "1000", "1500"]
    assert CHARTED["layer_mean_ratio"] == found.title


def test_data_are_written_on_one_line():
    assert columns.inline({"a": [0, 1, 2.5, True, False, None], "b": {"c": "d", "e": None}}) == (
        "{a: [0, 1, 2.5, true, false, null], b: {c: d}}"
    )


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_every_method_stands_out_from_both_papers():
    for method, look in looks([f"method-{n}" for n in range(10)]).items():
        assert contrast(look.color, "#ffffff") >= 3, method
        assert contrast(look.dark, "#14171c") >= 3, method
        assert contrast(look.color, "#cfd4dc") >= 2, method


def test_a_control_stays_one_under_any_label():
    found = looks(["chance", "mine"], {"chance": "random", "mine": "fastv"})
    assert found["chance"].role == "control"
    assert found["mine"].role == "method"
    assert {found[name].role for name in ("random", "uniform", "pool", "downscale")} == {"control"}


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.12345, "share", "12.3"),
        (0.0004, "p", "< 0.001"),
        (0.0123, "seconds", "12.3"),
        (1234.5, "number", "1234"),
        (12, "number", "12"),
        (None, "number", ""),
        (True, "text", "yes"),
        (0, "number", "0"),
        (1, "number", "1"),
    ],
)
def test_values_are_written_for_reading(value, kind, text):
    assert columns.written({"a": value}, Figure("a", "a", kind, "more", "")).text == text


def test_the_page_and_the_tables_have_one_order(finished):
    """Text-only runs stand by their boundary, although those of later boundaries may have been run first."""
    data = copy.deepcopy(finished.data)
    data["cells"] = [*(row for row in data["cells"] if row["method"] != "text-only"),
                     *sorted((row for row in data["cells"] if row["method"] == "text-only"),
                             key=lambda row: -row["boundary"])]  # fmt: skip
    names = [line[0] for line in task_grid(data, "testbed-plain")[1]]
    assert names[-2:] == ["text-only@0", "text-only@2"]
    text = page(Summary(finished.folder, data), gallery_of(finished))
    part = text[text.index("Scores of testbed-plain task by task</caption>") :]
    found = re.findall(r'<th scope="row" data-sort="([^"]*)"', part[: part.index("</table>")])
    assert found == names
