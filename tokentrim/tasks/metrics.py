"""How answers to questions from a file are scored: every metric once, with where its definition is from.

Each scores one answer from 0 to 1. Where a benchmark's own scorer exists, the numbers are that scorer's.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from tokentrim.contracts.tasks import Metric
from tokentrim.tasks.vqa import FEWEST, vqa_accuracy

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_SIGNS: Final = str.maketrans("", "", string.punctuation)
_ANLS_THRESHOLD: Final = 0.5
_RELAXED: Final = 0.05
LETTERS: Final = string.ascii_uppercase
"""Names of the choices of a question, in their order."""


class Gold(NamedTuple):
    """What is known to be right.

    Attributes:
        answers: each of them is right; of a multiple choice its letter.
        choices: texts of a multiple choice, called A, B, C and so on.
    """

    answers: Sequence[str]
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class AnswerMetric:
    """One way to score.

    Attributes:
        name: what ``metric:`` calls it.
        kind: exact: 0 or 1 per answer; f1: a share per answer; graded: the answers together have a number of their own.
        says: what it is, in a line.
        source: where the definition is from.
        score: of one answer.
        wrong: what makes a question one that it cannot score; "" where nothing does.
        total: of all answers together; None: the mean of their scores.
        max_new_tokens: longest answer that it expects.
    """

    name: str
    kind: Metric
    says: str
    source: str
    score: Callable[[Gold, str], float]
    wrong: Callable[[Gold], str] = lambda gold: ""
    total: Callable[[Sequence[tuple[Gold, str]]], float] | None = None
    max_new_tokens: int = 64


def plain(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous blanks, as SQuAD compares answers.

    A text of signs alone stays as it is.
    """
    words = _ARTICLES.sub(" ", text.lower().translate(_SIGNS)).split()
    return " ".join(words) or text.strip().lower()


def exact(gold: Gold, said: str) -> float:
    """1 where the answer is one of the right ones, but for case, punctuation and articles."""
    return float(plain(said) in map(plain, gold.answers))


def contains(gold: Gold, said: str) -> float:
    """1 where the words of a right answer stand side by side in the answer."""
    return float(any(f" {plain(answer)} " in f" {plain(said)} " for answer in gold.answers))


def f1(gold: Gold, said: str) -> float:
    """F1 of the words that an answer and the nearest right one share."""
    return max(_overlap(plain(said).split(), plain(answer).split()) for answer in gold.answers)


def _overlap(said: Sequence[str], right: Sequence[str]) -> float:
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def anls(gold: Gold, said: str) -> float:
    """1 - edit distance / length of the longer text, for the nearest right answer; 0 where that is below a half."""
    found = max(_similarity(said, answer) for answer in gold.answers)
    return found if found >= _ANLS_THRESHOLD else 0.0


def _similarity(said: str, right: str) -> float:
    length = max(len(said), len(right))  # as given: the official code counts the blanks that it takes out before
    words = (" ".join(text.strip().lower().split()) for text in (said, right))
    return 1.0 - (_distance(*words) / length if length else 0.0)


def _distance(one: str, other: str) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def relaxed(gold: Gold, said: str) -> float:
    """1 where a number is within 5 % of the right one, or a text equals it but for case."""
    return float(any(_near(said.strip(), answer.strip()) for answer in gold.answers))


def _near(said: str, right: str) -> bool:
    mine, target = _number(said), _number(right)
    if mine is None or not target:  # nothing is within 5 % of 0
        return said.lower() == right.lower()
    return abs(mine - target) / abs(target) <= _RELAXED


