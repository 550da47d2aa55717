"""Checks of an adapter on a small model of a family that it serves.

The self-test's checks come first: they prove that pruning is right on the model. What follows is what an adapter's
author promises beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import Adapter
from tokentrim.contracts.compose import compose
from tokentrim.contracts.sites import FROM_TOWER, LayerSite, Need
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.costs import mean_ratios
from tokentrim.counting.forecast import plan
from tokentrim.errors import AdapterError, UnsupportedError
from tokentrim.plugins.loader import registry
from tokentrim.selftest.checks import CHECKS
from tokentrim.selftest.probes import Fade, Scatter, reader
from tokentrim.selftest.subject import TOLERANCE, Subject, changes, deviation, generate, state
from tokentrim.testing.case import Beam, best_beams
from tokentrim.testing.outcome import ADAPTERS, Check, Failed, Skipped, checks, require, unlike
from tokentrim.testing.subjects import Example, example_subject

_INTERFACE: Final = f"{ADAPTERS}#the-interface"
_LAYOUT: Final = f"{ADAPTERS}#layout"
_PLACES: Final = f"{ADAPTERS}#places"
_RELIES: Final = f"{ADAPTERS}#what-the-engine-relies-on"
_REGISTER: Final = f"{ADAPTERS}#register-it"
_SELF_TEST: Final = "docs/families.md#the-self-test"
_STEPS: Final = 5


@dataclass(frozen=True)
class AdapterCase:
    """An adapter on one model.

    Attributes:
        adapter: on trial.
        family: the model's ``model_type``.
        make: makes the subject.
    """

    adapter: Adapter
    family: str
    make: Callable[[], Subject]

    @functools.cached_property
    def subject(self) -> Subject:
        """The model, its prompts, and where the adapter finds things."""
        return self.make()

    @property
    def label(self) -> str:
        """Short text for names."""
        return f"{self.adapter.name or type(self.adapter).__name__}-{self.family}"

    @property
    def whom(self) -> str:
        """The adapter, for messages."""
        return f"adapter {self.adapter.name or type(self.adapter).__name__!r} on {self.family}"

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of all prompts."""
        return tuple(range(len(self.subject.prompts)))

    def require(self, holds: object, what: str, must: str, *got: object, hint: str = "", see: str) -> None:
        """Raise Failed in the house grammar unless ``holds``."""
        require(holds, f"{what} of {self.whom}", must, *got, hint=hint, see=see)


def cases_of(given: Adapter | Example, families: Sequence[str] | None = None) -> list[AdapterCase]:
    """One case per family that an adapter serves, or the one of an example."""
    if isinstance(given, Example):
        config: Any = getattr(given.model, "config", None)
        family = str(getattr(config, "model_type", "its model"))
        return [AdapterCase(given.adapter, family, given.subject)]
    chosen = given.model_types if families is None else tuple(families)
    return [AdapterCase(given, family, functools.partial(example_subject, given, family)) for family in chosen]


def _pruning() -> Strategy:
    return compose((Scatter(shares={0: 0.9, 1: 0.5, 2: 0.25}),), Fade(rate=0.2))


# ---------------------------------------------------------------------- the adapter itself


def names_are_registered(case: AdapterCase) -> None:
    """``name`` and ``model_types`` are set, and the registered tags say the same."""
    cls = type(case.adapter)
    case.require(cls.name, f"the name ({cls.__name__}.name)", "be set", cls.name, see=_INTERFACE)
    case.require(isinstance(cls.model_types, tuple), "model_types", "be a tuple of texts", cls.model_types,
                 see=_INTERFACE)  # fmt: skip
    if cls.name not in registry("adapter"):
        raise Skipped(f"no adapter is registered as {cls.name!r}: install the plugin to check this")
    entry, found = registry("adapter").entry(cls.name), registry("adapter").get(cls.name)
    case.require(found is cls, f"the registered name {cls.name!r}", "give the class of the adapter", found,
                 see=_REGISTER)  # fmt: skip
    told = tuple(entry.tags.get("model_types", cls.model_types))
    case.require(told == cls.model_types, "the tag 'model_types'", f"be the class's {cls.model_types}", told,
                 see=_REGISTER)  # fmt: skip


