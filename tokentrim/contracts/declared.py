"""What a plugin's class declares of itself must be possible: checked when its name is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

from tokentrim.contracts.sites import AT_BOUNDARIES, AT_STEPS, Need
from tokentrim.contracts.strategy import Spatial, SpatialScorer, Stage, Strategy, Temporal
from tokentrim.errors import complaint, nearest, suggestion

if TYPE_CHECKING:  # it needs torch, which plans do not
    from tokentrim.contracts.adapter import Adapter
    from tokentrim.contracts.tasks import Task

_FLAGS: Final = ("count_is_static", "merges", "trainable")
_ABILITIES: Final = ("name", "stage", "needs", "budget_knob", *_FLAGS)


def wrong_in_strategy(found: type[Strategy], tags: Mapping[str, Any]) -> str:
    """What is wrong with the declarations of a strategy's class, or with its tags; "" when nothing is."""
    shadowed = sorted(set(_ABILITIES) & set(found.model_fields))
    if shadowed:
        hint = f"annotate it with ClassVar, or leave the annotation out: {shadowed[0]} = ..."
        return complaint(f"{' and '.join(shadowed)}", "be declared of the class and be no parameter", hint=hint)
    problems = (_stage(found, tags), _needs(found), _knob(found), _flags(found))
    return next(filter(None, problems), "")


def wrong_in_adapter(found: type[Adapter], tags: Mapping[str, Any]) -> str:
    """What is wrong with an adapter's class or its tags; "" when nothing is."""
    types: Any = found.model_types
    if not isinstance(types, tuple) or not all(isinstance(kind, str) for kind in types):
        return complaint("model_types", "be a tuple of texts", types, 'write ("my_model",)')
    tagged = tags.get("model_types", ())
    if tuple(tagged) != types:
        return complaint("the tag model_types", f"equal the class's, {types!r}", tagged)
    if not types and not tags.get("fallback"):
        return complaint("model_types", "name at least one family", types, "write config.model_type of your model")
    return ""


def wrong_in_task(found: Task, tags: Mapping[str, Any]) -> str:
    """What is wrong with what a task says of itself; "" when nothing is."""
    from tokentrim.contracts.tasks import Metric  # a task is there, and with it what it needs

    del tags
    metrics: tuple[str, ...] = get_args(Metric)
    metric: Any = getattr(found, "metric", None)
    limit: Any = getattr(found, "max_new_tokens", None)
    if metric not in metrics:
        return complaint("metric", f"be one of {', '.join(metrics)}", metric, suggestion(str(metric), metrics))
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        return complaint("max_new_tokens", "be a whole number from 1 on", limit)
    texts: dict[str, Any] = {name: getattr(found, name, None) for name in ("name", "description", "metric_name")}
    wrong = next((name for name, text in texts.items() if not isinstance(text, str)), None)
    return "" if wrong is None else complaint(wrong, "be text", texts[wrong])


def _stage(found: type[Strategy], tags: Mapping[str, Any]) -> str:
    """The stage is a known one, one at which the class can act, and the one that its tag says."""
    known: tuple[str, ...] = get_args(Stage)
    stage: Any = found.stage
    if stage not in known:
        return complaint("stage", f"be one of {', '.join(known)}", stage, suggestion(str(stage), known))
    if issubclass(found, Temporal) and stage != "decode":
        return complaint("stage", "be decode: the class acts on the cache", stage)
    if issubclass(found, Spatial) and stage == "decode":
        return complaint("stage", "be prefill or input: the class acts while the prompt is processed", stage)
    tagged = tags.get("stage", stage)
    return "" if tagged == stage else complaint("the tag stage", f"equal the class's, {stage!r}", tagged)


def _needs(found: type[Strategy]) -> str:
    """Needs are a set of Need, each of which exists where the class acts."""
    needs: Any = found.needs
    if not isinstance(needs, frozenset) or not all(isinstance(need, Need) for need in needs):
        words = [need for need in needs if isinstance(need, str)] if isinstance(needs, set | frozenset | tuple) else []
        close = nearest(words[0].replace("-", "_"), [need.name for need in Need]) if words else None
        hint = f"write frozenset({{Need.{close or 'FEATURES'}}})"
        return complaint("needs", "be a frozenset of tokentrim.Need", needs, hint)
    spatial, temporal = issubclass(found, Spatial), issubclass(found, Temporal)
    if spatial == temporal:  # whole strategies, whose parts are checked by themselves
        return ""
    served, where = (AT_BOUNDARIES, "at a boundary") if spatial else (AT_STEPS, "at a decode step")
    missing = sorted(need.name for need in needs - served)
    there = ", ".join(sorted(need.name for need in served))
    return complaint("needs", f"be available {where}", missing, f"There: {there}") if missing else ""


def _knob(found: type[Strategy]) -> str:
    """The budget's knob is a parameter."""
    knob: Any = found.budget_knob
    if knob is None or knob in found.model_fields:
        return ""
    return complaint("budget_knob", "name a parameter", knob, suggestion(str(knob), found.model_fields))


def _flags(found: type[Strategy]) -> str:
    """Flags are true or false, and what the class can do bears them out."""
    for flag in _FLAGS:
        value: Any = getattr(found, flag)
        if not isinstance(value, bool):
            return complaint(flag, "be True or False", value)
    if issubclass(found, SpatialScorer):
        claimed = "merges" if found.merges else "" if found.count_is_static else "count_is_static"
        if claimed:
            hint = "a scorer only ranks: derive from SpatialSelector to merge, or to choose counts"
            return complaint(claimed, f"be {not getattr(found, claimed)}", getattr(found, claimed), hint)
    return ""
