"""Every check of the contract fails on a strategy that is broken where the check looks."""

from __future__ import annotations

import inspect
import itertools
import re
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict, Field, PrivateAttr, field_validator
from torch import Tensor

from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.selection import Selection, top_selection
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.contracts.strategy import Parts, SpatialScorer, SpatialSelector, TemporalScorer
from tokentrim.counting.rounding import keep_count
from tokentrim.counting.schedule import Schedule
from tokentrim.engine.tokens.stream import Stream
from tokentrim.plugins.loader import registry
from tokentrim.plugins.registry import Entry
from tokentrim.testing import checks_of, small_model
from tokentrim.testing.answer_checks import ANSWER_CHECKS
from tokentrim.testing.case import STEPS
from tokentrim.testing.config_checks import CONFIG_CHECKS
from tokentrim.testing.deciding_checks import DECIDING_CHECKS


class Sound(SpatialScorer):
    """Keep the tokens that the last prompt token attends to most."""

    name: ClassVar[str] = "sound"
    stage: ClassVar[Any] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW})
    budget_knob: ClassVar[str | None] = "keep_ratio"

    keep_ratio: float = Field(default=0.4, ge=0, le=1, description="share kept")
    boundary: int = Field(default=2, ge=1, description="boundary")

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({self.boundary: keep_count(self.keep_ratio, n_visual)})

    def score(self, site: LayerSite) -> Tensor:
        return site.last_row.mean(dim=1)


class SoundSelector(SpatialSelector):
    """Keep the first tokens."""

    name: ClassVar[str] = "sound-selector"
    stage: ClassVar[Any] = "input"

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({0: n_visual // 2})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        return top_selection(-site.ids.float(), tuple(count.tolist()), site.n_visual)


class SoundFade(TemporalScorer):
    """Forget one entry per step."""

    name: ClassVar[str] = "sound-fade"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW})

    def count(self, step: int, layer: int, n_prefill: int, shape: Any) -> int:
        return max(0, n_prefill - step)

    def score(self, site: StepSite) -> Tensor:
        return site.last_row.mean(dim=1)


# ---------------------------------------------------------------------- configuration


class Melting(Sound):
    model_config = ConfigDict(frozen=False, extra="forbid")


class Undescribed(Sound):
    heads: int = 4


class Lenient(Sound):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Shrinking(Sound):
    @field_validator("keep_ratio")
    @classmethod
    def _halved(cls, value: float) -> float:
        return value / 2


class Unwritable(Sound):
    mark: Any = Field(default=None, description="something")

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "mark": self.mark}


class Asking(Sound):
    def needed(self) -> frozenset[Need]:
        return frozenset({Need.LAST_ROW, Need.KEYS})


class AskingLate(Sound):
    def needed_at(self, boundary: int) -> frozenset[Need]:
        return self.needed() | {Need.VALUES}


class Misplaced(Sound):
    stage: ClassVar[Any] = "decode"


class Knobless(Sound):
    budget_knob: ClassVar[str | None] = "keep"


