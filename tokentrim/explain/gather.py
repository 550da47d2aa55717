"""One question under one strategy, with every decision recorded as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tokentrim.contracts.token_places import IN_ORDER, Cells

if TYPE_CHECKING:
    from tokentrim.config.specs import Structure
    from tokentrim.contracts.strategy import Strategy
    from tokentrim.engine.recording import Decided
    from tokentrim.engine.tokens.trace import Trace
    from tokentrim.loading import Loaded
    from tokentrim.session import Session


@dataclass(frozen=True)
class TokenDecision:
    """One decision. Tokens are raster numbers of the prompt's visual tokens.

    Attributes:
        part: label of the part that decided.
        tokens: those that were there, ascending.
        scores: one per token, higher = better; None where the part has none.
        kept: tokens that went on, or stayed.
    """

    part: str
    tokens: tuple[int, ...]
    scores: tuple[float, ...] | None
    kept: tuple[int, ...]

    @property
    def threshold(self) -> float | None:
        """The lowest kept score, where kept and dropped tokens are exactly those above and below it."""
        if self.scores is None or not self.kept or len(self.kept) == len(self.tokens):
            return None
        chosen = set(self.kept)
        inside = [score for token, score in zip(self.tokens, self.scores, strict=True) if token in chosen]
        outside = [score for token, score in zip(self.tokens, self.scores, strict=True) if token not in chosen]
        lowest = min(inside)
        return lowest if lowest >= max(outside) and math.isfinite(lowest) else None


@dataclass(frozen=True)
class DecidedStage(TokenDecision):
    """One decision of the prefill.

    Attributes:
        boundary: where.
        needs: what the part reads of the model.
        about: what the scores decide, where they do not decide everything.
        into: kept token that each merged token went into; None where the part does not merge.
        made: whether the part put newly computed features in the place of the kept tokens.
    """

    boundary: int
    needs: tuple[str, ...]
    about: str
    into: dict[int, int] | None
    made: bool


@dataclass(frozen=True)
class Eviction(TokenDecision):
    """One decision of one layer at one decode forward, about the entries of its cache.

    Attributes:
        step: decode forward, 1 = the first after prefill.
        layer: decoder layer.
    """

    step: int
    layer: int


@dataclass(frozen=True)
class Explanation:
    """What a strategy did with one question.

    Attributes:
        strategy: its label.
        spec: its configuration.
        answer: the decoded answer.
        words: the generated tokens, one text each.
        n_visual: visual tokens before pruning.
        n_layers: decoder layers.
        cells: where in the pictures the tokens lie.
        stages: decisions of the prefill, in order.
        evictions: decisions of the decode steps, in order.
        held: visual entries that each layer's attention could see, [decode forwards + 1][layers]; row 0 is prefill.
        life: share of (layer, decode forward) pairs in which each visual token could be seen.
        layer_mean_tokens: mean over layers of the visual tokens that the layer processed.
        notes: what the pictures do not show.
        in_order: whether ``cells`` are the tokens in their order, because their places are not known.
    """

    strategy: str
    spec: dict[str, Any]
    answer: str
    words: tuple[str, ...]
    n_visual: int
    n_layers: int
    cells: Cells
    stages: tuple[DecidedStage, ...]
    evictions: tuple[Eviction, ...]
    held: tuple[tuple[int, ...], ...]
    life: tuple[float, ...]
    layer_mean_tokens: float
    notes: tuple[str, ...]
    in_order: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; scores that are no finite number are None."""
        data = asdict(self)
        data["cells"] = self.cells.as_dict()
        for record in (*data["stages"], *data["evictions"]):
            if record["scores"] is not None:
                record["scores"] = [score if math.isfinite(score) else None for score in record["scores"]]
        return data