def _number(text: str) -> float | None:
    """A number; 12% is 0.12."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa(gold: Gold, said: str) -> float:
    """VQA accuracy."""
    return vqa_accuracy(gold.answers, said)


def choice(gold: Gold, said: str) -> float:
    """1 where the choice that an answer names is the right one."""
    return float(chosen(said, gold.choices) in gold.answers)


def chosen(said: str, choices: Sequence[str]) -> str | None:
    """The letter of the choice that an answer names; None where it names none, or several.

    In this order: a letter at the beginning (``B``, ``b``, ``(B)``, ``B. red``), one after the word answer, option or
    choice (``the answer is B``), the whole text of a choice, the only letter that stands alone (``A``, which is a word,
    in brackets or at the end), the only choice whose words are in the answer.
    """
    letters = LETTERS[: len(choices)] if choices else LETTERS
    text = said.strip()
    if len(text) == 1 and text.upper() in letters:
        return text.upper()
    first = re.match(rf"\(?([{letters}])(?:$|[).:,]|\s*$)", text) or re.match(rf"\(([{letters}])\)", text)
    named = re.search(rf"\b(?:answer|option|choice)(?:\s+is)?\s*:?\s*\(?([{letters}])\b(?!')", text, re.IGNORECASE)
    if found := first or (named if named and named[1].isupper() else None):
        return found[1]
    same = [letter for letter, option in zip(letters, choices, strict=False) if plain(option) == plain(text)]
    if len(same) == 1:
        return same[0]
    alone = set(re.findall(r"(?:\b[B-Z]\b(?!')|(?<=\()A(?=\))|\bA(?=[.)]?$))", text)) & set(letters)
    if len(alone) == 1:
        return alone.pop()
    inside = [letter for letter, option in zip(letters, choices, strict=False) if contains(Gold([option]), text) == 1.0]
    return inside[0] if len(inside) == 1 and not alone else None


def says_yes(said: str) -> bool:
    """Whether POPE takes an answer for a yes: unless No, no or not is a word of its first sentence."""
    return not {"No", "no", "not"} & set(said.split(".")[0].replace(",", "").split(" "))


def yes_no(gold: Gold, said: str) -> float:
    """1 where an answer is a yes or a no as it should be."""
    return float(says_yes(said) == _is_yes(gold))


def _is_yes(gold: Gold) -> bool:
    return gold.answers[0].strip().lower() == "yes"


def _rates(answered: Sequence[tuple[Gold, str]]) -> tuple[float, float, float]:
    """Precision, recall and F1 of yes; 0 where there is nothing to divide by."""
    seen = Counter((_is_yes(gold), says_yes(said)) for gold, said in answered)
    right = seen[True, True]
    share = [right / whole if whole else 0.0 for whole in (right + seen[False, True], right + seen[True, False])]
    return share[0], share[1], 2 * share[0] * share[1] / sum(share) if right else 0.0


def matches(gold: Gold, said: str) -> float:
    """1 where one of the patterns is found in the answer."""
    return float(any(re.search(pattern, said) for pattern in gold.answers))


def is_yes_or_no(answer: str) -> bool:
    """Whether an answer is a yes or a no."""
    return answer.strip().lower() in ("yes", "no")


def _not_yes_no(gold: Gold) -> str:
    return "" if all(map(is_yes_or_no, gold.answers)) and len(gold.answers) == 1 else "the answer must be yes or no"


def _too_few(gold: Gold) -> str:
    return "" if len(gold.answers) >= FEWEST else f"'answers' must list what {FEWEST} people or more said (VQA: 10)"


def _no_letter(gold: Gold) -> str:
    known = LETTERS[: len(gold.choices)] if gold.choices else LETTERS
    wrong = [answer for answer in gold.answers if len(answer) != 1 or answer not in known]
    said = ", or the text of a choice" if gold.choices else "; or give 'choices'"
    return f"the answer must be a letter from A to {known[-1]}{said}; got {wrong[0]!r}" if wrong else ""


def _no_pattern(gold: Gold) -> str:
    for pattern in gold.answers:
        try:
            re.compile(pattern)
        except re.error as cause:
            return f"the answer must be a regular expression: {cause}"
    return ""


def _no_number_beyond(gold: Gold) -> str:
    numbers = [number for answer in gold.answers if (number := _number(answer.strip())) is not None]
    return "" if all(map(math.isfinite, numbers)) else "the answer must be a finite number, or text"


_POPE: Final = "POPE, evaluate.py: https://github.com/AoiDragon/POPE (Li et al., EMNLP 2023)"
_SQUAD: Final = "SQuAD 1.1, evaluate-v1.1.py (Rajpurkar et al., EMNLP 2016)"

METRICS: Final[Mapping[str, AnswerMetric]] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            AnswerMetric("exact", "exact", "equal, but for case, punctuation and articles", _SQUAD, exact),
            AnswerMetric(
                "contains", "exact", "the words of a right answer side by side in the answer",
                "our own, with SQuAD's normalisation", contains,
            ),
            AnswerMetric("f1", "f1", "F1 of the words of the nearest right answer", _SQUAD, f1),
            AnswerMetric(
                "anls", "f1", "1 - edit distance / length, 0 below a half",
                "DocVQA's and InfographicVQA's official script (Biten et al., ICCV 2019)", anls,
            ),
            AnswerMetric(
                "relaxed", "exact", "numbers within 5 %, texts equal but for case",
                "ChartQA (Masry et al., ACL Findings 2022, section 5.1), as lmms-eval and Qwen-VL score it",
                relaxed, _no_number_beyond,
            ),
            AnswerMetric(
                "vqa", "f1", "min(1, people who said the same / 3), each left out once, averaged",
                "VQA, vqaEval.py: https://github.com/GT-Vision-Lab/VQA (Antol et al., ICCV 2015)", vqa, _too_few,
            ),
            AnswerMetric(
                "choice", "exact", "the letter or the text of the right choice; one that names none is wrong",
                "our own rules, without the random guess of MMMU's parser", choice, _no_letter,
            ),
            AnswerMetric("yes-no", "exact", "accuracy of yes and no", _POPE, yes_no, _not_yes_no),
            *(
                AnswerMetric(
                    f"yes-no-{name}", "graded", f"{name} of yes, over all answers", _POPE, yes_no, _not_yes_no,
                    total=lambda answered, place=place: _rates(answered)[place],
                )
                for place, name in enumerate(("precision", "recall", "f1"))
            ),
            AnswerMetric("regex", "exact", "the answer is a pattern, found in what is said", "Python's re.search",
                         matches, _no_pattern),
        )
    }
)  # fmt: skip
"""Every metric by its name."""
