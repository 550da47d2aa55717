"""Lines of text that fit their place."""

import pytest

from tokentrim.drawing.sheet import cut, fitted, width_of


def test_a_line_is_as_wide_as_it_is_drawn():
    assert width_of("", 9) == width_of("  ", 9) == 0
    assert width_of("wide words", 18) == pytest.approx(2 * width_of("wide words", 9), rel=0.05)
    assert width_of("wide words", 9, bold=True) > width_of("wide words", 9)
    assert width_of("costs $5 or $6", 9) > 0


@pytest.mark.parametrize("width", [0.3, 0.8, 1.7])
def test_a_line_is_cut_to_its_place(width):
    text = "where is the green triangle ?"
    found = fitted(text, width, 9)
    assert width_of(found, 9) <= width
    assert found.endswith(" …")
    assert text.startswith(found.removesuffix(" …"))
    assert fitted("short", 2, 9) == "short"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red ring", "a red ring"),
        ("a red ring, and a blue one", "a red ring, …"),
        ("赤い輪は左にあり青い四角は右にあります", "赤い輪は左にあり青い四角は…"),  # no blanks to cut at
        ("", ""),
    ],
)
def test_a_text_is_cut_between_words_where_there_are_any(text, found):
    assert cut(text, 14) == found
