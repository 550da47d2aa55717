"""Checks of what a strategy does when it is asked to decide, on a small model."""

from __future__ import annotations

import copy
import random
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tokentrim.contracts.compose import compose
from tokentrim.contracts.sites import Need
from tokentrim.counting.forecast import is_static
from tokentrim.counting.schedule import Schedule
from tokentrim.errors import StrategyError, TokentrimError, UnsupportedError
from tokentrim.selftest.probes import Scatter
from tokentrim.selftest.subject import deviation, generate
from tokentrim.testing.case import STEPS, Case, subjected
from tokentrim.testing.outcome import STRATEGIES, Failed, Skipped, checks
from tokentrim.testing.supplies import sparsest
from tokentrim.testing.watching import ATTENTION, SeenCall, more_of, rank

_SCORE: Final = f"{STRATEGIES}#narrow-score"
_SITE: Final = f"{STRATEGIES}#what-a-site-offers"
_STATE: Final = f"{STRATEGIES}#state"
_RANDOM: Final = f"{STRATEGIES}#randomness"
_ROWS: Final = (0, 1, 2)
_PROBED_TOKENS: Final = 3
_MORE: Final = 8.0


def runs(case: Case) -> None:
    """It runs on a small model: a padded batch of prompts with one picture, none, and two."""
    made = case.attempt(*_ROWS)
    if isinstance(made, (UnsupportedError, StrategyError)) and _refused(case):
        case.require(False, f"a small model of {case.shape.n_layers} layers and {case.n_visual} visual tokens",
                     "be served, for anything to be checked", str(made),
                     hint="pass parameters that fit it, or families=[...]")  # fmt: skip
    if isinstance(made, Exception):
        what = "" if isinstance(made, TokentrimError) else f"{type(made).__name__}: "
        raise Failed(f"{case.whom} must run on a small model; got {what}{made} "
                     f"See {STRATEGIES}#errors.") from made  # fmt: skip


def _refused(case: Case) -> bool:
    try:
        case.require_served()
    except Skipped:
        return True
    return False


def prunes(case: Case) -> None:
    """It drops something: a strategy that keeps all tells the other checks nothing."""
    if not case.acts:
        raise Skipped("it has no parts, and so keeps everything")
    run = case.run(0)
    if case.given.parts().attention is not None:
        case.require(deviation(run.logits, subjected(case.subject).plain(0)[1]) > 0, "the edit of attention",
                     "change the answer", see=f"{STRATEGIES}#a-guide-and-editing-attention")  # fmt: skip
        return
    last = case.shape.n_layers - 1
    left = min(len(run.trace.cached(layer, run.trace.steps)) for layer in range(last + 1))
    changes = any(part.merges for part in case.given.spatial_parts) and not torch.equal(
        run.logits, subjected(case.subject).plain(0)[1]
    )
    case.require(left < case.n_visual or changes, "what is left of the picture",
                 f"be fewer than its {case.n_visual} tokens in some layer within {STEPS} new tokens", left,
                 hint="check it with parameters at which it prunes a small model", see=_SCORE)  # fmt: skip


def needs_are_read(case: Case) -> None:
    """What ``needed()`` asks for is read at some site: everything else is computed for nothing."""
    for part in (*case.strategy.spatial_parts, *_listed(case.strategy.temporal_part)):
        seen = [one for one in case.seen() if type(one.part) is type(part)]
        if not seen:
            raise Skipped("it was never asked to decide")
        unread = part.needed() - set[Need]().union(*(one.read for one in seen))
        # Boundary 0 has no layer before it; a strategy that acts there as well may leave such needs unread.
        case.require(not unread, "needed()", "ask for what is read", sorted(need.value for need in unread),
                     hint="take it out, or narrow needed() to this configuration", see=_SITE)  # fmt: skip


def inputs_are_unchanged(case: Case) -> None:
    """It writes into none of the tensors that a site gives it."""
    for one in case.seen():
        case.require(not one.changed, f"the tensors of a site (at {one.where})", "be left as they are", one.changed,
                     hint="copy before you write: x.clone(), or operators without a trailing underscore",
                     see=_SITE)  # fmt: skip


def more_attention_never_scores_lower(case: Case) -> None:
    """Where a scorer reads attention alone, a token that gets more of it, all else equal, does not fall in rank."""
    asked: list[str] = []
    fallen: list[tuple[str, int, int]] = []

    def look(seen: SeenCall, ask: Any) -> None:
        reads = seen.read - {Need.GRID}
        if seen.scores is None or not reads or not reads <= ATTENTION or not asks_plainly(seen):
            return
        asked.append(seen.where)
        scores = seen.scores[0].clone()
        n = seen.site.n_visual[0]
        for token in torch.linspace(0, n - 1, min(n, _PROBED_TOKENS)).long().tolist():
            more: Tensor = ask(more_of(seen.site, 0, token, _MORE))[0]
            before, after = rank(scores[:n], token), rank(more[:n], token)
            if after > before:
                fallen.append((seen.where, before, after))

    case.run(*_ROWS)
    case.watch(look)
    if not asked:
        raise Skipped("it is no scorer that reads attention alone")
    for where, before, after in fallen:
        case.require(False, f"the rank of a token that gets {_MORE:g} times the attention (at {where})",
                     f"not fall below {before} (0 = kept first)", after,
                     hint="higher = kept: is a sign missing? If less attention is meant to be kept, list this check "
                     "in expected_failures with that reason", see=_SCORE)  # fmt: skip


