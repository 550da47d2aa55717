"""Train the testbed's models: `python -m tokentrim.testbed.training.train --run FOLDER`.

The stages are in `recipe`: vision, alignment, plain, lookup, then from lookup both adapted (deeper, trained with
visual-token dropout) and consolidation (as it is, without dropout). Each writes `FOLDER/STAGE.pt` every few steps
and at its end, and goes on from there when started again; a stage that is complete is skipped.

`--model qwen2.5-vl` and `--model llava-next` train their own stages instead, which start from the shipped model
`testbed`.
"""

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tokentrim.errors import ConfigError, complaint, unknown_name
from tokentrim.testbed.training.checkpoint import file_before, make_folder, told
from tokentrim.testbed.training.recipe import RECIPES, Stage, scaled
from tokentrim.testbed.training.stage import StageOptions, StageRun


def _worker(rank: int, options: StageOptions, stages: list[Stage], meeting: str) -> None:
    torch.set_num_threads(1)
    if options.processes > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.processes)
    for stage in stages:
        StageRun(options, stage, rank).run()
        if options.processes > 1:
            dist.barrier()  # the next stage reads the file that rank 0 has written
    if options.processes > 1:
        dist.destroy_process_group()


def train(options: StageOptions) -> None:
    """Run the chosen stages.

    Raises:
        ConfigError: when an option is out of its range.
        DataError: when a stage lacks what it starts from, or the folder cannot be made.
        UnknownNameError: when there is no such recipe or stage.
    """
    if options.model not in RECIPES:
        raise unknown_name("model to train", options.model, RECIPES)
    recipe = RECIPES[options.model]
    known = [stage.name for stage in recipe]
    if options.stage != "all" and options.stage not in known:
        raise unknown_name(f"stage of the recipe {options.model}", options.stage, (*known, "all"))
    for name, value, least in (("processes", options.processes, 1), ("stop-after", options.stop_after, 1)):
        if value is not None and value < least:
            raise ConfigError(complaint(f"--{name}", f"be at least {least}", value))
    if not 0 < options.steps_scale < math.inf:
        raise ConfigError(complaint("--steps-scale", "be a number above 0", options.steps_scale))
    stages = [scaled(s, options.steps_scale) for s in recipe if options.stage in ("all", s.name)]
    first = stages[0]
    if first.after and not (options.run / f"{first.name}.pt").exists():
        file_before(options.run, first.name, first.after)
    make_folder(options.run)
    (options.run / "options.json").write_text(json.dumps({**asdict(options), "run": str(options.run)}, indent=1))
    if options.processes == 1:
        _worker(0, options, stages, "")
        return
    meeting = options.run / f"meeting-{os.getpid()}"
    try:
        spawn(_worker, (options, stages, str(meeting.resolve())), nprocs=options.processes)
    finally:
        meeting.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument("--model", choices=tuple(RECIPES), default="llava", help="recipe; all but llava start warm")
    parser.add_argument("--stage", default="all", help="one stage of the recipe, or all")
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes, one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor on every stage's steps")
    parser.add_argument("--stop-after", type=int, default=None, help="stop each stage after so many steps")
    arguments = parser.parse_args(argv)
    return told(lambda: train(StageOptions(**vars(arguments))))


if __name__ == "__main__":
    sys.exit(main())
