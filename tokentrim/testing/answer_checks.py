"""Checks of what comes of a strategy's decisions on a small model: sets, plans and answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor

from tokentrim.contracts.compose import compose
from tokentrim.contracts.knobs import turned
from tokentrim.contracts.sites import StepSite
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.costs import Usage, mean_ratios
from tokentrim.counting.forecast import is_static, plan
from tokentrim.selftest.masked import masked_logits
from tokentrim.selftest.subject import TOLERANCE, changes, deviation, generate
from tokentrim.testing.case import STEPS, Beam, Case, CaseRun, best_beams, subjected
from tokentrim.testing.outcome import STRATEGIES, Skipped, checks, unlike
from tokentrim.testing.subjects import forget_small_models
from tokentrim.testing.supplies import keeping_all

_SCORE: Final = f"{STRATEGIES}#narrow-score"
_SELECT: Final = f"{STRATEGIES}#wide-select"
_SITE: Final = f"{STRATEGIES}#what-a-site-offers"
_STATE: Final = f"{STRATEGIES}#state"
_RESTORED: Final = "docs/concepts.md#what-is-restored"
_ROWS: Final = (0, 1, 2)


def keep_all_is_identity(case: Case) -> None:
    """Where its parameters let it keep everything, logits are those of the untouched model, bit for bit."""
    whole = keeping_all(case.strategy, case.shape, case.n_visual)
    if whole is None or not case.acts or case.given.parts().attention is not None:
        raise Skipped("no end of its parameters' ranges keeps everything")
    run = case.run(*_ROWS, strategy=whole, key="keeping all")
    left = [len(run.trace.cached(case.shape.n_layers - 1, run.trace.steps, row)) for row in _ROWS]
    if left != list(run.trace.n_visual) and not is_static(case.given):
        raise Skipped("its counts depend on the data, and it drops some tokens at any parameters")
    ids, logits = subjected(case.subject).plain(*_ROWS)
    case.require(torch.equal(run.ids, ids) and torch.equal(run.logits, logits), f"keeping everything ({whole.label()})",
                 "change no bit of the logits", f"a difference of {deviation(run.logits, logits):.2g}",
                 hint="a Selection of all tokens must merge and change nothing", see=_SELECT)  # fmt: skip


def drop_is_mask(case: Case) -> None:
    """Dropping gives the logits of the untouched model with the dropped tokens masked, through every decode step."""
    _require_masks(case)
    worst = _against_masks(case, case.run(0), 0)
    case.require(worst <= TOLERANCE, "dropping", f"give the logits of masking, to {TOLERANCE:g} of the largest one",
                 f"{worst:.2g}", hint="a merging strategy declares merges = True", see=_SELECT)  # fmt: skip


def renumbered_drop_is_mask(case: Case) -> None:
    """The same with ``positions: renumber``: contiguous positions in every layer that lacks a token."""
    _require_masks(case)
    strategy = _renumbered(case.strategy)
    if strategy is None:
        raise Skipped("it has no parameter 'positions'")
    worst = _against_masks(case, case.run(0, strategy=strategy, key="renumbered"), 0, renumber=True)
    case.require(worst <= TOLERANCE, "dropping with renumbered positions",
                 f"give the logits of masking, to {TOLERANCE:g} of the largest one", f"{worst:.2g}",
                 see="docs/concepts.md#positions")  # fmt: skip


def row_in_batch_is_row_alone(case: Case) -> None:
    """A row of a padded batch keeps the tokens, and gives the answer, of the row alone."""
    together = case.run(*_ROWS)
    for row in _ROWS:
        _same_row(case, together, row, case.run(row))


def _same_row(case: Case, together: CaseRun, row: int, alone: CaseRun) -> None:
    pictured = alone.trace.n_visual != (0,)  # nothing is recorded of a prompt without pictures
    for layer in range(alone.trace.n_layers if pictured else 0):
        for step in range(alone.trace.steps + 1):
            ours, own = together.trace.cached(layer, step, row), alone.trace.cached(layer, step)
            when = f"at step {step}" if step else "at prefill"
            wanted, got = unlike(own.tolist(), ours.tolist())
            case.require(torch.equal(ours, own), f"row {row} of a batch (layer {layer}, {when})",
                         f"keep what the row keeps alone ({wanted})", got,
                         hint="rows are padded: use site.valid and site.n_visual, and never mix rows",
                         see=_SITE)  # fmt: skip
    worst = deviation(together.logits[row], alone.logits[0])
    same = worst <= TOLERANCE and torch.equal(together.ids[row], alone.ids[0])
    case.require(same, f"row {row} of a batch", "give the answer of the row alone", f"logits {worst:.2g} apart",
                 hint="rows are padded: use site.valid, and never mix rows", see=_SITE)  # fmt: skip


def beams_in_batch_are_beams_alone(case: Case) -> None:
    """Beam search over a batch finds the beams of each row alone; a state that holds rows can follow them."""
    for one in case.seen():
        held = one.site.state
        by_row = [name for name, value in _attributes(held) if value.shape[:1] == (len(_ROWS),)]
        what = f"the state of begin(), which holds rows ({', '.join(by_row)}) at {one.where},"
        follows = not isinstance(one.site, StepSite) or hasattr(held, "select_rows")
        case.require(follows or not by_row, what, "have a method select_rows(index)", type(held),
                     hint="beams change places between decode steps", see=_STATE)  # fmt: skip
    found = _beams(case, *_ROWS)
    for row in _ROWS:
        (own,) = _beams(case, row)
        case.require(found[row].is_like(own), f"the best of two beams of row {row} of a batch",
                     f"be that of the row alone, {own}", str(found[row]), see=_STATE)  # fmt: skip


def _attributes(state: Any) -> list[tuple[str, Tensor]]:
    """Tensors of a state object, by name."""
    values: Any = state if isinstance(state, dict) else getattr(state, "__dict__", {})
    return [(str(name), value) for name, value in values.items() if isinstance(value, Tensor)]


def _beams(case: Case, *rows: int) -> list[Beam]:
    inputs = case.subject.prompt(*rows)
    with case.session(inputs=inputs):
        return best_beams(case.subject.model, inputs)


def sets_are_nested(case: Case) -> None:
    """What a layer keeps was kept by the layer before, and what it sees of its cache a step earlier; ascending.

    Where nothing leaves the cache, what it sees was kept by the prefill.
    """
    trace = case.run(*_ROWS).trace
    for row in _ROWS:
        sets = [torch.arange(trace.n_visual[row]), *(trace.kept(layer, row) for layer in range(trace.n_layers))]
        for layer, (before, now) in enumerate(pairwise(sets)):
            _require_nested(case, before, now, f"layer {layer} of row {row}", "the layer before")
        for layer in range(trace.n_layers):
            held = [trace.cached(layer, step, row) for step in range(trace.steps + 1)]
            for step, (before, now) in enumerate(pairwise(held), start=1):
                where = f"the cache of layer {layer}, row {row}, step {step}"
                if trace.evicts:
                    _require_nested(case, before, now, where, "the step before")
                else:
                    _require_nested(case, held[0], now, where, "the prefill")


def _require_nested(case: Case, before: Tensor, now: Tensor, where: str, earlier: str) -> None:
    case.require(torch.equal(now, now.unique()), f"what is kept in {where}", "be ascending and unique", now.tolist(),
                 see=_SELECT)  # fmt: skip
    new = now[~torch.isin(now, before)]
    case.require(not len(new), f"what is kept in {where}", f"be among what {earlier} kept", f"{new.tolist()} besides",
                 hint="a dropped token cannot return: return indices of the current tokens", see=_SELECT)  # fmt: skip


def text_is_kept(case: Case) -> None:
    """Every layer's cache ends with all text, all new tokens, and of the picture what the trace says."""
    run = case.run(0)
    ids = run.inputs["input_ids"]
    text = ids.shape[1] - case.n_visual
    for layer, (stored, logical, _) in enumerate(run.held):
        stays = run.trace.cached(layer, run.trace.steps if run.trace.evicts else 0)
        expected = text + len(stays) + STEPS - 1
        parts = f"all {text} of text, {STEPS - 1} new ones, and what the trace keeps of the picture"
        case.require(stored == expected, f"the cache of layer {layer}", f"store {expected} entries: {parts}", stored,
                     see=_SELECT)  # fmt: skip
        length = ids.shape[1] + STEPS - 1
        case.require(logical in (length, stored), f"the length that generate sees in layer {layer}", f"be {length}",
                     logical, see=_SELECT)  # fmt: skip


