"""Easy and hard questions."""

from tokentrim.compare.split import split


def test_hard_is_what_the_full_picture_answers_and_the_smaller_one_does_not():
    unpruned = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    found = split(unpruned, {"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.0})
    assert found.easy == ("a",)
    assert found.hard == ("b",)


def test_a_graded_answer_is_easy_when_the_smaller_picture_gives_as_much():
    found = split({"a": 0.8, "b": 0.8, "c": 0.8}, {"a": 0.8, "b": 0.9, "c": 0.7})
    assert found.easy == ("a", "b")
    assert found.hard == ("c",)


def test_a_question_that_either_run_failed_on_is_in_neither_group():
    assert split({"a": 1.0, "b": 1.0}, {"a": 1.0}) == (("a",), ())
