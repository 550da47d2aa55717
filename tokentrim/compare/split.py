"""Easy and hard questions: what smaller pictures answer anyway, and what they do not.

Both groups hold only questions that the unpruned model gets something for: nobody can keep what was never there. Of
these, a question is *easy* at a budget if the run with smaller pictures (``downscale``) scores on it at least what the
unpruned run does, else it is *hard*. For right-or-wrong scores: hard is what the full picture answers and the smaller
one does not. By construction the unpruned run is right on all of both, and ``downscale`` on all easy and no hard ones.
"""

from __future__ import annotations

from typing import NamedTuple

from tokentrim.compare.index import Scores


class Split(NamedTuple):
    """Questions by group; in neither are those that the unpruned run scores nothing for."""

    easy: tuple[str, ...]
    hard: tuple[str, ...]


def split(unpruned: Scores, downscaled: Scores) -> Split:
    """The groups of the questions that both runs answered."""
    known = [question for question, score in unpruned.items() if question in downscaled and score > 0]
    easy = tuple(question for question in known if downscaled[question] >= unpruned[question])
    return Split(easy, tuple(question for question in known if downscaled[question] < unpruned[question]))
