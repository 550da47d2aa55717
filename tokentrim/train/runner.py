"""The training loop: draw a batch, let the trainer compute its loss, step, remember; then write the weights."""

from __future__ import annotations

import importlib
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from tokentrim.config.specs import Spec, strategy_from
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where
from tokentrim.contracts.trained.sketch import sketch_of
from tokentrim.contracts.trained.trainable import Trainable
from tokentrim.contracts.trained.weights import Header, file_digest, read_header, write_weights
from tokentrim.errors import PluginError, ResultsError, StrategyError, complaint
from tokentrim.loading import Loaded, load_model
from tokentrim.plugins.loader import registry
from tokentrim.progress import Progress, Silent
from tokentrim.runs.cells import locate, versions
from tokentrim.runs.specs import asked, digest
from tokentrim.session import adapter_of
from tokentrim.train.data import Rounds, answered, step_rng
from tokentrim.train.state import TrainingState
from tokentrim.train.trainer import Trainer, TrainOptions

_SAVE_EVERY: Final = 20.0
"""Seconds between two states on the disk."""
_SMOOTH: Final = 0.95
"""Weight of the past in a running figure."""


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        path: the weights file.
        header: what it says.
        strategy: the strategy that runs with it, as a plain dict.
    """

    path: Path
    header: Header
    strategy: dict[str, Any]


def run(
    strategy: Spec,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a strategy's weights, or finish a training that was stopped.

    The state is stored beside ``out`` every few seconds, so the process may be killed at any moment; the same call goes
    on and ends with the same weights as if nothing had happened. It may ask for another number of steps.

    Args:
        strategy: a trainable strategy, as everywhere: a name, a mapping, YAML, an object.
        out: the weights file to write (safetensors). One that this training wrote before is returned as it is.
        options: of the strategy's trainer, see :class:`~tokentrim.train.TrainOptions`; ``model`` may be a name.
        command: the command line, for the record.
        progress: told what happens.

    Raises:
        TokentrimError: for bad input, before anything runs.
    """
    path, told = Path(out), progress or Silent()
    chosen = trainable(strategy)
    kind = trainer_of(chosen)
    checked = options_of(kind, options or {}, f"train {chosen.name}")
    target = locate(checked.model)
    plain = checked.model_dump(mode="json")
    start = checked.start
    asked = {
        "strategy": chosen.spec(),
        **({} if start is None else {"start_digest": file_digest(start)}),
        "fingerprint": target.fingerprint,
        **{key: value for key, value in plain.items() if key != "steps"},
    }
    before = _finished(path, asked, checked.steps)
    used = {**chosen.spec(), "weights": str(path)}
    if before is not None:
        told.say(f"{path} is finished already")
        return Trained(path, before, used)
    trainer = kind(chosen, target.shape, checked)
    if start is not None:
        held = chosen.model_copy(update={"weights": start}).held(target.shape)
        _start_from(trainer.module, held.on(torch.device("cpu")), start)
    result, sketch = _train(trainer, checked, TrainingState(path, asked), told)
    written = shlex.join(command) if command else f"tokentrim.train.run({chosen.name!r}, {str(out)!r}, ...)"
    header = Header(
        strategy=chosen.name,
        made_for=chosen.made_for(target.shape),
        sizes=trainer.sizes(chosen),
        model={"name": target.name, "fingerprint": target.fingerprint, "sketch": sketch},
        provenance=_provenance(asked, checked, written, result),
    )
    write_weights(path, trainer.module.state_dict(), header)
    TrainingState(path, asked).remove()
    return Trained(path, header, used)


def trainable(spec: Spec) -> Trainable:
    """The trainable strategy of a specification.

    Raises:
        StrategyError: when it is another one; lists those that are trainable.
    """
    found = strategy_from(spec)
    if not isinstance(found.strategy, Trainable) or found.budget is not None:
        strategies = registry("strategy")
        names = [entry.name for entry in strategies if strategies.get(entry.name).trainable]
        raise StrategyError(
            complaint("a strategy to train", f"be one of {', '.join(names)}, without a budget",
                      found.strategy.label(), "the others carry no weights")
        )  # fmt: skip
    return found.strategy.model_copy(update={"weights": None})


def trainer_of(strategy: Trainable) -> type[Trainer]:
    """The trainer that a strategy names.

    Raises:
        PluginError: when it names none, or one that cannot be imported.
    """
    module, _, name = strategy.trainer.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as cause:
        raise PluginError(
            complaint(f"trainer of strategy {strategy.name!r}", "be 'package.module:Class'", strategy.trainer,
                      f"{type(cause).__name__}: {cause}")
        ) from cause  # fmt: skip
    return found