def plan_is_met(case: Case) -> None:
    """``plan()`` says beforehand what the report says afterwards: exactly, or as upper bounds if counts are data's."""
    run = case.run(*_ROWS)
    strategy, trace, static = case.strategy, run.trace, is_static(case.given)
    usages: list[Usage] = []
    for row in (0, 1):
        n, n_text = trace.n_visual[row], _text_tokens(case, row)
        usage = plan(strategy, case.shape, n, n_text, STEPS).usage
        usages.append(usage)
        for layer in range(trace.n_layers):
            counts = [len(trace.cached(layer, step, row)) for step in range(trace.steps + 1)]
            planned = [usage.layer_tokens[layer], *(seen[layer] for seen in usage.seen or usage.cached)]
            fits = counts == planned if static else all(a <= b for a, b in zip(counts, planned, strict=True))
            word = "be as planned" if static else "lie within the plan"
            case.require(fits, f"the tokens of layer {layer}, row {row} ({n} visual tokens), by step",
                         f"{word}, {planned}", counts, hint="schedule() and count() must say what will be kept; if "
                         "that depends on the data, declare count_is_static = False and give upper bounds",
                         see=_SCORE)  # fmt: skip
    if not static:
        return
    alone = case.run(0)
    held = sum(size for _, _, size in alone.held)
    case.require(alone.report.kv_end_bytes == held, "the report's bytes of the cache", f"be what it holds, {held}",
                 alone.report.kv_end_bytes, see=_SCORE)  # fmt: skip
    report = run.report.to_dict()
    for name, value in mean_ratios(usages).items():
        case.require(report[name] == value, f"{name} of the report", f"be the plan's {value}", report[name], see=_SCORE)