def asks_plainly(seen: SeenCall) -> bool:
    """Whether asking again changes nothing: there is no state, which the second question could disturb."""
    return seen.site.state is None and bool(seen.site.n_visual) and seen.site.n_visual[0] > 1


def nothing_is_remembered(case: Case) -> None:
    """One object decides the same for a prompt, whatever other prompts came before it."""
    strategy, first = case.strategy, case.run(0)
    for row in (1, 0):
        again = case.fresh(row, strategy=strategy)
    same = again.trace.rows_equal(first.trace) and torch.equal(again.logits, first.logits)
    case.require(same, "a prompt", "be decided alike when it comes again after another one",
                 f"logits {deviation(again.logits, first.logits):.2g} apart",
                 hint="keep nothing on the object or in globals: what a prompt must remember is what begin() returns",
                 see=_STATE)  # fmt: skip


def global_randomness_is_untouched(case: Case) -> None:
    """It neither draws from the global generators of torch, numpy and Python, nor depends on them."""
    first = case.run(0)
    with torch.random.fork_rng(devices=[]):
        held = (random.getstate(), np.random.get_state())
        try:
            torch.manual_seed(20_011)
            random.seed(20_011)
            np.random.seed(20_011)
            before = _generators()
            again = case.fresh(0)
            after = _generators()
        finally:
            random.setstate(held[0])
            np.random.set_state(held[1])
    drawn = [name for name in before if before[name] != after[name]]
    hint = "declare Need.RANDOM and call site.random(seed, salt=...)"
    case.require(not drawn, "the global generators", "not be drawn from", drawn, hint=hint, see=_RANDOM)
    case.require(again.trace.rows_equal(first.trace), "what is kept", "not depend on the global seed", hint=hint,
                 see=_RANDOM)  # fmt: skip


def _generators() -> dict[str, str]:
    return {
        "torch": str(torch.random.get_rng_state().sum()) + str(torch.random.get_rng_state()[:64].tolist()),
        "random": str(hash(random.getstate())),
        "numpy": str(np.random.get_state()),
    }


def few_tokens_are_enough(case: Case) -> None:
    """It also decides where an earlier part left one or two tokens, its budget knob (if any) turned to the least."""
    parts = sparsest(case.strategy, case.shape, case.n_visual).parts()
    if not parts.spatial or parts.attention is not None:
        raise Skipped("no other part can act before it")
    case.run(0)
    for left in (1, 2):
        first = _First(left=left, positions=parts.spatial[0].positions)
        both = compose((first, compose(parts.spatial)), parts.temporal)
        try:
            run = case.fresh(0, strategy=both)
        except Exception as error:  # a stranger's strategy may raise anything
            case.require(False, f"a picture of which {left} tokens are left", "be decided on",
                         f"{type(error).__name__}: {error}", hint="N may be as small as 1", see=_SITE)  # fmt: skip
            raise
        kept = len(run.trace.kept(case.shape.n_layers - 1))
        case.require(kept <= left, f"a picture of which {left} tokens are left", "keep no more", kept, see=_SITE)


class _First(Scatter):
    """Leaves ``left`` tokens at the input."""

    shares: dict[int, float] = {}  # noqa: RUF012  # a pydantic default
    left: int

    def schedule(self, shape: Any, n_visual: int) -> Schedule:
        return Schedule.of({0: min(self.left, n_visual)})


def runs_in_half_precision(case: Case) -> None:
    """It decides on a bfloat16 model, and keeps as many tokens as in float32."""
    expected = case.run(0).trace
    model = copy.deepcopy(case.subject.model).to(torch.bfloat16)
    inputs = {
        name: value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in case.subject.prompt(0).items()
    }
    with case.session(inputs=inputs, model=model) as session:
        try:
            generate(model, inputs, STEPS)
        except Exception as error:  # a stranger's strategy may raise anything
            case.require(False, "a bfloat16 model", "be decided on", f"{type(error).__name__}: {error}",
                         hint="compute scores in float32: x.float()", see=_SCORE)  # fmt: skip
            raise
        trace = session.trace
    if not is_static(case.given):
        return
    for layer in range(trace.n_layers):
        counts = [len(one.cached(layer, one.steps)) for one in (trace, expected)]
        case.require(counts[0] == counts[1], f"layer {layer} of a bfloat16 model", f"keep {counts[1]} tokens",
                     counts[0], see=_SCORE)  # fmt: skip


def _listed(part: Any) -> tuple[Any, ...]:
    return () if part is None else (part,)


DECIDING_CHECKS: Final = checks(
    runs,
    prunes,
    needs_are_read,
    inputs_are_unchanged,
    more_attention_never_scores_lower,
    nothing_is_remembered,
    global_randomness_is_untouched,
    few_tokens_are_enough,
    runs_in_half_precision,
)
