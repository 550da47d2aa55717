"""Strategies that answer nonsense are refused by name, or run right; the model is as before either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.models import prompt, tiny_llava
from tokentrim import (
    GuideRequest,
    LayerSite,
    Need,
    Parts,
    Schedule,
    Selection,
    SpatialScorer,
    SpatialSelector,
    StepSite,
    Strategy,
    TemporalScorer,
    TemporalSelector,
    TokentrimError,
    top_selection,
    trim,
)
from tokentrim.selftest.subject import changes, state

BATCHES = (
    ([3, "image", 5],),
    ([3, "image", 5], [2, "image", 4]),
    ([3, "image", 5], [2, "image", "image", 4], [7]),
)
WIDTH = 64


class KeepHalf(SpatialScorer):
    """Keep the last half, asking for whatever has to be chosen."""

    name: ClassVar[str] = "told"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.WINDOW_ROWS, Need.VISION_ROWS})

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({1: n_visual // 2})

    def score(self, site: LayerSite) -> Tensor:
        return site.ids + 0 * (site.window_rows[0].sum((1, 2)) + site.vision_rows.sum((1, 2)))


class SelectHalf(SpatialSelector):
    """The same, and may merge."""

    name: ClassVar[str] = "told"
    merges: ClassVar[bool] = True

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({1: n_visual // 2})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        return top_selection(site.ids, tuple(count.tolist()), site.n_visual)


class FadeHalf(TemporalScorer):
    """Forget the first half."""

    name: ClassVar[str] = "told"

    def count(self, step: int, layer: int, n_prefill: int, shape: Any) -> int:
        return n_prefill // 2

    def score(self, site: StepSite) -> Tensor:
        return site.ids


class ForgetHalf(TemporalSelector):
    """The same, chosen."""

    name: ClassVar[str] = "told"

    def count(self, step: int, layer: int, n_prefill: int, shape: Any) -> int:
        return n_prefill // 2

    def select(self, site: StepSite, count: Tensor) -> Selection:
        return top_selection(site.ids, tuple(count.tolist()), site.n_visual)


def told(base: type[Strategy], method: str, answer: Callable[..., Any]) -> Any:
    """``base`` with another answer to one question."""
    return type("Told", (base,), {method: lambda self, *asked: answer(*asked), "__module__": __name__})()


@cache
def _model() -> tuple[Any, dict[str, Any]]:
    model = tiny_llava(side=3, layers=2)
    model.generate(**prompt(model, *BATCHES[2]), max_new_tokens=1)  # transformers makes hooks of its own at first
    return model, state(model)


def refusal(strategy: Any, rows: tuple[Any, ...]) -> tuple[TokentrimError | None, Any]:
    """(why a strategy is refused, None) or (None, the trace of its run); the model is as before either way."""
    model, before = _model()
    inputs = prompt(model, *rows)
    try:
        with trim(model, strategy) as session:
            model.generate(**inputs, max_new_tokens=3, do_sample=False)
            session.report()
            return None, session.trace
    except TokentrimError as error:
        return error, None
    finally:
        assert not changes(model, before)


def _raise(error: type[Exception]) -> Any:
    raise error("as told")


RAISED = (RuntimeError, KeyError, StopIteration, AttributeError, ZeroDivisionError)
NONSENSE: tuple[Any, ...] = (
    None, "text", "", b"", 3.5, float("nan"), True, -1, 0, 4, 10**30, 1j, (), (1,), [], {}, {"a": 1}, object(), int,
    torch.tensor(3), torch.ones(2, 2), (None,), ("x",), (0.5,), frozenset({"last-row"}), frozenset(), Parts((None,)),  # type: ignore[arg-type]
    Parts(temporal=KeepHalf()), Schedule(), GuideRequest("no such model"), Selection(None, None), lambda: 3,  # type: ignore[arg-type]
)  # fmt: skip
WHOLE: Callable[[Any], bool] = lambda value: type(value) is int  # noqa: E731
FITS: dict[str, Callable[[Any], bool]] = {
    "count": lambda value: WHOLE(value) and value >= 0,
    "schedule": lambda value: isinstance(value, Schedule),
    "label": lambda value: isinstance(value, str) and value != "",
    "needed": lambda value: value == frozenset(),
    "parts": lambda value: False,
    "ranks_once": lambda value: value is True,
    "wants_vision_blocks": lambda value: isinstance(value, tuple) and all(map(WHOLE, value)),
    "wants_window": lambda value: WHOLE(value) and 0 < value <= 65536,
    "wants_guide": lambda value: isinstance(value, GuideRequest | None),
    "begin": lambda value: True,
    "prepare": lambda value: True,
    "meet": lambda value: True,
}
ASKED = {
    KeepHalf: sorted(FITS.keys() - {"count", "ranks_once"}),
    SelectHalf: ["schedule", "begin", "parts"],
    FadeHalf: ["count", "ranks_once", "begin", "prepare", "needed", "label", "parts"],
    ForgetHalf: ["count"],
}
QUESTIONS = [(base, method) for base, methods in ASKED.items() for method in methods]


@st.composite
def answers(draw: Any) -> tuple[Any, Callable[[], bool]]:
    """A strategy with one odd answer, and whether the answer fits."""
    base, method = draw(st.sampled_from(QUESTIONS))
    if draw(st.integers(0, 3)) == 0:
        error = draw(st.sampled_from(RAISED))
        return told(base, method, lambda *_: _raise(error)), lambda: False
    value = draw(st.sampled_from(NONSENSE))
    return told(base, method, lambda *_: value), lambda: FITS[method](value)


ODD = (float("nan"), float("inf"), float("-inf"), 0.0, 1.0)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.uint8, torch.bool, torch.complex64)


@st.composite
def scores(draw: Any) -> tuple[Any, Callable[[], bool], list[Any]]:
    """A scorer with odd scores, whether they fit, and what it has given."""
    base = draw(st.sampled_from([KeepHalf, FadeHalf]))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    odd = draw(st.lists(st.sampled_from(ODD), max_size=3))
    form = draw(st.sampled_from([*["right"] * 8, "narrow", "flat", "deep", "list", "none", "meta", "grad", "sparse"]))
    seen: list[Any] = []

    def give(site: Any) -> Any:
        noise = torch.Generator().manual_seed(seed)
        made = torch.randint(-3, 4, site.ids.shape, generator=noise).float()
        for number, value in enumerate(odd):
            made[-1 - number % len(made), (seed + number) % made.shape[1]] = value
        if dtype is not torch.float32:
            made = (made if dtype.is_floating_point else made.nan_to_num(0, 9, -9)).to(dtype)
        # Padding may hold anything.
        given = made.masked_fill(~site.valid, float("nan")) if dtype.is_floating_point else made
        seen.append((site, made))
        forms = {"narrow": given[:, 1:], "flat": given[0], "deep": given[..., None], "meta": given.to("meta")}
        forms |= {"list": given.tolist(), "none": None}
        if form == "grad":
            return given.requires_grad_() if dtype.is_floating_point else given
        return given.to_sparse() if form == "sparse" else forms.get(form, given)

    def fits() -> bool:
        numbers = not any(made[row, :n].isnan().any() for site, made in seen for row, n in enumerate(site.n_visual))
        return form in ("right", "grad") and dtype is not torch.complex64 and numbers

    return told(base, "score", give), fits, seen


SPOILS: dict[str, Callable[[Selection, Any], Any]] = {
    "nothing": lambda right, site: right,
    "kept twice": lambda right, site: replace(right, kept=right.kept.clamp(max=2)),
    "backwards": lambda right, site: replace(right, kept=right.kept.flip(1)),
    "negative": lambda right, site: replace(right, kept=right.kept - 7),
    "beyond": lambda right, site: replace(right, kept=right.kept + 5),
    "far beyond": lambda right, site: replace(right, kept=right.kept * 10**9),
    "int32": lambda right, site: replace(right, kept=right.kept.int()),
    "floats": lambda right, site: replace(right, kept=right.kept.float()),
    "flat": lambda right, site: replace(right, kept=right.kept[0]),
    "narrow": lambda right, site: replace(right, kept=right.kept[:, 1:]),
    "wider": lambda right, site: replace(right, kept=torch.cat([right.kept, right.kept], dim=1)),
    "meta": lambda right, site: replace(right, kept=right.kept.to("meta")),
    "a list": lambda right, site: replace(right, kept=right.kept.tolist()),
    "counts in a list": lambda right, site: replace(right, counts=list(right.counts)),
    "counts in a tensor": lambda right, site: replace(right, counts=torch.tensor(right.counts)),
    "too few": lambda right, site: replace(right, counts=tuple(n - 1 for n in right.counts)),
    "too many": lambda right, site: replace(right, counts=tuple(n + 1 for n in right.counts)),
    "text": lambda right, site: "kept",
    "none": lambda right, site: None,
    "the kept alone": lambda right, site: right.kept,
    "gone": lambda right, site: replace(right, gone=right.kept + 10**9),
    "doubtful": lambda right, site: replace(right, doubtful="perhaps"),
    "reduce": lambda right, site: replace(right, reduce="max"),
    "a weight alone": lambda right, site: replace(right, weight=torch.ones(site.ids.shape)),
}
MERGES: dict[str, Callable[[Selection, Tensor, Any], Any]] = {
    "itself": lambda right, own, site: replace(right, target=own),
    "sum": lambda right, own, site: replace(right, target=own, reduce="sum", weight=-torch.ones(site.ids.shape)),
    "to others": lambda right, own, site: replace(right, target=own.flip(1)),
    "beyond": lambda right, own, site: replace(right, target=own + 10**9),
    "negative": lambda right, own, site: replace(right, target=own - 5),
    "floats": lambda right, own, site: replace(right, target=own.float()),
    "narrow": lambda right, own, site: replace(right, target=own[:, 1:]),
    "whole weights": lambda right, own, site: replace(right, target=own, weight=torch.ones_like(own)),
    "NaN weights": lambda right, own, site: replace(right, target=own, weight=own / 0),
    "no weights": lambda right, own, site: replace(right, target=own, weight=torch.zeros(site.ids.shape)),
    "complex weights": lambda right, own, site: replace(right, target=own, weight=own * 1j),
    "features": lambda right, own, site: replace(right, features=torch.ones(*right.kept.shape, WIDTH)),
    "half features": lambda right, own, site: replace(right, features=torch.ones(*right.kept.shape, WIDTH).half()),
    "wide features": lambda right, own, site: replace(right, features=torch.ones(*right.kept.shape, WIDTH + 1)),
    "few features": lambda right, own, site: replace(right, features=torch.ones(len(own), 1, WIDTH)),
    "NaN features": lambda right, own, site: replace(right, features=torch.ones(*right.kept.shape, WIDTH) / 0 * 0),
    "complex features": lambda right, own, site: replace(right, features=torch.ones(*right.kept.shape, WIDTH) * 1j),
}  # fmt: skip
SOUND = {"nothing", "wider", "gone", "itself", "sum", "whole weights", "features", "half features"}


@st.composite
def selections(draw: Any) -> tuple[Any, Callable[[], bool], list[Any]]:
    """A selector with an odd Selection, whether it fits, and what a sound one keeps."""
    base = draw(st.sampled_from([SelectHalf, ForgetHalf]))
    spoil = draw(st.sampled_from(sorted(SPOILS)))
    merge = draw(st.sampled_from(sorted(MERGES))) if base is SelectHalf and spoil == "nothing" else None
    seen: list[Any] = []

    def give(site: Any, count: Tensor) -> Any:
        right = top_selection(site.ids, tuple(count.tolist()), site.n_visual)
        seen.append((site, site.ids.clone()))
        if merge is None:
            return SPOILS[spoil](right, site)
        own = torch.full_like(site.ids, -1)
        for row, n in enumerate(right.counts):
            own[row, right.kept[row, :n]] = torch.arange(n)
        return MERGES[merge](right, own, site)

    def fits() -> bool:
        return (spoil if merge is None else merge) in SOUND

    return told(base, "select", give), fits, seen


def _kept(seen: list[Any], trace: Any, row: int) -> Iterator[tuple[list[int], list[int]]]:
    """(what should be left, what is) after each first decision."""
    for site, made in seen:
        if getattr(site, "step", 1) > 1 or not site.n_visual[row]:
            continue
        n = site.n_visual[row]
        numbers = made[row, :n].tolist()
        best = sorted(range(n), key=lambda i, numbers=numbers: (-numbers[i], i))[: n // 2]
        left = trace.kept(1, row) if isinstance(site, LayerSite) else trace.cached(site.layer, 1, row)
        yield sorted(best), left.tolist()


SOME = settings(max_examples=50, deadline=None, derandomize=True, database=None)


@SOME
@given(answers(), st.sampled_from(BATCHES))
def test_an_odd_answer_is_refused_by_name(case: Any, rows: Any) -> None:
    strategy, fits = case
    error, _ = refusal(strategy, rows)
    assert error is not None or fits()
    assert error is None or "told" in str(error).lower() or fits(), error


@SOME
@given(st.one_of(scores(), selections()), st.sampled_from(BATCHES))
def test_a_decision_is_refused_exactly_when_it_is_wrong_and_else_taken(case: Any, rows: Any) -> None:
    strategy, fits, seen = case
    error, trace = refusal(strategy, rows)
    assert (error is None) == fits(), error
    if error is not None:
        assert "'told' at " in str(error)
        return
    for row in range(len(rows)):
        for wanted, left in _kept(seen, trace, row):
            assert left == wanted
