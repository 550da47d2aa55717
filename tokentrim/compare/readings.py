"""How to read the tables of a comparison, in the words that every report uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MEANS_READING: Final = """\
*Budget*: what was asked for; *realised*: the same share as it was measured. The costs beside it are measured as well,
as shares of the unpruned run in per cent: visual tokens per layer (mean over layers, prefill), visual KV entries (mean
over decode steps, and at the last one), prefill FLOPs of the language model (physical convention). Scores are means
over tasks in per cent, with a 95 % interval. *Text only*: the score with every visual token dropped at the boundary
where the method first prunes; what a method scores above it is what its kept tokens give. *p vs random*: paired test
against random selection at the same budget, corrected for the number of tests in the column. *Same as unpruned*: share
of answers that equal the unpruned run's word for word."""
SPLIT_READING: Final = """\
*Easy*: the unpruned model has an answer, and so has the model with the picture scaled down to the same budget. *Hard*:
the unpruned model has one, and the scaled-down picture does not give it. Scores in per cent over the questions of all
tasks; on both groups the unpruned run is right by construction (for lists: has the points that it has)."""
_TIME_READING: Final = """\
Medians of {repeats} runs of {questions} questions at once with {new_tokens} new tokens each, in turn with the unpruned
model; quartiles in brackets; shares are of the unpruned run right before. Prefill is the time to the first new token,
vision tower and selection included; peak memory is beyond the weights. A verdict is *net saving* where three of four
runs are faster by more than the spread of the unpruned runs; *no net saving*: slower by more than it; else *within the
spread*."""


def time_reading(data: Mapping[str, Any], model: str) -> str:
    """How to read the timing pass of one model in a summary's data; empty where there was none."""
    settings = next((row for row in data["timings"] if row["model"] == model), None)
    return "" if settings is None else _TIME_READING.format_map(settings)
