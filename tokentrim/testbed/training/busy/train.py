"""Train the busy pictures' model: `python -m tokentrim.testbed.training.busy.train --run FOLDER`.

The stages are in `recipe`. Each writes `FOLDER/STAGE.pt` every few steps and at its end, and goes on from there when
started again; a stage that is complete is skipped. One process, one thread.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokentrim.errors import complaint
from tokentrim.testbed.training.busy.batch import (
    Questions,
    Targets,
    draw_plan,
    draw_priorities,
    draw_scenes,
    pack_questions,
    paint,
    targets_of,
)
from tokentrim.testbed.training.busy.model import (
    BUSY,
    FLOAT_ATTENTION,
    NO_PRINT,
    TOKENS,
    VIEW,
    BusyHeads,
)
from tokentrim.testbed.training.busy.recipe import CONTROL, DESCRIBE, PLACES, STAGES, BusyStage
from tokentrim.testbed.training.busy.words import alignment_loss, spelled_out
from tokentrim.testbed.training.checkpoint import Checkpoint, TrainingProgress, file_before, make_folder, told
from tokentrim.testbed.training.family import Encoded
from tokentrim.testbed.training.forward import run_encoded
from tokentrim.testbed.training.losses import answer_loss
from tokentrim.testbed.training.model import deepen
from tokentrim.testbed.training.packing import IGNORE
from tokentrim.testbed.training.parallel import FlatGradients

_SAVE_EVERY = 100
_LOG_EVERY = 25
_NOISE = 0.02  # deviation, on tokens that are words; a word's is 0.04 at first
_ALIGNED = 0.3  # weight of the alignment while answers are learnt: without it the projector forgets the words
Meters = dict[str, float]


def vision_loss(heads: BusyHeads, features: Tensor, pooled: Tensor | None, targets: Targets, meters: Meters) -> Tensor:
    """What every patch shows, where it is, and which caption belongs to which picture."""

    def judged(said: Tensor, right: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.cross_entropy(said.flatten(0, 1), right.flatten(), weight, ignore_index=IGNORE)

    quiet = torch.ones(NO_PRINT + 1)
    quiet[-1] = 0.2
    shown = heads.print(features)
    place = heads.place(features)
    contrast = torch.zeros(()) if pooled is None else heads.contrast(pooled[:, 0].float(), targets.captions)
    with torch.no_grad():
        something = targets.print != NO_PRINT
        meters["print"] = float((shown.argmax(-1) == targets.print)[something].float().mean())
        known = targets.area != IGNORE
        area = heads.area(features)
        meters["area"] = float((area.argmax(-1) == targets.area)[known].float().mean())
        meters["contrast"] = float(contrast)
    return (
        judged(shown, targets.print, quiet)
        + 0.5 * judged(heads.color(features), targets.color)
        + 0.5 * judged(heads.area(features), targets.area)
        + 0.5 * judged(heads.area_color(features), targets.area_color)
        + 0.2 * judged(place[..., :4], targets.row)
        + 0.2 * judged(place[..., 4:], targets.column)
        + 0.3 * contrast
    )


class BusyRun:
    """One stage in one process."""

    def __init__(self, run: Path, stage: BusyStage, seed: int = 0) -> None:
        self.run_folder, self.stage, self.seed = run, stage, seed
        self.number = [s.name for s in (*STAGES, CONTROL)].index(stage.name)
        torch.manual_seed(seed)
        self.model = BUSY.build(stage.layers)
        self.model.set_attn_implementation(FLOAT_ATTENTION)
        self.heads = BusyHeads()
        self.progress = TrainingProgress()
        self.path = run / f"{stage.name}.pt"
        resumed = Checkpoint.load(self.path) if self.path.exists() else None
        if resumed is not None:
            self.model.load_state_dict(resumed.model)
            self.heads.load_state_dict(resumed.heads)
            self.progress = resumed.progress
        elif stage.after:
            self._start_from(next(s for s in STAGES if s.name == stage.after))
        groups = self._groups()
        parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.gradients = FlatGradients(parameters, 1)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=stage.decay, fused=True)
        if resumed is not None and self.progress.step < stage.steps:
            self.optimizer.load_state_dict(resumed.optimizer)

    def _start_from(self, before: BusyStage) -> None:
        checkpoint = Checkpoint.load(file_before(self.run_folder, self.stage.name, before.name))
        state = checkpoint.model
        if before.layers != self.stage.layers:
            state = deepen(state, PLACES, self.stage.layers)
        if self.stage.kind == "words":
            # Answers are words too: the untied output layer starts as the embedding.
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
        self.model.load_state_dict(state)
        self.heads.load_state_dict(checkpoint.heads)

    def _groups(self) -> list[dict[str, Any]]:
        stage, inner = self.stage, self.model.model
        tower = [*inner.vision_tower.parameters(), *self.heads.parameters()]
        match stage.kind:
            case "vision":
                named = [(tower, stage.rate)]
            case "alignment":
                named = [(tower, stage.vision_rate), ([*inner.multi_modal_projector.parameters()], stage.rate)]
            case "words":
                named = [([*inner.language_model.parameters(), *self.model.lm_head.parameters()], stage.rate)]
            case "language":
                mind = [*inner.language_model.parameters(), *self.model.lm_head.parameters()]
                named = [(mind, stage.rate), ([*inner.multi_modal_projector.parameters()], stage.projector_rate)]
                inner.vision_tower.requires_grad_(False)  # backward through it is a third of a step
        return [{"params": params, "lr": rate, "peak": rate} for params, rate in named]

    def run(self, stop_after: int | None = None) -> None:
        """Train to the stage's end, or so many steps."""
        make_folder(self.run_folder)
        first = logged = self.progress.step
        since = time.perf_counter()
        while self.progress.step < self.stage.steps:
            self._step()
            done = self.progress.step
            ended = done == self.stage.steps or (stop_after is not None and done - first >= stop_after)
            if done % _LOG_EVERY == 0 or ended:
                now = time.perf_counter()
                self._log((now - since) / (done - logged))
                logged, since = done, now
            if done % _SAVE_EVERY == 0 or ended:
                heads = self.heads.state_dict()
                state = self.optimizer.state_dict()
                Checkpoint(self.model.state_dict(), heads, state, self.progress).save(self.path)
            if ended:
                return

    def _step(self) -> None:
        stage, step = self.stage, self.progress.step
        warm = min(1.0, (step + 1) / stage.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * warm * (stage.final + (1 - stage.final) * cosine)
        rng = np.random.default_rng([self.seed, self.number, step])
        meters: Meters = {}
        steps = {"vision": self._vision, "alignment": self._alignment}
        loss = steps.get(stage.kind, self._language)(rng, meters)
        loss.backward()
        self.gradients.clip(1.0)
        self.optimizer.step()
        self.gradients.zero()
        self.progress.step += 1
        for name, value in meters.items():
            self.progress.update(name, value)

    def _vision(self, rng: np.random.Generator, meters: Meters) -> Tensor:
        scenes = draw_scenes(rng, self.stage.batch)
        with torch.autocast("cpu", torch.bfloat16):
            seen = BUSY.encode(self.model, BUSY.pixels(paint(rng, scenes), VIEW), VIEW)
        return vision_loss(self.heads, seen.features.float(), seen.pooled, targets_of(scenes), meters)

    def _alignment(self, rng: np.random.Generator, meters: Meters) -> Tensor:
        scenes = draw_scenes(rng, self.stage.batch)
        targets = targets_of(scenes)
        with torch.autocast("cpu", torch.bfloat16):
            seen = BUSY.encode(self.model, BUSY.pixels(paint(rng, scenes), VIEW), VIEW)
        words = self.model.model.language_model.embed_tokens.weight
        unlike = alignment_loss(seen.visual.float(), words, targets)
        meters["unlike"] = float(unlike.detach())
        return unlike + vision_loss(self.heads, seen.features.float(), seen.pooled, targets, meters)

    def _language(self, rng: np.random.Generator, meters: Meters) -> Tensor:
        stage, model = self.stage, self.model
        most = stage.most_tokens(self.progress.step)
        scenes = draw_scenes(rng, stage.batch)
        plan = draw_plan(rng, stage.full, stage.layers, most)
        priority = draw_priorities(rng, scenes, most < TOKENS)
        kept = np.ones((stage.batch, TOKENS), np.bool_)
        if plan.mode == "keep-some":
            threshold = -np.sort(-priority, 1)[:, min(plan.schedule.values()) - 1 :][:, :1]
            kept = priority >= threshold
        asked_for = (*stage.questions, DESCRIBE) if rng.random() < stage.describe else stage.questions
        questions, targets = pack_questions(rng, scenes, asked_for, kept), targets_of(scenes)
        packed, words = questions.packed, model.model.language_model.embed_tokens.weight
        seen = None if stage.kind == "words" else BUSY.pixels(paint(rng, scenes), VIEW)
        with torch.autocast("cpu", torch.bfloat16):
            if seen is None:
                told = spelled_out(words, targets)
                told = told + _NOISE * torch.from_numpy(rng.standard_normal(told.shape, np.float32))
                encoded = Encoded(told, told, None)
            else:
                encoded = BUSY.encode(model, seen, VIEW)
            out = run_encoded(model, encoded, packed, plan, torch.from_numpy(priority), VIEW)
        logits = out.logits.float()
        loss = answers = answer_loss(logits, packed.labels, packed.weights)
        meters["loss"] = float(answers.detach())
        _right(questions, logits, "" if not plan.schedule else "drop-", meters)
        if seen is not None:
            unlike = alignment_loss(encoded.visual.float(), words, targets)
            meters["unlike"] = float(unlike.detach())
            loss = loss + _ALIGNED * unlike
        return loss

    def _log(self, seconds: float) -> None:
        progress, stage = self.progress, self.stage
        meters = {name: round(value, 3) for name, value in sorted(progress.meters.items())}
        text = " ".join(f"{name} {value:.2f}" for name, value in meters.items())
        print(f"{stage.name} {progress.step}/{stage.steps} {seconds:.2f} s/step  {text}", flush=True)
        record = {"stage": stage.name, "step": progress.step, "seconds_per_step": round(seconds, 3), "meters": meters}
        with (self.run_folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({**record, "time": round(time.time())}) + "\n")


def _right(questions: Questions, logits: Tensor, prefix: str, meters: Meters) -> None:
    """Share of right answers by task, of right words in descriptions, with the right words before each word."""
    right = questions.answers
    hit = (logits.argmax(-1) == right) | (right < 0)
    counts: dict[str, list[float]] = {}
    start = 0
    for names, length in zip(questions.names, questions.packed.lengths, strict=True):
        here = slice(start, start + length)
        start += length
        said = (right[:, here] >= 0).sum(1).tolist()
        wrong = (~hit[:, here]).sum(1).tolist()
        for name, of, bad in zip(names, said, wrong, strict=True):
            if of:
                counts.setdefault(name, []).append(1 - bad / of if name == DESCRIBE else float(bad == 0))
    for name, values in counts.items():
        meters[prefix + name.removeprefix("busy-")] = float(np.mean(values))


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and logs")
    parser.add_argument(
        "--stage",
        choices=("all", *(stage.name for stage in (*STAGES, CONTROL))),
        default="all",
        help="all trains what ships; control is the stage base without dropping tokens",
    )
    parser.add_argument("--stop-after", type=int, default=None, help="stop each stage after so many steps")
    arguments = parser.parse_args(argv)
    if arguments.stop_after is not None and arguments.stop_after < 1:
        parser.error(complaint("--stop-after", "be at least 1", arguments.stop_after))
    torch.set_num_threads(1)

    def train() -> None:
        for stage in (*STAGES, CONTROL):
            if arguments.stage == stage.name or (arguments.stage == "all" and stage is not CONTROL):
                BusyRun(arguments.run, stage).run(arguments.stop_after)

    return told(train)


if __name__ == "__main__":
    sys.exit(main())
