"""Is a model fit to judge pruning? The acceptance rule as a command: `python -m tokentrim.testbed.check`.

A model is fit when it answers the short tasks unpruned, when keeping the quarter of the visual tokens that
the answer needs costs almost nothing (else a method's loss would measure the model's surprise at missing
tokens), and when keeping a random quarter costs a lot. A model of the busy pictures is asked about these, under
the rule of `busy.check`. Exit code 0: fit; 1: not; 2: nothing was checked.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText

from tokentrim.contracts.tasks import Split, Task
from tokentrim.errors import ConfigError, DataError, TokentrimError, UnknownNameError, complaint, reason_of, suggestion
from tokentrim.testbed import MODELS, model_folder
from tokentrim.testbed.busy.tasks import TASKS as BUSY_TASKS
from tokentrim.testbed.tasks import TASKS, resized
from tokentrim.testbed.training.busy.check import BusyResult, busy_table, check_busy, with_grains
from tokentrim.testbed.training.busy.model import BUSY
from tokentrim.testbed.training.busy.separation import read_separations, separation_table
from tokentrim.testbed.training.evaluate import mean_scores, oracle, random_order
from tokentrim.testbed.training.families import family_of
from tokentrim.testbed.training.family import TestbedFamily

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
    settings = [(oracle, 1.0), (oracle, KEPT), (random_order, KEPT), (oracle, 0.0)]
    full, kept, random, blind = mean_scores(model, task, task.samples(split, n), settings)
    return TaskResult(task.name, task.metric, n, full, kept, random, blind)


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
    """A shipped model by name, or any testbed model by folder.

    Raises:
        DataError: when the folder cannot be read.
        UnknownNameError: when there is none.
    """
    folder = model_folder(name_or_folder) if name_or_folder in MODELS else Path(name_or_folder)
    if not name_or_folder or not (folder / "config.json").is_file():
        must, hint = "be a registered name or a model folder", suggestion(name_or_folder, MODELS)
        raise UnknownNameError(complaint("the model", must, name_or_folder, hint))
    loader: Any = AutoModelForImageTextToText
    try:
        return loader.from_pretrained(folder, trust_remote_code=False).eval()
    except Exception as cause:  # transformers raises whatever the broken folder led to
        raise DataError(complaint(f"the model folder {folder}", "be readable", hint=reason_of(cause))) from cause


def _asked(arguments: argparse.Namespace, family: TestbedFamily) -> tuple[str, ...]:
    """Names of the tasks, which must be those that the model was trained for."""
    known = BUSY_TASKS if family is BUSY else TASKS
    for name in arguments.task or ():
        if name not in known:
            raise ValueError(complaint(f"task of {arguments.model}", f"be one of {', '.join(known)}", name))
    return tuple(dict.fromkeys(arguments.task or known))  # a mean over tasks counts each once


def _measure(
    model: Any, family: TestbedFamily, asked: tuple[str, ...], arguments: argparse.Namespace
) -> tuple[Sequence[TaskResult | BusyResult], Table]:
    """Results, and their table."""
    split, n = arguments.split, arguments.n
    title = f"{arguments.model}, {split} split, n = {n}"
    if family is BUSY:
        busy = with_grains([check_busy(model, BUSY_TASKS[name], split, n) for name in asked])
        return busy, busy_table(busy, title)
    tasks: list[Task] = [TASKS[name] for name in asked]
    if arguments.sizes != "square" and len(family.canvases) > 1:
        tasks = [resized(TASKS[name], f"{name}-{family.name}", family.canvases) for name in asked]
    results = [check_task(model, task, split, n) for task in tasks]
    return results, table_of(results, title)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="testbed", help="name of a shipped model, or a folder")
    parser.add_argument("--n", type=int, default=240, help="samples per task")
    parser.add_argument("--split", choices=("calibration", "test"), default="test")
    names = (*TASKS, *BUSY_TASKS)
    parser.add_argument("--task", choices=names, action="append", help="only this task; may be repeated")
    parser.add_argument(
        "--sizes",
        choices=("square", "all"),
        default="all",
        help="pictures of 80 x 80 pixels only, or of all sizes that the model was trained on (default)",
    )
    parser.add_argument(
        "--comparison",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="of a model of the busy pictures: whether methods separate in this finished comparison; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    arguments = parser.parse_args(argv)
    try:
        for name in ("n", "threads"):  # means of nothing break no limit
            if (value := getattr(arguments, name)) is not None and value < 1:
                raise ConfigError(complaint(f"--{name}", "be at least 1", value))
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        model = load_model(arguments.model)
        family = family_of(model)
        asked = _asked(arguments, family)
        if arguments.comparison and family is not BUSY:
            raise ValueError(complaint("--comparison", "be of a model of the busy pictures", arguments.model))
        separations = read_separations(arguments.comparison, arguments.model) if arguments.comparison else []
    except (TokentrimError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    results, table = _measure(model, family, asked, arguments)
    failed = any(list(r.complaints()) for r in (*results, *separations))
    if arguments.json:
        rows = [{**asdict(r), "kept": r.kept, "complaints": list(r.complaints())} for r in results]
        told = [{**asdict(s), "spread": s.spread, "complaints": list(s.complaints())} for s in separations]
        about = {"model": arguments.model, "split": arguments.split, "fit": not failed}
        print(json.dumps({**about, "tasks": rows, "separation": told}))
    else:
        console = Console(width=130)
        console.print(table)
        if separations:
            console.print(separation_table(separations, arguments.comparison))
        elif family is BUSY:
            print("whether methods separate was not looked at: --comparison DIR")
        print("not fit to judge pruning" if failed else "fit to judge pruning")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
