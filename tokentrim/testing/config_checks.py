"""Checks of a strategy as configuration: no model runs."""

from __future__ import annotations

import json
from typing import Any, Final, cast, get_args

import yaml
from pydantic import ValidationError

from tokentrim.config.specs import strategy_from
from tokentrim.contracts.compose import Composition
from tokentrim.contracts.sites import AT_BOUNDARIES, AT_STEPS, Need
from tokentrim.contracts.strategy import Spatial, Stage, Strategy
from tokentrim.counting.forecast import is_static, plan
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.solve import solve
from tokentrim.errors import StrategyError, TokentrimError
from tokentrim.plugins.loader import registry
from tokentrim.testing.case import Case
from tokentrim.testing.outcome import STRATEGIES, Skipped, checks

_PARAMETERS: Final = f"{STRATEGIES}#parameters"
_SCORE: Final = f"{STRATEGIES}#narrow-score"
_SELECT: Final = f"{STRATEGIES}#wide-select"
_PLUGIN: Final = f"{STRATEGIES}#make-it-a-plugin"
_UNKNOWN: Final = "no_parameter_has_this_name"
_SIZES: Final = (0, 1, 2, 17, 144, 576)
_STEPS: Final = 40
_POINTS: Final = 24


def members_of(strategy: Strategy) -> list[Strategy]:
    """The strategy, or the parts that a composition was written from."""
    if not isinstance(strategy, Composition):
        return [strategy]
    return [*strategy.spatial, *([strategy.temporal] if strategy.temporal is not None else [])]


def parameters_are_frozen(case: Case) -> None:
    """No parameter of the object can be set after it was made."""
    for part in members_of(case.given):
        for name in type(part).model_fields:
            try:
                setattr(part, name, getattr(part, name))
            except (ValidationError, AttributeError, TypeError):
                continue
            case.require(False, f"parameter {name!r}", "be frozen: the object is shared between models and threads",
                         hint="leave model_config as Strategy has it", see=_PARAMETERS)  # fmt: skip


def parameters_are_described(case: Case) -> None:
    """Every parameter has a description, which ``tokentrim show`` and the JSON schema print."""
    for part in members_of(case.given):
        bare = [name for name, field in type(part).model_fields.items() if not field.description]
        if not isinstance(part, Composition):
            case.require(not bare, "parameters", "have a description", bare,
                         hint="write Field(default=..., description='what it is, with its unit')",
                         see=_PARAMETERS)  # fmt: skip


def unknown_parameters_are_refused(case: Case) -> None:
    """A misspelt parameter is an error, not a silent default."""
    for part in members_of(case.given):
        try:
            type(part).model_validate({**_values(part), _UNKNOWN: 1})
        except (ValidationError, TokentrimError):
            continue
        case.require(False, "a parameter that does not exist", "be refused", _UNKNOWN,
                     hint="leave extra='forbid' of model_config as Strategy has it", see=_PARAMETERS)  # fmt: skip


def specification_round_trips(case: Case) -> None:
    """The object's ``spec()`` survives YAML and JSON, and makes an equal object."""
    for part in members_of(case.given):
        for form, there, back in (("YAML", yaml.safe_dump, yaml.safe_load), ("JSON", json.dumps, json.loads)):
            try:
                again: Any = back(there(part.spec()))
                again = {key: value for key, value in again.items() if key != "name"}
                made = type(part).model_validate(again)
            except Exception as error:  # whatever a field of another type raises there
                case.require(False, f"spec() through {form}", "be read back", f"{type(error).__name__}: {error}",
                             hint="let every parameter be a number, text, path, list or mapping of these",
                             see=_PARAMETERS)  # fmt: skip
                return
            case.require(made == part, f"spec() through {form}", f"make an equal object; wanted {part!r}", made,
                         hint="let no parameter change when it is validated a second time",
                         see=_PARAMETERS)  # fmt: skip
    if all(part.name in registry("strategy") for part in members_of(case.given)):
        made = strategy_from(yaml.safe_dump(case.given.spec())).strategy
        case.require(made == case.given, "the YAML text", f"make an equal object; wanted {case.given!r}", made,
                     see=_PARAMETERS)  # fmt: skip