def drift_is_an_error(case: AdapterCase) -> None:
    """A model of the family without the expected modules is an AdapterError, never a model that runs unpruned."""
    hollow = _Hollow(case.subject.model.config)
    try:
        case.adapter.locate(hollow)
    except AdapterError:
        return
    except Exception as error:  # a stranger's adapter may raise anything
        case.require(False, "locate() on a model without its modules", "raise AdapterError",
                     f"{type(error).__name__}: {error}", hint="find modules with tokentrim.submodule",
                     see=_INTERFACE)  # fmt: skip
    case.require(False, "locate() on a model without its modules", "raise AdapterError", "a Layout", see=_INTERFACE)


class _Hollow(nn.Module):
    """A model of which only the configuration is left."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config


def shape_is_the_models(case: AdapterCase) -> None:
    """``shape(config)`` needs no weights, and says what the model has: layers, widths, vocabulary, bytes."""
    layout, model = case.subject.layout, case.subject.model
    told = case.adapter.shape(layout.entry.config)
    own = replace(layout.shape, name=told.name, bytes_per_element=told.bytes_per_element)
    case.require(told == own, "shape(config)", f"be the shape that locate() found, {own}", told, see=_INTERFACE)
    embedding: Tensor = model.get_input_embeddings().weight
    facts = {
        "n_layers": (told.n_layers, len(layout.layers)),
        "attentions": (len(layout.attentions), len(layout.layers)),
        "hidden_size": (told.hidden_size, embedding.shape[1]),
        "vocab_size": (told.vocab_size, embedding.shape[0]),
        "bytes_per_element": (layout.shape.bytes_per_element, embedding.element_size()),
    }
    if layout.vision_attentions and told.vision is not None:
        facts["vision.n_layers"] = (told.vision.n_layers, len(layout.vision_attentions))
    for name, (said, has) in facts.items():
        case.require(said == has, f"{name} of the shape", f"be the model's {has}", said, see=_LAYOUT)


def plan_is_met(case: AdapterCase) -> None:
    """What ``plan`` says of a prompt from the shape alone, the report says after it ran."""
    subject, strategy = case.subject, _pruning()
    inputs = subject.prompt(0)
    n = int(subject.visual(inputs).sum())
    with subject.trimmed(strategy) as session:
        generate(subject.model, inputs, _STEPS)
        report = session.report().to_dict()
    structure = int((subject.adapter.modalities(subject.layout, inputs) > 0).sum()) - n
    usage = plan(strategy, subject.layout.shape, n, inputs["input_ids"].shape[1] - n, _STEPS).usage
    for name, value in mean_ratios([usage]).items():
        if structure and name.startswith("flops"):
            continue  # line ends are counted apart from text
        case.require(report[name] == value, f"{name} of the report", f"be the plan's {value}", report[name],
                     hint="is a placeholder missing from modalities(), or a number of shape() wrong?",
                     see=_INTERFACE)  # fmt: skip


def places_are_a_grid(case: AdapterCase) -> None:
    """Every visual token with a place has one of its own, inside the rows and columns of its plane."""
    subject = case.subject
    if Need.GRID in subject.layout.unserved:
        raise Skipped(subject.layout.unserved[Need.GRID])
    inputs = subject.prompt(*case.rows)
    with subject.trimmed(Scatter(shares={0: 1.0})) as session, torch.no_grad():
        subject.model(**inputs)
        try:
            grid = session.grid
        except UnsupportedError as reason:
            raise Skipped(str(reason)) from reason
    real = grid.row >= 0
    case.require(bool(real.any()), "the grid", "give places to visual tokens", "none", see=_PLACES)
    inside = (grid.row < grid.rows) & (grid.col < grid.cols) & (grid.col >= 0)
    case.require(bool(inside[real].all()), "rows and columns of the grid", "lie inside their plane",
                 f"{int((~inside[real]).sum())} outside", see=_PLACES)  # fmt: skip
    for row in range(grid.row.shape[0]):
        one = torch.stack([grid.image, grid.frame, grid.plane, grid.row, grid.col])[:, row][:, real[row]]
        different = one.unique(dim=1).shape[1]
        case.require(different == one.shape[1], f"places of row {row} of the batch", "differ from each other",
                     f"{different} places for {one.shape[1]} tokens", see=_PLACES)  # fmt: skip


# ---------------------------------------------------------------------- the model under it


def answers_follow_the_prompt(case: AdapterCase) -> None:
    """``generate`` returns the caller's full ``input_ids``, followed by the new tokens."""
    subject = case.subject
    inputs = subject.prompt(*case.rows)
    ids: Tensor = inputs["input_ids"]
    with subject.trimmed(_pruning()):
        out: Tensor = subject.model.generate(**inputs, max_new_tokens=_STEPS, do_sample=False)
    got = (bool(torch.equal(out[:, : ids.shape[1]], ids)), out.shape[1] - ids.shape[1])
    case.require(got == (True, _STEPS), "what generate returns", f"be the prompt and {_STEPS} new tokens",
                 f"{'the prompt' if got[0] else 'another prompt'} and {got[1]}", see=_RELIES)  # fmt: skip


