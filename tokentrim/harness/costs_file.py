"""``tokentrim-costs.json``: what the run of a harness cost, beside the harness's own results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokentrim.engine.report import describe
from tokentrim.harness.answering import Answerer
from tokentrim.runs.cells import versions
from tokentrim.runs.costs import Costs, total
from tokentrim.runs.files import make_folder, write_json

NAME: Final = "tokentrim-costs.json"


def costs_data(answerer: Answerer, costs: Mapping[str, Costs], processes: int) -> dict[str, Any]:
    """The content of the file.

    Args:
        answerer: of this process.
        costs: by task, of all processes.
        processes: how many there were.
    """
    options = answerer.options
    return {
        "strategy": options.chosen.strategy.spec(),
        "structure": options.chosen.structure,
        "budget": options.ratios or None,
        "new_tokens_planned": options.new_tokens,
        "solved": {str(n): strategy.spec() for (n, _), strategy in sorted(answerer.solved.items())},
        "model": {"pretrained": options.model_name, **describe(answerer.loaded.model)},
        "batch_size": options.batch_size,
        "processes": processes,
        "ignored_generation_settings": sorted(answerer.ignored),
        "versions": versions(),
        "tasks": {task: each.figures() for task, each in costs.items()},
        "overall": total(costs.values()).figures(),
    }


def write_costs(path: Path, data: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all, with the folders above it."""
    make_folder(path.parent)
    write_json(path, dict(data))
