"""Running a calibration: search, remember every measurement, and write the schedule when the search is over."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from tokentrim.calibrate import fitprune
from tokentrim.calibrate.gsearch import Found, Rates, grid_of, gsearch, most_trials
from tokentrim.calibrate.measure import SPLIT, Bench, divergence, next_token, quality_of
from tokentrim.calibrate.options import VTW, CalibrationOptions, FitSearch, GSearch, PSigmoid, RateOptions
from tokentrim.calibrate.psigmoid import Depth, psigmoid, require_optuna
from tokentrim.calibrate.state import CalibrationState
from tokentrim.config.schedule_file import FORMAT, MadeFor, ScheduleFile, rates_of, read_schedule
from tokentrim.config.specs import strategy_from
from tokentrim.counting.costs import prefill_flops
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import ConfigError, EngineError, ResultsError, complaint
from tokentrim.plugins.loader import registry
from tokentrim.progress import Progress, Silent
from tokentrim.runs.cells import Cell, ModelTarget, locate, versions
from tokentrim.runs.files import write_text
from tokentrim.runs.specs import digest
from tokentrim.runs.work import Work

if TYPE_CHECKING:
    from torch import Tensor

REFERENCE: Final = "none"
RUNS_IT: Final = "layer-counts"
WITHDRAWS: Final = "vtw"
DELETES: Final = "fitprune"


_NOTES: Final = {
    VTW.method: "the search of the released code of VTW",
    FitSearch.method: "the search of the released code of FitPrune; how alpha is chosen and FLOPs are counted is ours",
}
"""Where a search comes from, by method."""


class NothingFound(EngineError):
    """A search that ended without a schedule."""


@dataclass(frozen=True)
class Calibration:
    """A finished calibration.

    Attributes:
        path: the schedule file.
        schedule: what it says.
    """

    path: Path
    schedule: ScheduleFile

    @property
    def strategy(self) -> dict[str, Any]:
        """The strategy that runs the schedule."""
        if self.schedule.method == VTW.method:
            return {"name": WITHDRAWS, "k": min(self.schedule.counts or {0: 0})}
        name = DELETES if self.schedule.method == FitSearch.method else RUNS_IT
        return {"name": name, "file": str(self.path)}


@dataclass
class _Search:
    """What the searches share while they run."""

    options: CalibrationOptions
    target: ModelTarget
    bench: Bench
    told: Progress

    def quality(self, rates: Rates, options: RateOptions) -> float:
        """Quality of the model pruned by these rates."""
        spec = {"name": RUNS_IT, "rates": dict(rates), "query": options.query}
        text = ", ".join(f"{boundary}: {rate:.3g}" for boundary, rate in rates.items()) or "unpruned"
        return quality_of(self.bench, spec if rates else {"name": REFERENCE}, options.quality, text)


def run(
    options: CalibrationOptions,
    out: str | Path,
    *,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate, or finish a calibration that was stopped.

    Every measurement is stored beside ``out`` when it is taken, so the process may be killed at any moment; the same
    call goes on, and ends with the same schedule as if nothing had happened. The state is removed at the end.

    Args:
        options: ``GSearch(...)``, ``PSigmoid(...)``, ``VTW(...)`` or ``FitSearch(...)``, see :func:`options_from`.
        out: the schedule file to write (YAML). One that this calibration wrote before is returned as it is.
        command: the command line, for the record.
        progress: told what happens.

    Raises:
        TokentrimError: for bad input, before anything runs.
        NothingFound: when no boundary meets the demand of ``VTW``, or no share of attention that of ``FitSearch``; says
            by how much.
    """
    path, told = Path(out), progress or Silent()
    if isinstance(options, PSigmoid):
        require_optuna()
    target = locate(options.model)
    _check_first(options, target)
    asked = {**options.to_dict(), "fingerprint": target.fingerprint}
    before = _finished(path, asked)
    if before is not None:
        told.say(f"{path} is finished already")
        return Calibration(path, before)
    state = CalibrationState(path)
    state.write()  # so that a folder that cannot be written to is noticed now
    if state.found:
        told.say(f"{state.found} measurements were taken before")
    search = _Search(options, target, Bench(options, target, state, told.step), told)
    schedule = _searched(search)
    written = shlex.join(command) if command else f"tokentrim.calibrate.run(..., {str(out)!r})"
    provenance = _provenance(search, asked, written)
    schedule = schedule.model_copy(update={"provenance": {**provenance, **schedule.provenance}})
    write_text(path, _text(schedule, path))
    state.remove()
    return Calibration(path, schedule)


