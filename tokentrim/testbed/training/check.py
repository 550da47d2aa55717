"""Is a model fit to judge pruning? The acceptance rule as a command: `python -m tokentrim.testbed.training.check`.

A model is fit when it answers the short tasks unpruned, when keeping the quarter of the visual tokens that
the answer needs costs almost nothing (else a method's loss would measure the model's surprise at missing
tokens), and when keeping a random quarter costs a lot. Exit code 0: fit; 1: not.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText

from tokentrim.contracts.tasks import Split, Task
from tokentrim.testbed import MODELS, model_folder
from tokentrim.testbed.tasks import TASKS, resized
from tokentrim.testbed.training.evaluate import mean_score, oracle, random_order
from tokentrim.testbed.training.families import family_of

KEPT: Final = 0.25  # share of the visual tokens
LEAST_FULL: Final = 0.90  # unpruned score of a short task
LEAST_KEPT: Final = 0.97  # of the unpruned score, under the oracle
MOST_RANDOM: Final = 0.80  # of the oracle's score, under random selection


@dataclass(frozen=True)
class TaskResult:
    """Mean scores of one task, 0 to 1; oracle and random keep a quarter of the tokens at boundary 0."""

    task: str
    metric: str
    n: int
    full: float
    oracle: float
    random: float
    text_only: float

    @property
    def kept(self) -> float:
        """Share of the unpruned score that the oracle's selection keeps."""
        return self.oracle / self.full if self.full else 0.0

    def complaints(self) -> Iterator[str]:
        """What this task breaks of the rule."""
        if self.metric == "exact" and self.full < LEAST_FULL:
            yield f"unpruned {self.full:.1%} is below {LEAST_FULL:.0%}"
        if self.kept < LEAST_KEPT:
            yield f"oracle keeps {self.kept:.1%} of the unpruned score, below {LEAST_KEPT:.0%}"
        if self.random > MOST_RANDOM * self.oracle:
            yield f"random {self.random:.1%} is too close to oracle {self.oracle:.1%}"


def check_task(model: Any, task: Task, split: Split, n: int) -> TaskResult:
    """Measure one task."""
    samples = task.samples(split, n)
    return TaskResult(
        task.name,
        task.metric,
        n,
        full=mean_score(model, task, samples, oracle, 1.0),
        oracle=mean_score(model, task, samples, oracle, KEPT),
        random=mean_score(model, task, samples, random_order, KEPT),
        text_only=mean_score(model, task, samples, oracle, 0.0),
    )


def table_of(results: list[TaskResult], title: str) -> Table:
    """Results as a table, in percent."""
    table = Table("task", "metric", title=title)
    for name in ("unpruned", f"oracle {KEPT:.0%}", "kept", f"random {KEPT:.0%}", "text only"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for r in results:
        scores = (r.full, r.oracle, r.kept, r.random, r.text_only)
        verdict = "; ".join(r.complaints()) or "ok"
        table.add_row(r.task, r.metric, *(f"{100 * score:.1f}" for score in scores), verdict)
    return table


def load_model(name_or_folder: str) -> Any:
    """A shipped model by name, or any testbed model by folder."""
    folder = model_folder(name_or_folder) if name_or_folder in MODELS else Path(name_or_folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model must be {', '.join(MODELS)} or a model folder; got {name_or_folder}")
    loader: Any = AutoModelForImageTextToText
    return loader.from_pretrained(folder, trust_remote_code=False).eval()


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed", help="name of a shipped model, or a folder")
    parser.add_argument("--n", type=int, default=240, help="samples per task")
    parser.add_argument("--split", choices=("calibration", "test"), default="test")
    parser.add_argument("--task", choices=tuple(TASKS), action="append", help="only this task; may be repeated")
    parser.add_argument(
        "--sizes",
        choices=("square", "all"),
        default="all",
        help="pictures of 80 x 80 pixels only, or of all sizes that the model was trained on (default)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    canvases = family_of(model).canvases
    tasks: list[Task] = [TASKS[name] for name in arguments.task or TASKS]
    if arguments.sizes != "square" and len(canvases) > 1:
        tasks = [resized(TASKS[task.name], f"{task.name}-{family_of(model).name}", canvases) for task in tasks]
    results = [check_task(model, task, arguments.split, arguments.n) for task in tasks]
    failed = any(list(r.complaints()) for r in results)
    if arguments.json:
        rows = [{**asdict(r), "kept": r.kept, "complaints": list(r.complaints())} for r in results]
        print(json.dumps({"model": arguments.model, "split": arguments.split, "fit": not failed, "tasks": rows}))
    else:
        Console(width=130).print(table_of(results, f"{arguments.model}, {arguments.split} split, n = {arguments.n}"))
        print("not fit to judge pruning" if failed else "fit to judge pruning")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
