"""A quick look at a model during training: right answers on calibration scenes, without decoding."""

import numpy as np
import torch

from tokentrim.testbed.scenes import MAX_OBJECTS, TOKENS, draw_scenes, render
from tokentrim.testbed.training.dropout import DropoutPlan, draw_priorities
from tokentrim.testbed.training.forward import run_packed
from tokentrim.testbed.training.packing import pack
from tokentrim.testbed.training.parallel import sum_over_processes
from tokentrim.testbed.training.recipe import Stage
from tokentrim.testbed.training.steps import Trainee

CALIBRATION_SEED = 20_001
_PICTURES = 32


@torch.no_grad()
def probe(
    trainee: Trainee, stage: Stage, kept: int | None, rank: int, world: int, batches: int = 2
) -> dict[str, float]:
    """Share of right answers by question, all tokens or `kept` of every 100 at the input (objects first)."""
    family = trainee.family
    names = ("list-where", *dict.fromkeys(stage.questions))
    right = torch.zeros(2, len(names))
    for batch in range(rank, batches * 2, world):
        rng = np.random.default_rng([CALIBRATION_SEED, batch])
        canvas = family.canvases[batch % len(family.canvases)]
        view = family.view(canvas)
        plan = DropoutPlan() if kept is None else DropoutPlan("keep-all", {0: kept * view.pictorial // TOKENS})
        scenes = draw_scenes(rng, _PICTURES, 4, min(MAX_OBJECTS, canvas.most), canvas)
        pixels = family.pixels(render(rng, scenes), view)
        priority, _ = draw_priorities(rng, scenes, plan, view)
        packed = pack(rng, scenes, stage.questions, "list-where", None, stage.weights)
        out = run_packed(trainee.model, pixels, packed, plan, torch.from_numpy(priority), family, view)
        hit = (out.logits.argmax(-1) == packed.labels) | (packed.labels < 0)
        start = 0
        for name, length in zip((*stage.questions, "list-where"), packed.lengths, strict=True):
            place = slice(start, start + length)
            asked = (packed.labels[:, place] >= 0).any(1)
            right[0, names.index(name)] += hit[:, place].all(1)[asked].sum()
            right[1, names.index(name)] += asked.sum()
            start += length
    right = sum_over_processes(right, world)
    return {name: round(float(a / b), 3) for name, a, b in zip(names, right[0], right[1], strict=True)}
