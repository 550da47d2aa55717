"""The family of errors, its grammar, and its suggestions."""

import pickle

import pytest

from tokentrim import errors
from tokentrim.errors import complaint, nearest, suggestion, unknown_name

FAMILY = [
    found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, Exception) and found.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", FAMILY)
def test_every_error_is_of_the_family_and_documented(error):
    assert issubclass(error, errors.TokentrimError)
    assert error.__doc__
    assert error.exit_code in (1, 2)


@pytest.mark.parametrize("error", FAMILY)
def test_errors_cross_process_borders(error):
    copy = pickle.loads(pickle.dumps(error("a message")))
    assert type(copy) is error
    assert str(copy) == "a message"


def test_complaint_follows_the_grammar():
    assert (
        complaint("keep_ratio of strategy 'fastv'", "lie in (0, 1]", 1.5, "write 0.5 to keep half")
        == "keep_ratio of strategy 'fastv' must lie in (0, 1]; got 1.5. Write 0.5 to keep half."
    )


def test_complaint_without_value_or_hint():
    assert complaint("the trace", "be saved first") == "the trace must be saved first."
    assert complaint("the trace", "be given", None) == "the trace must be given; got None."


def test_a_hint_that_opens_with_code_keeps_its_letters():
    assert complaint("x", "be set", hint="keep_ratio does it").endswith(" keep_ratio does it.")


def test_a_long_value_is_cut():
    assert len(complaint("x", "be short", "y" * 10_000)) < 400


@pytest.mark.parametrize(("name", "meant"), [("fastb", "fastv"), ("FastV", "fastv"), ("st", "st3"), ("zzzz", None)])
def test_nearest(name, meant):
    assert nearest(name, ["fastv", "st3", "none"]) == meant


def test_unknown_name_suggests_and_lists():
    text = str(unknown_name("strategy", "fastb", ["st3", "fastv"]))
    assert text == "the strategy must be a registered name; got 'fastb'. Did you mean 'fastv'? Known: fastv, st3."


def test_suggestion_from_nothing():
    assert suggestion("x", []) == "None is known."
