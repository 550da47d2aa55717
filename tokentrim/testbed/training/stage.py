"""One training stage in one process: its parameters, its loop, its log, its checkpoint."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tokentrim.testbed.scenes import MAX_OBJECTS
from tokentrim.testbed.training.checkpoint import Checkpoint, TrainingProgress, file_before
from tokentrim.testbed.training.distil import distillation_step, placing_parameters, warm_start
from tokentrim.testbed.training.families import FAMILIES
from tokentrim.testbed.training.model import deepen
from tokentrim.testbed.training.parallel import FlatGradients
from tokentrim.testbed.training.probe import probe
from tokentrim.testbed.training.recipe import DEEP_PLACES, RECIPES, Stage
from tokentrim.testbed.training.steps import STEPS, StepInput, Trainee

_STEPS = {**STEPS, "distillation": distillation_step}


@dataclass(frozen=True)
class StageOptions:
    """What the command line sets."""

    run: Path
    stage: str = "all"
    model: str = "llava"  # recipe
    processes: int = 1
    seed: int = 0
    steps_scale: float = 1.0
    stop_after: int | None = None  # steps of this call, for tests and for trials
    save_every: int = 100
    log_every: int = 25
    probe_every: int = 250  # 0: never


class StageRun:
    """One stage in one process."""

    def __init__(self, options: StageOptions, stage: Stage, rank: int) -> None:
        self.options, self.stage, self.rank = options, stage, rank
        self.world = options.processes
        self.stages = RECIPES[options.model]
        self.number = [s.name for s in self.stages].index(stage.name)
        self.family = FAMILIES[stage.family]
        torch.manual_seed(options.seed)
        self.trainee = Trainee(self.family.build(stage.layers), self.family)
        self.progress = TrainingProgress(most=stage.start_most)
        self.path = options.run / f"{stage.name}.pt"
        resumed = Checkpoint.load(self.path) if self.path.exists() else None
        if resumed is None:
            self._start_from_previous()
        else:
            self._load(resumed)
            self.progress = resumed.progress
        parameters, groups = self._groups()
        self.gradients = FlatGradients(parameters, self.world)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=stage.decay, fused=True)
        if resumed is not None:
            self.optimizer.load_state_dict(resumed.optimizer)

    def _load(self, checkpoint: Checkpoint) -> None:
        self.trainee.model.load_state_dict(checkpoint.model)
        heads = dict(checkpoint.heads)
        with torch.no_grad():
            self.trainee.scale.copy_(heads.pop("scale"))
        self.trainee.heads.load_state_dict(heads)

    def _start_from_previous(self) -> None:
        if self.stage.warm:
            warm_start(self.trainee.model, self.stage.warm)
        if not self.stage.after:
            return
        before = next(stage for stage in self.stages if stage.name == self.stage.after)
        checkpoint = Checkpoint.load(file_before(self.options.run, self.stage.name, before.name))
        state = checkpoint.model
        if before.layers != self.stage.layers:
            state = deepen(state, DEEP_PLACES, self.stage.layers)
        if before.kind == "alignment":
            # Answers are words too: the untied output layer starts as the aligned embedding.
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
        self._load(Checkpoint(state, checkpoint.heads, {}, self.progress))

    def _groups(self) -> tuple[list[nn.Parameter], list[dict[str, Any]]]:
        """Trained parameters, and the optimizer's groups with their peak learning rates."""
        inner, heads = self.trainee.model.model, self.trainee.heads
        tower = [*self.family.tower_parameters(self.trainee.model), *heads.parameters()]
        match self.stage.kind:
            case "vision":
                named = [(tower, self.stage.rate)]
            case "alignment":
                words = inner.language_model.embed_tokens.weight
                named = [([*inner.multi_modal_projector.parameters(), words, self.trainee.scale], self.stage.rate)]
            case "distillation":
                new = placing_parameters(self.trainee.model)
                known = {id(p) for p in new}
                tower = [p for p in tower if id(p) not in known]
                named = [(new, self.stage.rate), (tower, self.stage.vision_rate)]
            case "language":
                rest = [p for n, p in self.trainee.model.named_parameters() if self.family.tower not in n]
                named = [(rest, self.stage.rate), (tower, self.stage.vision_rate)]
        groups = [{"params": params, "lr": rate, "peak": rate} for params, rate in named]
        return [p for params, _ in named for p in params], groups

    def run(self) -> None:
        """Train to the stage's end."""
        first = logged = self.progress.step
        since = time.perf_counter()
        while self.progress.step < self.stage.steps:
            self._step()
            done = self.progress.step
            ended = done == self.stage.steps
            stopped = self.options.stop_after is not None and done - first >= self.options.stop_after
            if done % self.options.log_every == 0 or ended:
                now = time.perf_counter()
                self._log((now - since) / (done - logged))
                logged, since = done, now
            every = self.options.probe_every
            if self.stage.kind == "language" and every and (done % every == 0 or ended):
                self._probe()
            if done % self.options.save_every == 0 or ended or stopped:
                self._save()
            if stopped:
                return

    def _step(self) -> None:
        stage, progress = self.stage, self.progress
        step = progress.step
        warm = min(1.0, (step + 1) / stage.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * warm * (stage.final + (1 - stage.final) * cosine)
        root = [self.options.seed, self.number, step]
        loss = _STEPS[stage.kind](
            self.trainee,
            stage,
            StepInput(
                shared=np.random.default_rng([*root, 0]),
                own=np.random.default_rng([*root, 1 + self.rank]),
                batch=stage.batch // self.world,
                number=step,
                fraction=step / stage.steps,
                most=progress.most,
            ),
        )
        loss.total.backward()
        total, shown, short = self.gradients.average(loss.total, loss.shown, loss.short)
        self.gradients.clip(1.0)
        self.optimizer.step()
        self.gradients.zero()
        progress.step += 1
        progress.update("loss", total)
        progress.update(loss.meter, shown)
        if self.stage.kind == "language":
            progress.update("short", short)
        self._curriculum()

    def _curriculum(self) -> None:
        """More objects as the answers get good, and at the latest by half of the stage."""
        progress, stage = self.progress, self.stage
        if stage.kind != "language" or progress.most >= MAX_OBJECTS:
            return
        late = progress.step / stage.steps
        floor = stage.start_most + int((MAX_OBJECTS + 1 - stage.start_most) * max(0.0, late - 0.15) / 0.35)
        easy = progress.meters.get(stage.easy_meter, math.inf) < stage.easy and progress.step - progress.raised >= 40
        if easy or floor > progress.most:
            progress.most = min(MAX_OBJECTS, max(floor, progress.most + 1))
            progress.raised = progress.step

    def _log(self, seconds: float) -> None:
        if self.rank:
            return
        progress, stage = self.progress, self.stage
        left = (stage.steps - progress.step) * seconds / 60
        meters = {name: round(value, 4) for name, value in sorted(progress.meters.items())}
        text = " ".join(f"{name} {value:.3f}" for name, value in meters.items())
        print(
            f"{stage.name} {progress.step}/{stage.steps}  {text}  objects<={progress.most}"
            f"  {seconds:.3f} s/step  {left:.1f} min left",
            flush=True,
        )
        self._record(
            {"stage": stage.name, "step": progress.step, "most": progress.most, "seconds_per_step": seconds,
             "meters": meters}
        )  # fmt: skip

    def _probe(self) -> None:
        for kept in (None, 25):
            result = probe(self.trainee, self.stage, kept, self.rank, self.world)
            if not self.rank:
                print(f"  calibration scenes, {kept or 'all'} tokens: {result}", flush=True)
                self._record({"stage": self.stage.name, "step": self.progress.step, "kept": kept, "probe": result})

    def _record(self, record: dict[str, Any]) -> None:
        with (self.options.run / "log.jsonl").open("a") as file:
            file.write(json.dumps({**record, "time": round(time.time(), 1)}) + "\n")

    def _save(self) -> None:
        if self.rank:
            return
        trainee = self.trainee
        heads = {**trainee.heads.state_dict(), "scale": trainee.scale.detach()}
        Checkpoint(trainee.model.state_dict(), heads, self.optimizer.state_dict(), self.progress).save(self.path)
