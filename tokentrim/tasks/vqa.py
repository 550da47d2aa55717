"""VQA accuracy, with the normalisation of its official evaluation.

Ten people answered each question; an answer is as right as three of them say it is. See Antol et al., VQA, ICCV 2015,
and ``vqaEval.py`` of https://github.com/GT-Vision-Lab/VQA, whose order of steps is kept here, oddities included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

FEWEST: Final = 4
"""Answers that a question needs: one is left out in turn, and three others have to agree."""

_NUMBERS: Final = {
    word: str(number)
    for number, words in enumerate(
        (("none", "zero"), ("one",), ("two",), ("three",), ("four",), ("five",), ("six",), ("seven",), ("eight",),
         ("nine",), ("ten",))
    )
    for word in words
}  # fmt: skip
_ARTICLES: Final = frozenset({"a", "an", "the"})
_SIGNS: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_PERIOD: Final = re.compile(r"\.(?!\d)")
_MOST_PERIODS: Final = 32  # the official code hands a flag (re.UNICODE) where the number of replacements belongs
_SHORT_FORMS: Final = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've 'ow's'at
"""


def _misspelt() -> Iterator[tuple[str, str]]:
    """Short forms that lack one apostrophe, and how they are written."""
    for word in _SHORT_FORMS.split():
        for place, sign in enumerate(word):
            if sign == "'":
                yield word[:place] + word[place + 1 :], word


_CONTRACTIONS: Final = {**dict(_misspelt()), "somebody'd": "somebodyd"}  # the last as the official table has it


def vqa_accuracy(answers: Sequence[str], said: str) -> float:
    """How right an answer is: the mean, over leaving out each person, of min(1, others who said the same / 3)."""
    golds, prediction = [_on_one_line(answer) for answer in answers], _on_one_line(said)
    if len(set(golds)) > 1:  # where all agree, nothing is normalised
        golds, prediction = [normalised(gold) for gold in golds], normalised(prediction)
    same = sum(gold == prediction for gold in golds)
    scores = [min(1.0, (same - (gold == prediction)) / 3) for gold in golds]
    return sum(scores) / len(scores)


def normalised(text: str) -> str:
    """An answer without signs and articles, small numbers in digits, short forms with their apostrophe."""
    words = [_NUMBERS.get(word, word) for word in _without_signs(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_signs(text: str) -> str:
    """A sign at the edge of a word goes, one inside becomes a blank; beside a number with a comma every sign goes."""
    found, number = text, _COMMA_IN_NUMBER.search(text) is not None
    for sign in _SIGNS:
        edge = f"{sign} " in text or f" {sign}" in text
        found = found.replace(sign, "" if edge or number else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)
