"""Every metric against values computed by hand, or by the benchmark's own scorer."""

from pathlib import Path

import pytest

from tokentrim.tasks.metrics import METRICS, Gold, chosen, plain
from tokentrim.tasks.names import ENDINGS
from tokentrim.tasks.questions import COLUMNS
from tokentrim.tasks.vqa import normalised

TEN = ["red"] * 2 + ["dark red"] * 5 + ["blue"] * 3


def scored(metric, answers, said, choices=()):
    return METRICS[metric].score(Gold(answers, choices), said)


@pytest.mark.parametrize(
    ("metric", "answers", "said", "score"),
    [
        ("exact", ["The Cat"], "a cat.", 1.0),
        ("exact", ["cat", "dog"], "dog", 1.0),
        ("exact", ["cat"], "cats", 0.0),
        ("exact", ["+"], "-", 0.0),
        ("contains", ["red ring"], "I see a red ring, and more.", 1.0),
        ("contains", ["ring"], "a spring", 0.0),
        # SQuAD: {cat, sat} and {cat}: precision 1/2, recall 1
        ("f1", ["the cat"], "a cat sat", 2 / 3),
        ("f1", ["dog", "cat sat"], "a cat sat", 1.0),
        ("f1", ["dog"], "cat", 0.0),
        # one edit in 11 characters; two of four are exactly a half, which stays; three of four are below it
        ("anls", ["hello world"], "Helo  world", 1 - 1 / 11),
        ("anls", ["abcd"], "ab", 0.5),
        ("anls", ["abcd"], "a", 0.0),
        ("anls", ["zzzz", "ABC"], "abc ", 1.0),
        ("relaxed", ["100"], "105", 1.0),
        ("relaxed", ["100"], "105.1", 0.0),
        ("relaxed", ["12%"], "0.12", 1.0),
        ("relaxed", ["0"], "0.0", 0.0),  # as its scorer: nothing is near to 0, and the texts differ
        ("relaxed", ["0"], "0", 1.0),
        ("relaxed", ["Yes"], "yes", 1.0),
        ("regex", [r"^row[1-4] col\d$"], "row3 col2", 1.0),
        ("regex", ["^col", "2$"], "row3 col2", 1.0),
        ("regex", ["^col"], "row3 col2", 0.0),
        ("yes-no", ["yes"], "Yes, it is.", 1.0),
        ("yes-no", ["No"], "There is not. Yes", 1.0),
        ("yes-no", ["no"], "There is none", 0.0),  # POPE takes whatever has no no or not for a yes
    ],
)
def test_scores(metric, answers, said, score):
    assert scored(metric, answers, said) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "score"),
    [
        # 3 said so: left out in turn, 3 of 10 times 2/3 is left, else 1
        ("blue", (3 * 2 / 3 + 7) / 10),
        # 2 said so: 1/3 where one of them is left out, else 2/3
        ("Red.", (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("the dark red", 1.0),
        ("green", 0.0),
    ],
)
def test_vqa_accuracy(said, score):
    assert scored("vqa", TEN, said) == pytest.approx(score)


def test_vqa_normalises_only_where_people_differ():
    assert scored("vqa", ["2"] * 10, "two") == 0.0
    assert scored("vqa", [*["2"] * 9, "3"], "two") == 1.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The  Two dogs!", "2 dogs"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("1,000-dollar", "1000dollar"),
        ("U.S.", "us"),
        ("1.5", "1.5"),
        ("none", "0"),
    ],
)
def test_vqa_normalisation(text, found):
    """Values of the official processPunctuation and processDigitArticle."""
    assert normalised(text) == found


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("B. red", "B"),
        ("B) red", "B"),
        ("The answer is B", "B"),
        ("Answer: (C)", "C"),
        ("red", "B"),
        ("I think that it is red.", "B"),
        ("A red car", "B"),
        ("It's A", "A"),
        ("A dog", None),
        ("Either B or C", None),
        ("red or green", None),
        ("", None),
        ("D", None),
    ],
)
def test_the_choice_that_an_answer_names(said, letter):
    assert chosen(said, ["blue", "red", "green"]) == letter


def test_choices_are_scored_by_letter():
    assert scored("choice", ["B"], "red", ["blue", "red"]) == 1.0
    assert scored("choice", ["B"], "Answer: B") == 1.0


def test_popes_rates():
    """2 right yes, 1 wrong yes, 1 missed yes, 1 right no: precision 2/3, recall 2/3."""
    answered = [("yes", "Yes"), ("yes", "yes."), ("no", "Yes"), ("yes", "No"), ("no", "no")]
    pairs = [(Gold([right]), said) for right, said in answered]
    for name in ("precision", "recall", "f1"):
        total = METRICS[f"yes-no-{name}"].total
        assert total is not None
        assert (total(pairs), total([(Gold(["yes"]), "no")])) == (pytest.approx(2 / 3), 0.0)


@pytest.mark.parametrize(
    ("metric", "answers", "said"),
    [
        ("vqa", ["red"] * 3, "4 people or more"),
        ("yes-no", ["maybe"], "yes or no"),
        ("regex", ["("], "regular expression"),
        ("choice", ["red"], "letter from A to Z; or give 'choices'; got 'red'"),
        ("relaxed", ["inf"], "finite"),
    ],
)
def test_what_a_metric_cannot_score(metric, answers, said):
    assert said in METRICS[metric].wrong(Gold(answers))
    assert not METRICS["exact"].wrong(Gold(answers))


def test_every_metric_says_what_it_is_and_where_from():
    assert all(metric.says and metric.source and metric.name == name for name, metric in METRICS.items())
    assert plain("An  apple, a Pear") == "apple pear"


def test_the_page_names_every_metric_and_column():
    page = (Path(__file__).parents[2] / "docs/your-questions.md").read_text(encoding="utf-8")
    assert not [name for name in (*METRICS, *COLUMNS, *ENDINGS) if f"`{name}`" not in page]