class Greedy(Sound):
    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({2: max(8, n_visual // 2)})


class Wandering(Sound):
    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({1 + n_visual % 2: n_visual // 2})


class Regrowing(SoundFade):
    """Forget most, then remember."""

    def count(self, step: int, layer: int, n_prefill: int, shape: Any) -> int:
        return n_prefill // 4 if step < 3 else n_prefill // 2


class Bumpy(Sound):
    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        share = 1 - abs(self.keep_ratio - 0.5)
        return Schedule.of({2: keep_count(share, n_visual)})


class Stuck(Sound):
    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({2: n_visual // 2})


class Silent(Sound):
    __doc__ = None


# ---------------------------------------------------------------------- deciding


class Unsorted(SoundSelector):
    """Give the kept tokens in the order of their scores."""

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        found = super().select(site, count)
        for row, n in enumerate(found.counts):
            found.kept[row, :n] = found.kept[row, :n].flip(0)
        return found


class Miscounting(SoundSelector):
    """Keep one token less than it promised."""

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        return super().select(site, (count - 1).clamp(min=0))


class Undeclared(Sound):
    needs: ClassVar[frozenset[Need]] = frozenset()


class MergingInSecret(SoundSelector):
    """Merge, and say nothing."""

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        return replace(super().select(site, count), target=torch.full_like(site.ids, -1))


class Idle(Sound):
    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({2: n_visual})


class Wasteful(Sound):
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LAST_ROW, Need.KEYS})


class Scribbling(Sound):
    def score(self, site: LayerSite) -> Tensor:
        return site.last_row.mul_(2).mean(dim=1)


class Dividing(Sound):
    def score(self, site: LayerSite) -> Tensor:
        return super().score(site) * float("nan")


class DividingFade(SoundFade):
    def score(self, site: StepSite) -> Tensor:
        return super().score(site) * float("nan")


class Backwards(Sound):
    def score(self, site: LayerSite) -> Tensor:
        return -super().score(site)


class Remembering(Sound):
    _asked: list[int] = PrivateAttr(default_factory=list)

    def score(self, site: LayerSite) -> Tensor:
        self._asked.append(1)
        return (super().score(site) * 1e4).remainder(1.0 / len(self._asked))


class Gambling(Sound):
    def score(self, site: LayerSite) -> Tensor:
        return torch.rand(site.ids.shape)


class Paired(Sound):
    def score(self, site: LayerSite) -> Tensor:
        return super().score(site) - super().score(site).topk(3, dim=1).values[:, 2:]


class FullPrecision(Sound):
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HIDDEN})

    def score(self, site: LayerSite) -> Tensor:
        return site.hidden @ torch.ones(site.hidden.shape[-1], dtype=torch.float32)


# ---------------------------------------------------------------------- what comes of it


class Weighing(SoundSelector):
    """Keep as many as asked, each a little heavier."""

    merges: ClassVar[bool] = True
    count_is_static: ClassVar[bool] = False
    budget_knob: ClassVar[str | None] = "keep_ratio"
    keep_ratio: float = Field(default=0.5, ge=0, le=1, description="share kept")

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({0: keep_count(self.keep_ratio, n_visual)})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        chosen = super().select(site, count)
        slots = torch.full(site.ids.shape, -1)
        for row, n in enumerate(chosen.counts):
            slots[row, chosen.kept[row, :n]] = torch.arange(n)
        return replace(chosen, target=slots, weight=torch.full(site.ids.shape, 1.01), reduce="sum")


class Meddling(Sound):
    """Lean on a module of the model, which it found where it should not look, for one answer."""

    def score(self, site: LayerSite) -> Tensor:
        calls: list[int] = []

        def lean(module: Any, args: Any, output: Tensor) -> Tensor:
            calls.append(1)
            if len(calls) == STEPS:
                handle.remove()
            return output * 1.01

        handle = _head().register_forward_hook(lean)
        return super().score(site)


class Crowding(Sound):
    def score(self, site: LayerSite) -> Tensor:
        own = super().score(site)
        return own if site.ids.shape[0] == 1 else own.roll(1, dims=0) + own.roll(3, dims=1)


class Forgetful(SoundFade):
    """Remember rows, and not how to move them."""

    def begin(self, prompt: Any) -> Any:
        return {"seen": torch.zeros(len(prompt.n_visual), 2)}


class LosingRows(Sound):
    """Score by how many rows there are."""

    def begin(self, prompt: Any) -> Any:
        return {"rows": len(prompt.n_visual)}

    def score(self, site: LayerSite) -> Tensor:
        own = super().score(site)
        return own if site.state["rows"] == 1 else own + 10.0 * (site.ids % (site.state["rows"] + 1))


class Lying(Sound):
    """Plan a half, keep a quarter, by turns."""

    _turns: Any = PrivateAttr(default_factory=lambda: itertools.cycle([2, 4, 4]))

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({2: n_visual // next(self._turns)})


class Excessive(SoundSelector):
    """Keep more than the upper bound that it gave."""

    count_is_static: ClassVar[bool] = False

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        return super().select(site, (torch.tensor(site.n_visual) - 1).clamp(min=0))


class Early(SoundFade):
    """Decide before the first token, too."""

    def parts(self) -> Parts:
        return Parts(spatial=(Sound(),), temporal=self)


class Leaving(Sound):
    def score(self, site: LayerSite) -> Tensor:
        _head().__dict__["left_behind"] = True
        return super().score(site)


def _head() -> Any:
    return small_model().model.lm_head


BROKEN: tuple[tuple[str, Any, str], ...] = (
    ("abilities_are_declared", Asking(), r"needed\(\) .* declare; got 'keys'"),
    ("abilities_are_declared", AskingLate(), r"needed_at\(\) .* needed\(\) does not; got 'values'"),
    ("abilities_are_declared", Misplaced(), "stage .* be 'input' or 'prefill', where its parts act; got 'decode'"),
    ("abilities_are_declared", Knobless(), "budget_knob .* name one of its parameters; got 'keep'"),
    ("parameters_are_frozen", Melting(), "parameter 'positions' .* be frozen"),
    ("parameters_are_described", Undescribed(), r"have a description; got \['heads'\]"),
    ("unknown_parameters_are_refused", Lenient(), "does not exist .* be refused"),
    ("specification_round_trips", Shrinking(keep_ratio=0.4), "make an equal object"),
    ("specification_round_trips", Unwritable(mark=object()), "YAML .* be read back"),
    ("schedule_is_lawful", Greedy(), r"keep between 0 and 0 tokens; got \[8\]"),
    ("schedule_is_lawful", Wandering(), "not depend on the number"),
    ("schedule_is_lawful", Regrowing(), "never rise"),
    ("knob_is_monotone", Bumpy(), "only rise, or only fall"),
    ("budgets_are_met", Stuck(), "reach at least one of the budgets"),
    ("documentation_says_where_it_is_from", Silent(), "docstring .* say what it does"),
    ("runs", Unsorted(), "be ascending, unique"),
    ("runs", Miscounting(), "equal the schedule's"),
    ("runs", Undeclared(), "be declared before use.*Add Need.LAST_ROW"),
    ("runs", MergingInSecret(), "declares merges = True"),
    ("runs", Excessive(), "lie between 0 and .* nor more than its schedule says"),
    ("runs", Sound(boundary=9), "be served, for anything to be checked"),
    ("prunes", Idle(), "be fewer than its 36 tokens"),
    ("needs_are_read", Wasteful(), r"ask for what is read; got \['keys'\]"),
    ("inputs_are_unchanged", Scribbling(), r"boundary 2.* be left as they are; got \['last-row'\]"),
    ("runs", Dividing(), "be numbers; got 'NaN'"),
    ("runs", DividingFade(), "at step 1, layer 0.* be numbers; got 'NaN'"),
    ("more_attention_never_scores_lower", Backwards(), "Higher = kept: is a sign missing"),
    ("nothing_is_remembered", Remembering(), "be decided alike when it comes again"),
    ("global_randomness_is_untouched", Gambling(), r"not be drawn from; got \['torch'\]"),
    ("few_tokens_are_enough", Paired(), "1 tokens are left .* be decided on; got"),
    ("runs_in_half_precision", FullPrecision(), "bfloat16 .* be decided on"),
    ("keep_all_is_identity", Weighing(), "change no bit"),
    ("drop_is_mask", Meddling(), "give the logits of masking"),
    ("renumbered_drop_is_mask", Meddling(), "give the logits of masking"),
    ("row_in_batch_is_row_alone", Crowding(), "keep what the row keeps alone"),
    ("beams_in_batch_are_beams_alone", Forgetful(), "have a method select_rows"),
    ("beams_in_batch_are_beams_alone", LosingRows(), "be that of the row alone"),
    ("plan_is_met", Lying(), "be as planned"),
    ("first_token_is_the_spatial_parts", Early(), "have the logits of the untouched model"),
    ("model_is_restored", Leaving(), "be as it was before"),
)


@cache
def checks(index: int) -> dict[str, Any]:
    return dict(checks_of(BROKEN[index][1], families=[]))


@pytest.fixture
def untouched_model():
    model = small_model().model
    weights = model.lm_head.weight.data.clone()
    yield model
    model.lm_head.weight.data.copy_(weights)
    model.lm_head.__dict__.pop("left_behind", None)
    model.lm_head._forward_hooks.clear()


@pytest.mark.parametrize(
    ("index", "name"), [(i, n) for i, (n, _, _) in enumerate(BROKEN)],
    ids=[f"{name}-{type(broken).__name__}" for name, broken, _ in BROKEN],
)  # fmt: skip
def test_the_check_sees_what_is_broken(index: int, name: str, untouched_model: Any) -> None:
    outcome = checks(index)[name].outcome()
    assert outcome.status == "failed", outcome
    text = " ".join(outcome.text.split())
    assert re.search(BROKEN[index][2], text), text
    assert text.startswith(f"{name}: ")
    assert " must " in text
    assert "See docs/" in text


@pytest.mark.parametrize("sound", [Sound(), SoundSelector(), SoundFade()])
def test_what_they_were_made_from_is_sound(sound: Any) -> None:
    asked = {name for name, broken, _ in BROKEN if isinstance(broken, type(sound))}
    outcomes = [check.outcome() for name, check in checks_of(sound, families=[]) if name in asked]
    assert not [outcome for outcome in outcomes if outcome.status == "failed"]


def test_registration_sees_another_class_and_other_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    class Impostor(Sound):
        """Pretend to be another strategy."""

        name: ClassVar[str] = "fastv"

    outcome = dict(checks_of(Impostor(), families=[]))["registration_agrees"].outcome()
    assert "give the class of the object" in outcome.text
    strategies = registry("strategy")
    entry = strategies.entry("fastv")
    other = Entry(entry.kind, entry.name, entry.target, entry.origin, MappingProxyType({"stage": "decode"}))
    monkeypatch.setitem(strategies._entries, "fastv", other)
    outcome = dict(checks_of("fastv", families=[]))["registration_agrees"].outcome()
    assert "the tag 'stage'" in outcome.text


def test_text_is_kept_sees_an_adapter_that_takes_text_for_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = type(small_model().adapter)
    checks = dict(checks_of(Sound(keep_ratio=0.0), families=[]))
    real = adapter.modalities

    def wrong(self: Any, layout: Layout, arguments: Any) -> Tensor:
        found = real(self, layout, arguments)
        if any(frame.function == "_enter_entry" for frame in inspect.stack(0)):
            found[:, 0] = 1
        return found

    monkeypatch.setattr(adapter, "modalities", wrong)
    outcome = checks["text_is_kept"].outcome()
    assert "entries: all 8 of text" in outcome.text


def test_sets_are_nested_sees_tokens_under_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Stream.take

    def wrong(self: Stream, selection: Selection) -> Any:
        after, order = real(self, selection)
        return replace(after, vis_ids=torch.where(after.vis_ids < 0, -1, after.vis_ids + 20)), order

    monkeypatch.setattr(Stream, "take", wrong)
    outcome = dict(checks_of(SoundSelector(), families=[]))["sets_are_nested"].outcome()
    assert "be among what the layer before kept" in outcome.text


def test_every_check_is_seen_to_fail() -> None:
    elsewhere = {"registration_agrees", "text_is_kept", "sets_are_nested"}
    names = {check.name for check in (*CONFIG_CHECKS, *DECIDING_CHECKS, *ANSWER_CHECKS)}
    assert names == {name for name, _, _ in BROKEN} | elsewhere