def explain(
    loaded: Loaded,
    strategy: Strategy,
    inputs: dict[str, Any],
    *,
    max_new_tokens: int = 64,
    structure: Structure = "keep",
    evidence: Callable[..., Any] | None = None,
    n_images: int | None = None,
) -> Explanation:
    """Answer one question under a strategy, and record each of its decisions.

    Args:
        loaded: the model and its processor.
        strategy: what decides, its budget solved.
        inputs: model inputs of one prompt with pictures, where the model is.
        max_new_tokens: longest answer.
        structure: what becomes of line ends.
        evidence: relevance of every visual token, for strategies that read it.
        n_images: pictures of the prompt; None = as many as its tokens say.

    Raises:
        DataError: when the prompt has no picture.
        UnsupportedError, StrategyError, EngineError: as :func:`tokentrim.trim` and ``generate``.
    """
    import torch

    from tokentrim.engine.recording import recording
    from tokentrim.session import trim

    with (
        trim(loaded.model, strategy, structure=structure) as session,
        recording() as records,
        torch.inference_mode(),
    ):
        if evidence is not None:
            session.annotate(evidence=evidence)
        output = loaded.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    tokenizer = loaded.processor.tokenizer
    new: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    trace, cells = session.trace, session.placed(n_images)
    nowhere = [f"{IN_ORDER}: {cells}"] if isinstance(cells, str) else []
    cells = Cells.in_order(trace.n_visual[0]) if isinstance(cells, str) else cells
    seen = [[trace.cached(layer, step).tolist() for layer in range(trace.n_layers)] for step in range(trace.steps + 1)]
    evictions = [one for record in records if record.boundary is None for one in _evictions(record, session.trace)]
    return Explanation(
        strategy=session.strategy.label(),
        spec=session.strategy.spec(),
        answer=tokenizer.decode(new, skip_special_tokens=True).strip(),
        words=tuple(tokenizer.decode([token]).strip() for token in new),
        n_visual=trace.n_visual[0],
        n_layers=trace.n_layers,
        cells=cells,
        stages=tuple(_stage(record) for record in records if record.boundary is not None),
        evictions=tuple(sorted(evictions, key=lambda one: (one.step, one.layer))),
        held=tuple(tuple(len(held) for held in layers) for layers in seen),
        life=_life(seen[1:] or seen, trace.n_visual[0]),
        layer_mean_tokens=session.report().layer_mean_tokens,
        notes=(*nowhere, *_notes(session, cells)),
        in_order=bool(nowhere),
    )


def _stage(record: Decided) -> DecidedStage:
    """A spatial decision of the first row."""
    tokens, scores = _of_first_row(record)
    kept, selection = _kept(record, tokens), record.selection
    into: dict[int, int] | None = None
    if selection is not None and selection.target is not None:
        slots: list[int] = selection.target[0].tolist()
        into = {token: kept[slot] for token, slot in zip(tokens, slots, strict=False) if slot >= 0}
    return DecidedStage(
        part=record.part.label(),
        boundary=record.boundary or 0,
        needs=tuple(sorted(need.value for need in record.part.needed())),
        tokens=tokens,
        scores=scores,
        about=record.about,
        kept=kept,
        into=into,
        made=selection is not None and selection.features is not None,
    )


def _evictions(record: Decided, trace: Trace) -> list[Eviction]:
    """A temporal decision of the first row; or, where the part ranked once, all that followed from it."""
    part, layer, (tokens, scores) = record.part.label(), record.layer or 0, _of_first_row(record)
    if record.selection is not None:
        return [Eviction(part, tokens, scores, _kept(record, tokens), record.step or 0, layer)]
    found: list[Eviction] = []
    ranked = dict(zip(tokens, scores or (), strict=True))
    for step in range(record.step or 0, trace.steps + 1):
        before, after = (tuple(trace.cached(layer, at).tolist()) for at in (step - 1, step))
        if before != after:
            found.append(Eviction(part, before, tuple(ranked[token] for token in before), after, step, layer))
    return found


def _of_first_row(record: Decided) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """(tokens, their scores), ascending."""
    ids: list[int] = record.ids[0].tolist()
    order = sorted((token, slot) for slot, token in enumerate(ids) if token >= 0)
    tokens = tuple(token for token, _ in order)
    if record.scores is None:
        return tokens, None
    scores: list[float] = record.scores[0].tolist()
    return tokens, tuple(scores[slot] for _, slot in order)


def _kept(record: Decided, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens of the first row that a decision keeps."""
    if record.selection is None:
        return tokens
    ids: list[int] = record.ids[0].tolist()
    slots: list[int] = record.selection.kept[0, : record.selection.counts[0]].tolist()
    return tuple(sorted(ids[slot] for slot in slots))


def _life(seen: list[list[list[int]]], n_visual: int) -> tuple[float, ...]:
    """Share of the (layer, forward) pairs of ``seen`` that hold each token."""
    counts = [0] * n_visual
    for layers in seen:
        for held in layers:
            for token in held:
                counts[token] += 1
    pairs = sum(len(layers) for layers in seen)
    return tuple(count / pairs for count in counts)


def _notes(session: Session, cells: Cells) -> tuple[str, ...]:
    """What the pictures of a session do not show."""
    found: list[str] = []
    if session.strategy.attention_part is not None:
        found.append("the strategy also edits attention inside layers, which is no decision about tokens: not drawn")
    lost = sum(plane < 0 for plane in cells.plane)
    if lost:
        found.append(f"{lost} visual tokens lie in no picture (line ends): counted, not drawn")
    return tuple(found)
