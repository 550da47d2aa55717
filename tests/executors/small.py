"""One small comparison with a stranger's task, and what tests of executors ask of its results."""

import json
import os
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CONFIG = {
    "models": ["testbed-plain"],
    # The shaky task comes last, so that cells are finished when an accident happens.
    "tasks": [{"task": "list-all", "samples": 3}, "shaky"],
    "samples": 7,
    "strategies": ["fastv"],
    "budgets": [0.5],
    "controls": [],
    "timing": False,
    "text_only": False,
    "batch_size": 3,
}
CELLS = 4
UNLIKE = {"prefill_seconds", "decode_seconds_per_token", "selection_seconds", "timed_alone"}


class Shaky:
    """The plugin, and the orders that its task obeys."""

    def __init__(self, folder, orders):
        self.folder, self.orders = folder, orders
        self.config = folder / "compare.yaml"
        self.config.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")

    def order(self, *names):
        for path in self.orders.iterdir():
            path.unlink()
        for name in names:
            (self.orders / name).touch()

    def environment(self):
        path = os.pathsep.join([str(self.folder), *(str(ROOT / part) for part in (".", "strategies", "adapters"))])
        return {
            **os.environ,
            "PYTHONPATH": path,
            "SHAKY": str(self.orders),
            "TOKENTRIM_PLUGINS": "shaky",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }

    def command(self, out, *options, launcher=()):
        words = ["compare", str(self.config), "--out", str(out), "--format", "csv", *options]
        return [sys.executable, *launcher, "-m", "tokentrim", *words]


def contents(folder):
    """All that a results folder holds of its cells, without what differs from run to run."""
    cells = {}
    for path in (folder / "cells").glob("[!.]*.jsonl"):
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        known = {key: value for key, value in json.loads(head).items() if key not in UNLIKE}
        cells[path.name] = [json.dumps(known), *lines]
    return cells, (folder / "results.jsonl").read_bytes()


def heads(folder):
    """The first lines of a folder's cells."""
    return [
        json.loads(path.read_text(encoding="utf-8").splitlines()[0]) for path in (folder / "cells").glob("[!.]*.jsonl")
    ]