def _check_first(options: CalibrationOptions, target: ModelTarget) -> None:
    """Raise ConfigError unless the first boundary lies inside the model."""
    layers = target.shape.n_layers
    if options.first >= layers:
        raise ConfigError(
            complaint(f"first of calibrate {options.method}", f"be below {layers}, the model's number of layers",
                      options.first,
                      "a boundary lies before a layer, counted from 0")
        )  # fmt: skip


def _searched(search: _Search) -> ScheduleFile:
    """The schedule that the options' search finds."""
    if isinstance(search.options, GSearch):
        return _gsearch(search, search.options)
    if isinstance(search.options, PSigmoid):
        return _psigmoid(search, search.options)
    if isinstance(search.options, VTW):
        return _vtw(search, search.options)
    if isinstance(search.options, FitSearch):
        return _fitprune(search, search.options)
    raise ConfigError(
        complaint("a calibration", "be GSearch, PSigmoid, VTW or FitSearch", type(search.options).__name__)
    )


def _gsearch(search: _Search, options: GSearch) -> ScheduleFile:
    """The least rates that hold the unpruned quality but for the tolerance."""
    boundaries = range(options.first, search.target.shape.n_layers)
    grid = grid_of(options.resolution)
    search.told.start(most_trials(boundaries, grid) + 1)
    reference = search.quality({}, options)
    found = gsearch(
        lambda rates: search.quality(rates, options),
        boundaries=boundaries,
        grid=grid,
        least_quality=reference - options.slack,
    )
    return _schedule(search, options, found, reference)


def _psigmoid(search: _Search, options: PSigmoid) -> ScheduleFile:
    """The best curve at the budget."""
    shape = search.target.shape
    depth = Depth.at(options.budget, shape.n_layers, options.first, _n_visual(search.target))
    search.told.start(options.trials + 1)
    reference = search.quality({}, options)
    found = psigmoid(lambda rates: search.quality(rates, options), depth, trials=options.trials, seed=options.seed)
    return _schedule(search, options, found, reference)


def _schedule(search: _Search, options: RateOptions, found: Found, reference: float) -> ScheduleFile:
    """What was found, with its quality and cost."""
    shape, n_visual = search.target.shape, _n_visual(search.target)
    spec: dict[str, Any] = {"rates": found.rates or {options.first: 1.0}, "query": options.query}
    strategy = registry("strategy").get(RUNS_IT)(**spec)
    planned: Schedule = strategy.schedule(shape, n_visual)
    layers = planned.per_layer(shape.n_layers, n_visual)
    result = {
        "quality_unpruned": reference,
        "quality": search.quality(found.rates, options),
        "tokens_per_layer": list(layers),
        "layer_mean_ratio": sum(layers) / (shape.n_layers * n_visual),
    }
    return ScheduleFile(
        format=FORMAT, method=options.method, made_for=MadeFor.of(shape), **spec,
        provenance={"result": result, "trace": found.trace},
    )  # fmt: skip


def _vtw(search: _Search, options: VTW) -> ScheduleFile:
    """The first boundary whose divergence is small enough; all are measured, so that the record shows the curve."""
    shape = search.target.shape
    boundaries = range(options.first, shape.n_layers)
    search.told.start(len(boundaries))
    full: dict[str, list[Tensor]] = {}

    def measure(cell: Cell, work: Work) -> float:
        if cell.task.task not in full:
            full[cell.task.task] = next_token(replace(cell, strategy=strategy_from(REFERENCE)), work)
        rows = zip(next_token(cell, work), full[cell.task.task], strict=True)
        return statistics.fmean(divergence(withdrawn, kept, options.direction) for withdrawn, kept in rows)

    curve: dict[int, float] = {}
    for k in boundaries:
        spec = {"name": WITHDRAWS, "k": k}
        curve[k] = statistics.fmean(search.bench.per_task(options.direction, spec, measure, f"k = {k}"))
    trace = [{"k": k, "divergence": value} for k, value in curve.items()]
    k = first_within(curve, options.eta)
    if k is None:
        least = min(curve, key=lambda key: curve[key])
        raise NothingFound(
            complaint("eta of calibrate vtw", f"be at least {curve[least]:.3g}, the least divergence (at k = {least})",
                      options.eta, "raise --eta, or accept that this model needs the image up to its last layer")
        )  # fmt: skip
    return ScheduleFile(
        format=FORMAT, method=options.method, made_for=MadeFor.of(shape), counts={k: 0},
        provenance={"result": {"k": k, "divergence": curve[k], "layer_mean_ratio": k / shape.n_layers}, "trace": trace},
    )  # fmt: skip