def _text_tokens(case: Case, row: int) -> int:
    inputs = case.subject.prompt(row)
    return int(inputs["input_ids"].shape[1] - case.subject.visual(inputs).sum())


def first_token_is_the_spatial_parts(case: Case) -> None:
    """A temporal part has no say in the first new token; a strategy of the decode stage leaves it as unpruned."""
    if case.given.temporal_part is None:
        raise Skipped("it has no temporal part")
    found = case.run(*_ROWS).logits[:, 0]
    if case.given.stage == "decode":
        expected = subjected(case.subject).plain(*_ROWS)[1][:, 0]
        what = "the untouched model"
    else:
        spatial = compose(case.strategy.spatial_parts)
        expected = case.run(*_ROWS, strategy=spatial, key="spatial parts").logits[:, 0]
        what = "its spatial parts alone"
    case.require(torch.equal(found, expected), "the first new token", f"have the logits of {what}",
                 f"a difference of {deviation(found, expected):.2g}",
                 hint="a temporal strategy decides at decode steps alone", see=_SCORE)  # fmt: skip


def model_is_restored(case: Case) -> None:
    """After the context, also after an exception inside, the model is as before: hooks, settings, weights, answers."""
    case.run(0)
    subject = case.subject
    inputs = subject.prompt(0)
    ids, logits = subjected(subject).plain(0)
    before = subjected(subject).state
    for fails in (False, True):
        how = "an exception inside the context" if fails else "the context"
        try:
            with case.session(inputs=inputs):
                generate(subject.model, inputs, STEPS)
                if fails:
                    raise KeyError("the caller's own")
        except KeyError:
            pass
        changed = changes(subject.model, before)
        if changed:
            forget_small_models()  # others are checked on fresh ones
        case.require(not changed, f"the model after {how}", "be as it was before", f"changes in {changed[:3]}",
                     hint="a strategy never touches the model", see=_RESTORED)  # fmt: skip
        found = generate(subject.model, inputs, STEPS)
        case.require(torch.equal(found[0], ids) and torch.equal(found[1], logits), f"the answer after {how}",
                     "be the untouched model's", f"a difference of {deviation(found[1], logits):.2g}",
                     hint="a strategy writes into no tensor that is not its own",
                     see=_RESTORED)  # fmt: skip


def _require_masks(case: Case) -> None:
    if not case.acts:
        raise Skipped("it keeps everything")
    if case.edits_values:
        raise Skipped("it merges tokens or edits attention, which no mask expresses")


def _against_masks(case: Case, run: CaseRun, row: int, *, renumber: bool = False) -> float:
    """Largest deviation of a run of one row from the untouched model under its masks."""
    subject = case.subject
    inputs = subject.prompt(row)
    visual = subject.visual(inputs)
    expected = masked_logits(
        subject.model,
        subject.layout,
        inputs,
        run.ids[0][:-1],
        run.trace,
        visual=visual,
        mutual=subject.mutual(inputs),
        renumber=renumber,
    )
    return deviation(run.logits[0], expected[len(visual) - 1 :])


def _renumbered(strategy: Strategy) -> Strategy | None:
    """The strategy with renumbered positions, where it has spatial parts that can."""
    if "positions" in type(strategy).model_fields:
        return turned(strategy, "positions", "renumber", strategy.label())
    parts = strategy.parts()
    if not parts.spatial:
        return None
    changed = tuple(turned(part, "positions", "renumber", part.label()) for part in parts.spatial)
    return compose(changed, parts.temporal)


ANSWER_CHECKS: Final = checks(
    keep_all_is_identity,
    drop_is_mask,
    renumbered_drop_is_mask,
    row_in_batch_is_row_alone,
    beams_in_batch_are_beams_alone,
    sets_are_nested,
    text_is_kept,
    plan_is_met,
    first_token_is_the_spatial_parts,
    model_is_restored,
)