def registration_agrees(case: Case) -> None:
    """The registered name gives this class, and its tags say what the class says."""
    found = False
    for part in members_of(case.given):
        if part.name not in registry("strategy"):
            continue
        found = True
        entry, cls = registry("strategy").entry(part.name), registry("strategy").get(part.name)
        case.require(cls is type(part), f"the registered name {part.name!r}", "give the class of the object", cls,
                     hint=f"it was registered by {entry.origin}", see=_PLUGIN)  # fmt: skip
        stage = entry.tags.get("stage", part.stage)
        case.require(stage == part.stage, "the tag 'stage'", f"be the class's {part.stage!r}", stage,
                     hint="change it in the hook", see=_PLUGIN)  # fmt: skip
        summary = entry.tags.get("summary")
        case.require(summary, "the tag 'summary'", "say in one line what it does", summary,
                     hint="register(name, target, stage=..., summary='...')", see=_PLUGIN)  # fmt: skip
    if not found:
        raise Skipped(f"no strategy is registered as {case.given.name!r}: install the plugin to check this")


def abilities_are_declared(case: Case) -> None:
    """``name``, ``stage``, ``needs`` and ``budget_knob`` are there, and agree with what the object is."""
    for part in members_of(case.given):
        kind = type(part).__name__
        case.require(part.name, f"the name ({kind}.name)", "be set", part.name, hint="name: ClassVar[str] = 'my-name'",
                     see=_SCORE)  # fmt: skip
        case.require(part.stage in get_args(Stage), "stage", f"be one of {get_args(Stage)}", part.stage, see=_SCORE)
        beyond = part.needed() - part.needs
        case.require(not beyond, "needed()", "ask for nothing that needs does not declare", _words(beyond),
                     hint="add it to the class's needs", see=f"{STRATEGIES}#what-a-site-offers")  # fmt: skip
        parts = part.parts()
        decides = "decode" if parts.temporal is not None and not parts.spatial else None
        decides = "prefill" if parts.spatial else decides
        wanted = {"decode": ("decode",), "prefill": ("input", "prefill"), None: get_args(Stage)}[decides]
        case.require(part.stage in wanted, "stage", f"be {' or '.join(map(repr, wanted))}, where its parts act",
                     part.stage, hint="set the class's stage", see=_SCORE)  # fmt: skip
        for decider, served in (*((one, AT_BOUNDARIES) for one in parts.spatial), (parts.temporal, AT_STEPS)):
            if decider is not None:
                missing = decider.needed() - served
                case.require(not missing, "needed()", f"ask for what there is ({_words(served)})", _words(missing),
                             see=f"{STRATEGIES}#what-a-site-offers")  # fmt: skip
        for decider in parts.spatial:
            beyond = frozenset[Need]().union(*map(decider.needed_at, range(case.shape.n_layers))) - decider.needed()
            case.require(not beyond, "needed_at()", "ask for nothing that needed() does not", _words(beyond),
                         hint="let it narrow needed()", see=f"{STRATEGIES}#what-a-site-offers")  # fmt: skip
        knob = part.budget_knob
        case.require(knob is None or knob in type(part).model_fields, "budget_knob", "name one of its parameters",
                     knob, hint=f"they are {', '.join(type(part).model_fields)}", see=_PARAMETERS)  # fmt: skip


def schedule_is_lawful(case: Case) -> None:
    """Counts lie between 0 and what is there, never rise over layers or steps, and are the same when asked again."""
    shape = case.shape
    parts = case.strategy.parts()
    for part in parts.spatial:
        boundaries: set[tuple[int, ...]] = set()
        for n in sorted({*_SIZES, case.n_visual}):
            schedule = _schedule_of(case, part, n)
            if schedule is None:
                continue
            case.require(schedule == part.schedule(shape, n), "schedule()", "answer the same when asked again",
                         schedule, hint="let it depend on its arguments and parameters alone", see=_SCORE)  # fmt: skip
            counts = [count for _, count in schedule]
            at = f"schedule(shape, {n})"
            case.require(counts == sorted(counts, reverse=True), at, "never let a count rise", counts,
                         hint="a dropped token cannot return", see=_SCORE)  # fmt: skip
            case.require(all(0 <= count <= n for count in counts), at, f"keep between 0 and {n} tokens", counts,
                         hint="use tokentrim.keep_count for ratios, min(count, n_visual) for counts",
                         see=_SCORE)  # fmt: skip
            boundaries |= {schedule.boundaries} if n else set()
        case.require(len(boundaries) == 1, "boundaries", "not depend on the number of visual tokens",
                     sorted(boundaries), see=_SCORE)  # fmt: skip
    if parts.temporal is None:
        return
    for n in _SIZES:
        for layer in (0, shape.n_layers - 1):
            counts = [parts.temporal.count(step, layer, n, shape) for step in range(1, _STEPS)]
            at = f"count() of layer {layer}, {n} entries at prefill, steps 1, 2, ...,"
            falls = not parts.temporal.evicts() or counts == sorted(counts, reverse=True)
            case.require(falls, at, "never rise", counts, hint="what left the cache cannot return", see=_SCORE)
            case.require(all(0 <= count <= n for count in counts), at, f"lie between 0 and {n}", counts, see=_SCORE)