def _fitprune(search: _Search, options: FitSearch) -> ScheduleFile:
    """The recipe of the least share of attention that has to go for the target."""
    shape, n_visual = search.target.shape, _n_visual(search.target)
    search.told.start(fitprune.HALVINGS)
    whole: dict[str, dict[int, dict[int, Tensor]]] = {}
    taken: dict[float, fitprune.Deleted] = {}

    def deleted(alpha: float) -> fitprune.Deleted:
        def measure(cell: Cell, work: Work) -> list[float]:
            return fitprune.measured(work, alpha, options.first, whole.setdefault(cell.task.task, {}))

        name = f"fitprune-{options.first}-{alpha}"
        found = search.bench.numbers_per_task(name, measure, 2 * shape.n_layers, f"alpha = {alpha:.4g}")
        taken[alpha] = fitprune.Deleted.mean(found)
        return taken[alpha]

    alpha, trace = fitprune.fit(deleted, options.flops_cut)
    if alpha is None:
        most = max(step["flops_cut"] for step in trace)
        raise NothingFound(
            complaint("flops_cut of calibrate fitprune", f"be at most {most:.3g}, where nearly all attention may go",
                      options.flops_cut, "lower --flops-cut, or --first")
        )  # fmt: skip
    gone, met = taken[alpha].until(options.flops_cut)
    layers = fitprune.counts_of(gone, n_visual)
    result = {
        "alpha": alpha,
        "flops_cut_of_questions": round(met, 6),
        "flops_cut": round(1 - prefill_flops(layers, shape) / prefill_flops([n_visual] * shape.n_layers, shape), 6),
        "tokens_per_layer": list(layers),
        "layer_mean_ratio": sum(layers) / (shape.n_layers * n_visual),
    }
    return ScheduleFile(
        format=FORMAT, method=options.method, made_for=MadeFor.of(shape),
        rates=rates_of(layers, n_visual) or {options.first: 1.0},
        provenance={"result": result, "trace": trace},
    )  # fmt: skip


def first_within(curve: dict[int, float], eta: float) -> int | None:
    """The smallest k whose divergence is at most ``eta``; None where there is none."""
    return next((k for k in sorted(curve) if curve[k] <= eta), None)


def _n_visual(target: ModelTarget) -> int:
    """Visual tokens of one image."""
    if target.shape.vision is None:  # locate() has refused such a model
        raise ConfigError(complaint(f"model {target.name!r}", "have a vision tower"))
    return target.shape.vision.n_visual


def _provenance(search: _Search, asked: dict[str, Any], command: str) -> dict[str, Any]:
    """Where a schedule comes from. Without a date: the same calibration writes the same file."""
    found = versions()
    if isinstance(search.options, PSigmoid):
        found["optuna"] = version("optuna")
    return {
        "command": command,
        "hash": digest(asked),
        "model": {"name": search.target.name, "fingerprint": search.target.fingerprint},
        "split": SPLIT,
        "options": search.options.to_dict(),
        "versions": found,
        "note": _NOTES.get(
            search.options.method, "the search is a reconstruction: the paper's own code was not available"
        ),
    }


def _finished(path: Path, asked: dict[str, Any]) -> ScheduleFile | None:
    """The schedule at ``path`` if this very calibration wrote it, None where there is no file.

    Raises:
        ResultsError: when the file is anything else, so that nothing is overwritten.
    """
    if not path.exists():
        return None
    try:
        found = read_schedule(path)
    except ConfigError as cause:
        raise ResultsError(
            complaint(f"{path}", "be a new file, or what this calibration wrote", hint="choose another --out")
        ) from cause
    if found.provenance.get("hash") != digest(asked):
        raise ResultsError(
            complaint(f"{path}", "be of this calibration", f"one of {found.provenance.get('command', 'another')!r}",
                      "choose another --out, or remove the file")
        )  # fmt: skip
    return found


def _text(schedule: ScheduleFile, path: Path) -> str:
    """A schedule as YAML, with a first line that says how it is used."""
    use = Calibration(path, schedule).strategy
    inline = yaml.safe_dump({**use, **({"file": path.name} if "file" in use else {})}, default_flow_style=True)
    data = schedule.model_dump(mode="json", exclude_none=True)
    for key in ("rates", "counts"):
        if data.get(key) is not None:
            data[key] = {int(boundary): value for boundary, value in data[key].items()}
    body = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return f"# strategy: {' '.join(inline.split())}\n{body}"