def ragged_rows_are_rows_alone(case: AdapterCase) -> None:
    """Rows of all prompts in one left-padded batch answer as each row alone, those without pictures too."""
    subject, strategy = case.subject, _pruning()
    _need_rows(case)
    with subject.trimmed(strategy) as session:
        ids, logits = generate(subject.model, subject.prompt(*case.rows), _STEPS)
        together = session.trace
    for row in case.rows:
        with subject.trimmed(strategy) as session:
            own_ids, own = generate(subject.model, subject.prompt(row), _STEPS)
            alone = session.trace
        if any(alone.n_visual):
            for layer in range(alone.n_layers):
                ours, its = together.kept(layer, row).tolist(), alone.kept(layer).tolist()
                wanted, got = unlike(its, ours)
                where = f"row {row} of a batch, layer {layer},"
                case.require(ours == its, where, f"keep what it keeps alone ({wanted})",
                             got, hint="are pictures dealt to the right rows?", see=_RELIES)  # fmt: skip
        worst = deviation(logits[row], own[0])
        case.require(worst <= TOLERANCE and torch.equal(ids[row], own_ids[0]), f"row {row} of a left-padded batch",
                     "answer as the row alone", f"logits {worst:.2g} apart", see=_RELIES)  # fmt: skip


def right_padding_is_no_padding(case: AdapterCase) -> None:
    """A direct call on a right-padded batch gives every row the logits of the row alone."""
    subject, strategy = case.subject, Scatter(shares={0: 0.9, 1: 0.5})
    _need_rows(case)
    inputs = _flushed_left(subject.prompt(*case.rows))
    with subject.trimmed(strategy), torch.no_grad():
        found: Tensor = subject.model(**inputs).logits
    for row in case.rows:
        with subject.trimmed(strategy), torch.no_grad():
            own: Tensor = subject.model(**subject.prompt(row)).logits[0]
        worst = deviation(found[row, : len(own)], own)
        case.require(worst <= TOLERANCE, f"row {row} of a right-padded batch", "have the logits of the row alone",
                     f"a difference of {worst:.2g}", see=_RELIES)  # fmt: skip


def _flushed_left(inputs: dict[str, Any]) -> dict[str, Any]:
    """A left-padded batch with its padding behind the rows."""
    mask: Tensor = inputs["attention_mask"]
    order = torch.argsort((mask == 0).to(torch.uint8), dim=1, stable=True)
    return {
        name: value.gather(1, order) if isinstance(value, Tensor) and value.shape == mask.shape else value
        for name, value in inputs.items()
    }


def beams_in_batch_are_beams_alone(case: AdapterCase) -> None:
    """Beam search over a batch finds the beams of each row alone."""
    subject, strategy = case.subject, _pruning()
    _need_rows(case)

    def beams(*rows: int) -> list[Beam]:
        with subject.trimmed(strategy):
            return best_beams(subject.model, subject.prompt(*rows))

    found = beams(*case.rows)
    for row in case.rows:
        (own,) = beams(row)
        case.require(found[row].is_like(own), f"the best of two beams of row {row} of a batch",
                     f"be that of the row alone, {own}", str(found[row]), see=_RELIES)  # fmt: skip