def _schedule_of(case: Case, part: Spatial, n: int) -> Schedule | None:
    """The schedule for ``n`` visual tokens; None where so many are refused, unless the small model has them."""
    try:
        return part.schedule(case.shape, n)
    except Exception as error:  # a stranger's schedule may raise anything
        if isinstance(error, StrategyError) and n != case.n_visual:
            return None
        case.require(False, f"schedule(shape, {n})", f"work for {n} visual tokens and {case.shape.n_layers} layers",
                     f"{type(error).__name__}: {error}", see=_SCORE)  # fmt: skip
        raise


def knob_is_monotone(case: Case) -> None:
    """Turning the budget knob over its range never makes the plan's cost go up and down again."""
    _require_knob(case)
    shape, n = case.shape, case.n_visual
    knob = case.strategy.knob(n)
    costs: list[tuple[float, float]] = []
    for point in range(_POINTS + 1):
        usage = plan(knob.at(point * knob.steps // _POINTS), shape, n, new_tokens=8).usage
        costs.append((usage.layer_mean_ratio, usage.kv_mean_ratio))
    for measure, values in zip(("layer-mean tokens", "cache entries"), zip(*costs, strict=True), strict=True):
        rising = list(values) in (sorted(values), sorted(values, reverse=True))
        case.require(rising, f"the share of {measure} over the range of {knob.name!r}",
                     "only rise, or only fall: budgets are found by bisection", [round(v, 3) for v in values],
                     hint="name another parameter as budget_knob, or none", see=_PARAMETERS)  # fmt: skip


def budgets_are_met(case: Case) -> None:
    """``at_budget`` finds a value of the knob whose plan is not above the budget, and moves with it."""
    _require_knob(case)
    shape, n = case.shape, case.n_visual
    found: list[float] = []
    for measure in ("layer_mean_ratio", "kv_ratio", "kv_read_ratio", "flops_ratio"):
        for target in (0.6, 0.9, 1.0):
            try:
                _, realised = solve(case.strategy, shape, n, **cast("Any", {measure: target}))
            except TokentrimError:
                continue  # a knob need not reach every figure
            case.require(realised <= target + 1e-9, f"{measure} at the budget {target}", "not lie above it", realised,
                         see=_PARAMETERS)  # fmt: skip
            found.append(realised)
    case.require(found, "the budget_knob", "reach at least one of the budgets 0.6, 0.9 and 1.0", case.given.budget_knob,
                 hint="does the plan depend on it?", see=_PARAMETERS)  # fmt: skip


def documentation_says_where_it_is_from(case: Case) -> None:
    """The class has a docstring, with the paper as a bibtex block if there is one (skipped without)."""
    for part in members_of(case.given):
        text = type(part).__dict__.get("__doc__") or ""
        case.require(len(text.split()) > 3, f"the docstring of {type(part).__name__}", "say what it does",
                     text, hint="tokentrim show prints it", see=f"{STRATEGIES}#the-docstring")  # fmt: skip
        if "```bibtex" not in text:
            raise Skipped("its docstring has no bibtex block, so tokentrim show cannot print a citation")


def _require_knob(case: Case) -> None:
    if all(part.budget_knob is None for part in members_of(case.given)):
        raise Skipped("it declares no budget_knob")
    if any(part.budget_knob and getattr(part, part.budget_knob, 0) is None for part in members_of(case.given)):
        raise Skipped("another parameter is set instead of its budget_knob")
    if isinstance(case.given, Composition) and sum(p.budget_knob is not None for p in case.given.spatial) > 1:
        raise Skipped("several of its parts have a budget_knob")
    if not is_static(case.given) and not case.given.spatial_parts:
        raise Skipped("its counts depend on the data")


def _values(part: Strategy) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.model_fields_set}


def _words(needs: Any) -> str:
    return ", ".join(sorted(need.value for need in needs)) or "nothing"


CONFIG_CHECKS: Final = checks(
    abilities_are_declared,
    parameters_are_frozen,
    parameters_are_described,
    unknown_parameters_are_refused,
    specification_round_trips,
    registration_agrees,
    schedule_is_lawful,
    knob_is_monotone,
    budgets_are_met,
    documentation_says_where_it_is_from,
)
