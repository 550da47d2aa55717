"""What notebooks show of sessions, reports, traces and plans: self-contained, and the same where nothing is trusted."""

import base64
import io
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import tokentrim
from tests.models import prompt, tiny_llava
from tokentrim.contracts.sites import Need
from tokentrim.counting.published import PRESETS
from tokentrim.drawing.notebook import folded, kept_patches, table


def opened(uri) -> Any:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))


def near(pixel, wanted):
    return all(abs(one - other) < 6 for one, other in zip(pixel, wanted, strict=True))


def require_untrusted(html):
    assert not re.search(r"<(script|style|input|link|iframe)\b|\son\w+=|javascript:", html)
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "background" not in html  # of the page, which may be dark


def test_dropped_patches_are_nearly_grey():
    image = Image.new("RGB", (40, 20), (10, 200, 30))
    found = opened(kept_patches(image, [0, 3], 2, 2))
    assert found.size == (240, 120)
    assert near(found.getpixel((5, 5)), (10, 200, 30))
    assert near(found.getpixel((235, 5)), (107, 141, 110))
    assert near(found.getpixel((235, 115)), (10, 200, 30))


def test_without_a_picture_there_are_squares():
    found = opened(kept_patches(None, [1], 1, 2))
    assert max(found.getpixel((5, 5))) < 150
    assert found.getpixel((235, 5))[2] > 200


def test_words_are_escaped():
    assert "<b>" not in table(["<b>"], [["<b>"]], "<b>") + folded([("<b>", [])], "<b>")


def test_one_stage_is_open():
    html = folded([("a", []), ("b", [])], "g")
    assert html.count("<details") == 2
    assert html.count(" open>") == 1
    assert html.index(" open>") > html.index("<summary>a<")


@pytest.fixture(scope="module")
def session():
    model = tiny_llava()
    with tokentrim.trim(model, {"name": "fastv", "keep_ratio": 0.5}) as session:
        assert "follow at least one prompt" in session._repr_html_()
        with torch.inference_mode():
            model.generate(**prompt(model, (3, "image", 4)), max_new_tokens=3, do_sample=False)
    return session


def test_a_session_shows_stages_and_report(session):
    html = session._repr_html_()
    require_untrusted(html)
    assert "from layer 0: " in html
    assert "from layer 2: " in html
    assert "prefill FLOPs" in html
    assert "annotate(images" in html
    assert html.count("<img") == html.count("<details") == 2


def test_pictures_are_drawn_on_until_the_next_prompt(session):
    session.annotate(images=[Image.new("RGB", (28, 28), (200, 20, 20))])
    try:
        html = session._repr_html_()
        assert "annotate(images" not in html
        pixels = opened(re.search(r'src="([^"]*)"', html)[1]).convert("RGB")
        assert near(pixels.getpixel((5, 5)), (200, 20, 20))
    finally:
        session.annotate(images=[])


def test_tokens_whose_places_are_not_known_are_shown_in_their_order(session, monkeypatch):
    unserved = {Need.GRID: "a change shows <elsewhere>"}
    monkeypatch.setattr(session, "layout", replace(session.layout, unserved=unserved))
    session.annotate(images=[Image.new("RGB", (28, 28), (200, 20, 20))])
    try:
        html = session._repr_html_()
    finally:
        session.annotate(images=[])
    require_untrusted(html)
    assert "tokens in their order, not in their places: a change shows &lt;elsewhere&gt;" in html
    pixels = opened(re.search(r'src="([^"]*)"', html)[1]).convert("RGB")
    assert pixels.getpixel((5, 5))[0] < 150  # a square, not the picture


def test_a_trace_shows_counts(session):
    html = session.trace._repr_html_()
    require_untrusted(html)
    assert "from layer 2" in html


def test_a_report_shows_its_lines(session):
    report = session.report()
    html = report._repr_html_()
    require_untrusted(html)
    assert all(name in html and name in str(report) for name in ("visual KV", "prefill FLOPs", "time"))


def test_a_plan_shows_its_table():
    plan = tokentrim.plan(tokentrim.strategy_from("st3").strategy, PRESETS["llava-1.5-7b"], 576)
    html = plan._repr_html_()
    require_untrusted(html)
    assert "prefill FLOPs, physical" in html
    assert "visual tokens in layers 0-" in html