def options_of(kind: type[Trainer], values: Mapping[str, Any], whom: str) -> TrainOptions:
    """Checked options; without tasks, those of the comparison that comes with tokentrim.

    Raises:
        ConfigError: when a value is wrong.
        UnknownNameError: when a task or model is not known.
    """
    model, tasks = asked(values.get("model", "testbed"), values.get("tasks"), whom)
    given = {**values, "model": model, "tasks": tuple(task.task for task in tasks)}
    return check(kind.Options, given, whom, Where())


def _start_from(module: nn.Module, before: nn.Module, path: Path) -> None:
    """Give a module another one's weights.

    Raises:
        StrategyError: when they differ in size.
    """
    try:
        module.load_state_dict(before.state_dict())
    except RuntimeError as cause:
        raise StrategyError(
            complaint(f"the weights in {path}", "have the sizes that the options ask for", hint=str(cause))
        ) from cause


def _train(
    trainer: Trainer, options: TrainOptions, state: TrainingState, told: Progress
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Take all steps; returns figures of the run and the model's sketch. The trainer's module is trained in place."""
    loaded = load_model(options.model.model, **options.model.loading)
    model: Any = loaded.model
    model.requires_grad_(False)
    module = trainer.module.to(model.device).train()
    groups: list[dict[str, Any]] = [{"params": group.parameters, "scale": group.scale} for group in trainer.groups()]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    step, about = state.load(module, optimizer)
    if step > options.steps:
        raise ResultsError(
            complaint(f"steps of the training in {state.path}", f"be at least {step}, the steps that it has taken",
                      options.steps, "raise --steps")
        )  # fmt: skip
    figures: dict[str, float] = dict(about.get("figures", {}))
    segments: dict[str, int] = dict(about.get("segments", {}))  # steps asked for -> step at which that was
    segments.setdefault(str(options.steps), step)
    told.start(options.steps, step)
    rounds = Rounds(options.tasks, options.batch_size, options.seed)
    if not step and options.start is None:
        trainer.begin(model, answered(loaded, rounds.samples(0)))
    state.save(step, module, optimizer, {"figures": figures, "segments": segments})
    saved = time.monotonic()
    for number in range(step, options.steps):
        _step(trainer, loaded, rounds, optimizer, number, figures)
        told.step(", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
        if time.monotonic() - saved > _SAVE_EVERY:
            state.save(number + 1, module, optimizer, {"figures": figures, "segments": segments})
            saved = time.monotonic()
    module.eval()
    sketch = sketch_of(adapter_of(model).locate(model).entry)
    return {"running_means_at_end": figures, "steps_asked_from": segments}, sketch


def _step(
    trainer: Trainer, loaded: Loaded, rounds: Rounds, optimizer: torch.optim.Optimizer, number: int,
    figures: dict[str, float],
) -> None:  # fmt: skip
    """One step; ``figures`` are brought up to date.

    Raises:
        StrategyError: when the loss is not finite.
    """
    options: TrainOptions = trainer.options
    for group in optimizer.param_groups:
        group["lr"] = options.rate_at(number) * group["scale"]
    loss, found = trainer.loss(loaded.model, answered(loaded, rounds.samples(number)), step_rng(options.seed, number))
    if not bool(loss.isfinite()):
        raise StrategyError(complaint(f"the loss of step {number}", "be finite", float(loss.detach()), "lower --lr"))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.module.parameters(), options.clip)
    optimizer.step()
    for name, value in found.items():
        figures[name] = _SMOOTH * figures[name] + (1 - _SMOOTH) * value if name in figures else value


def _provenance(asked: dict[str, Any], options: TrainOptions, command: str, result: dict[str, Any]) -> dict[str, Any]:
    """Where weights come from. Without a date: the same training writes the same file."""
    return {
        "command": command,
        "hash": digest(asked),
        "split": "training samples of each task; never its test split",
        "options": options.model_dump(mode="json"),
        "versions": versions(),
        "result": result,
    }


def _finished(path: Path, asked: dict[str, Any], steps: int) -> Header | None:
    """The header of the file at ``path`` if this very training wrote it, None where there is no file.

    Raises:
        ResultsError: when the file is anything else, so that nothing is overwritten.
    """
    if path.is_dir():
        raise ResultsError(complaint(f"{path}", "be a file to write", "a folder", "choose another --out"))
    if not path.exists():
        return None
    try:
        found = read_header(path)
    except StrategyError as cause:
        raise ResultsError(
            complaint(f"{path}", "be a new file, or what this training wrote", hint="choose another --out")
        ) from cause
    taken = found.provenance.get("options", {}).get("steps")
    if found.provenance.get("hash") != digest(asked) or taken != steps:
        raise ResultsError(
            complaint(f"{path}", "be of this training", f"one of {found.provenance.get('command', 'another')!r}",
                      "choose another --out, or remove the file")
        )  # fmt: skip
    return found