def tower_attention_is_readable(case: AdapterCase) -> None:
    """What the vision tower made and attended to reaches a strategy finite, each row's own, attention not negative."""
    subject = case.subject
    if not subject.layout.vision_attentions or Need.VISION_ROWS in subject.layout.unserved:
        raise Skipped("the adapter says that the tower's attention cannot be read")
    seen: list[dict[str, Tensor]] = []
    look = reader(FROM_TOWER | {Need.VISION_HIDDEN}, lambda site: seen.append(_tower(site)))
    rows = case.rows[:2]
    for chosen in (rows, *((row,) for row in rows)):
        with subject.trimmed(look(shares={0: 0.5})), torch.no_grad():
            subject.model(**subject.prompt(*chosen))
    for name, together in seen[0].items():
        good = bool(together.isfinite().all()) and (name not in _ATTENTION or bool((together >= 0).all()))
        case.require(together.dim() == 4 and good, f"site.{name}", "be finite and not negative",
                     tuple(together.shape), hint="see arrange()", see=_INTERFACE)  # fmt: skip
        for row, alone in zip(rows, seen[1:], strict=True):
            n = alone[name].shape[-1]
            worst = float((together[row, ..., :n] - alone[name][0]).abs().max())
            case.require(worst < TOLERANCE, f"site.{name} of row {row} of a batch", "be those of the row alone",
                         f"a difference of {worst:.2g}", hint="see arrange()", see=_INTERFACE)  # fmt: skip


_ATTENTION = ("vision_rows", "vision_columns", "vision_wide")


def _tower(site: LayerSite) -> dict[str, Tensor]:
    """Everything with the tokens in the last dimension."""
    found = {name: getattr(site, name).clone() for name in (*_ATTENTION, "vision_logits")}
    found["vision_keys"] = site.vision_keys.transpose(2, 3)
    for name, vectors in (("vision_hidden", site.vision_hidden), ("project", site.project(site.vision_hidden))):
        found[name] = vectors.transpose(1, 2).unsqueeze(1)
    return found


def nothing_remains_after_an_exception(case: AdapterCase) -> None:
    """An exception inside the context leaves the model as it was."""
    subject = case.subject
    inputs = subject.prompt(0)
    logits = generate(subject.model, inputs, 2)[1]
    before = state(subject.model)
    handle: Any = None
    try:
        with subject.trimmed(_pruning()):
            handle = subject.layout.layers[-1].register_forward_pre_hook(_raise)
            generate(subject.model, inputs, 2)
    except _OnPurposeError:
        pass
    finally:
        if handle is not None:
            handle.remove()
    changed = changes(subject.model, before)
    case.require(not changed, "the model after an exception", "be as before", changed[:3],
                 see="docs/concepts.md#what-is-restored")  # fmt: skip
    case.require(torch.equal(generate(subject.model, inputs, 2)[1], logits), "the answer after an exception",
                 "be the untouched model's", see="docs/concepts.md#what-is-restored")  # fmt: skip


class _OnPurposeError(Exception):
    """What the check raises itself."""


def _raise(*_: Any) -> None:
    raise _OnPurposeError


def _need_rows(case: AdapterCase) -> None:
    if len(case.rows) < 2:
        raise Skipped("one prompt is given, and a batch needs two")


def _of_self_test(name: str, check: Callable[[Subject], str]) -> Check:
    """A check of the self-test, under a name that is a word."""

    def run(case: AdapterCase) -> None:
        try:
            check(case.subject)
        except Failed as failure:
            require(False, f"{case.whom}", f"pass the self-test's {name!r}", str(failure), see=_SELF_TEST)

    run.__doc__ = check.__doc__
    return Check(name.replace(" ", "_"), run)


ADAPTER_CHECKS: Final[tuple[Check, ...]] = (
    *checks(names_are_registered, drift_is_an_error, shape_is_the_models),
    *(_of_self_test(name, check) for name, check, _ in CHECKS),
    *checks(
        plan_is_met,
        places_are_a_grid,
        answers_follow_the_prompt,
        ragged_rows_are_rows_alone,
        right_padding_is_no_padding,
        beams_in_batch_are_beams_alone,
        tower_attention_is_readable,
        nothing_remains_after_an_exception,
    ),
)


def adapter_checks(
    given: Adapter | Example, families: Sequence[str] | None
) -> Iterator[tuple[str, Check, AdapterCase]]:
    """(name, check, case) of everything; names carry the family where there are several."""
    cases = cases_of(given, families)
    for case in cases:
        for check in ADAPTER_CHECKS:
            yield check.name if len(cases) == 1 else f"{check.name}[{case.family}]", check, case
