"""Costs: what a run costs in tokens, FLOPs and cache bytes, computed from shapes alone.

The same arithmetic serves ``plan`` (counts known from configuration) and the engine (counts measured), so a
planned and a measured cost can be compared number by number. Nothing here needs torch: torch's own FLOP counter
misses fused attention on CPU, and a formula can be checked by hand.

Symbols: L layers, d model width, m feed-forward width, H and H_kv query and key/value heads, h head width, n
tokens that a layer processes (visual and text). 1 MAC = one multiply-add = 2 FLOPs. Attention is counted over
the full n x n square, causal or not, as published tables do.

Two conventions, never mixed:

* **field** (the column that papers print as "Flops"): MACs per layer, ``4nd^2 + 2n^2d + 2ndm``: square
  projections, a feed-forward part of two matrices, prefill of the language model only, averaged over layers.
* **physical**: FLOPs of the matrices that are there: ``2 (2nd(Hh + H_kv h) + 2n^2 Hh + f ndm)`` per layer, with
  f = 3 for a gated feed-forward part.

Definitions of what is reported, all for one sample (aggregates are means over samples):

* ``layer_mean_tokens``: mean over layers of the visual tokens that the layer processed in prefill.
* ``layer_mean_ratio``: the same, as a share of the prompt's visual tokens.
* ``kv_peak_ratio``: visual cache entries at the end of prefill, as a share of the unpruned run's.
* ``kv_mean_ratio``: the same, mean over decode forwards 1..S; with S = 0 the peak.
* ``kv_end_ratio``: the same, in the last decode forward; with S = 0 the peak.
* ``kv_read_ratio``: like ``kv_mean_ratio``, of the entries that attention saw: fewer than those in memory where a
  temporal part leaves in the cache what it does not choose.
* ``kv_total_mean_ratio``: like ``kv_mean_ratio``, with text and generated entries counted on both sides.
* ``flops_ratio``: prefill FLOPs of the decoder layers, physical convention, as a share of the unpruned run's.
* ``flops_ratio_field``: the same in the field's convention.

A layer caches exactly the tokens that it processed, so the entries at the end of prefill are ``layer_tokens``.
Decode forward s (1, 2, ...) feeds generated token s and attends to s generated entries, itself included; S
forwards produce S + 1 new tokens, because the first comes from prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import fsum

from tokentrim.counting.shape import ModelShape
from tokentrim.errors import EngineError, complaint


def field_macs(n: int, shape: ModelShape) -> int:
    """MACs of one decoder layer over ``n`` tokens in the field's convention: ``4nd^2 + 2n^2d + 2ndm``."""
    d, m = shape.hidden_size, shape.intermediate_size
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m


def physical_flops(n_query: int, n_keys: int, shape: ModelShape) -> int:
    """FLOPs of one decoder layer: ``n_query`` tokens run through it and attend to ``n_keys`` entries each.

    ``2 (n_q (2dHh + 2dH_kv h) + 2 n_q n_k Hh + f n_q d m)``: Q and output projections at H heads, K and V at
    H_kv heads, QK^T and AV, then f feed-forward matrices. Prefill has ``n_query = n_keys``, a decode forward one
    query.
    """
    d = shape.hidden_size
    queries, cached = shape.attention_width, shape.n_kv_heads * shape.head_dim
    projections = n_query * d * 2 * (queries + cached)
    attention = 2 * n_query * n_keys * queries
    feed_forward = shape.ffn_matrices * n_query * d * shape.intermediate_size
    return 2 * (projections + attention + feed_forward)


def prefill_flops(layer_totals: Sequence[int], shape: ModelShape) -> int:
    """FLOPs of the decoder layers in prefill; ``layer_totals`` are all tokens of each layer."""
    return sum(physical_flops(n, n, shape) for n in layer_totals)


def decode_step_flops(layer_entries: Sequence[int], shape: ModelShape) -> int:
    """FLOPs of one decode forward; ``layer_entries`` are the entries that the new token sees in each layer."""
    return sum(physical_flops(1, n, shape) for n in layer_entries) + head_flops(shape)


def head_flops(shape: ModelShape, n_positions: int = 1) -> int:
    """FLOPs of the output head, ``2 d |V|`` per position; ``generate`` asks for one position per forward."""
    return 2 * n_positions * shape.hidden_size * shape.vocab_size


def vision_flops(shape: ModelShape, n_images: int = 1, tower_pairs: Sequence[int] = ()) -> int:
    """FLOPs of the vision tower: ``2 (4nd^2 + 2n^2d + fndm)`` per block and piece.

    Where they were counted in a forward, what was counted, the projector included; 0 where they are not known, and
    then ``shape.uncounted`` says why.

    n are the tokens of a piece, f the matrices of the tower's feed-forward part. In a block with windows, ``n^2``
    becomes the pairs of tokens that share a window. The patch embedding (0.2 % of a CLIP-L tower) is left out.
    Where ``tower_pairs`` merge in the first blocks, one number each, the feed-forward part and the next block have so
    many tokens less; behind the last of these blocks all are there again.
    """
    tower = shape.vision
    if tower is None:
        return 0
    if not tower.n_layers:
        return n_images * (tower.flops or 0)
    n, d, m = tower.n_tokens, tower.hidden_size, tower.intermediate_size
    weights = tower.n_layers * (4 * n * d * d + tower.ffn_matrices * n * d * m)
    pairs = (tower.n_layers - tower.windowed_layers) * n * n + tower.windowed_layers * tower.window_pairs
    now = n
    for merged in tower_pairs:
        weights -= 4 * (n - now) * d * d + tower.ffn_matrices * (n - now + merged) * d * m
        pairs -= n * n - now * now
        now -= merged
    return 2 * n_images * tower.pieces * (weights + 2 * d * pairs)


def projector_flops(shape: ModelShape, n_visual: int) -> int:
    """FLOPs of the projector; 0 where the vision tower is unknown, or was counted with it.

    ``2 n (d_v d + d^2)`` for two layers as wide as the language model; where patches are merged, ``2 n (w^2 + w d)``
    per merger, with w the width of the patches of one visual token together; ``2 n`` times its weights, where the
    shape says them. n are the tokens that pass it, of a tiled image its padding among them.
    """
    tower = shape.vision
    if tower is None or not tower.n_layers:
        return 0
    n = n_visual
    if tower.n_projected is not None and tower.n_visual:
        n = images_of(shape, n_visual) * tower.n_projected
    d = shape.hidden_size
    if tower.projector_weights is not None:
        return 2 * n * tower.projector_weights
    if not tower.mergers:
        return 2 * n * d * (tower.hidden_size + d)
    width = tower.hidden_size * tower.merge**2
    return 2 * n * tower.mergers * width * (width + d)


def images_of(shape: ModelShape, n_visual: int) -> int:
    """Images that ``n_visual`` visual tokens came from, at least 1 where there are any.

    Where images differ in size, this many of the size that the shape describes.
    """
    if n_visual == 0 or shape.vision is None:
        return 0
    return max(1, n_visual // max(1, shape.vision.n_visual))


def _ratio(part: int, whole: int) -> float:
    """Quotient in one rounding, so that comparing two ratios is comparing exact numbers; 1 for 0 / 0."""
    return float(Fraction(part, whole)) if whole else 1.0


@dataclass(frozen=True)
class Usage:
    """What one sample used: planned or measured, the same class and the same arithmetic.

    Attributes:
        shape: the model's numbers.
        n_visual: visual tokens of the prompt before pruning.
        n_text: all other tokens of the prompt; text is never dropped.
        layer_tokens: [L] visual tokens that each layer processed in prefill.
        cached: [S][L] visual entries that each layer held in decode forward 1..S.
        visual_pairs: [L] pairs of visual tokens, in the square's convention (causal attention counts them all), whose
            attention each layer computed in prefill; empty = the square of ``layer_tokens``.
        seen: [S][L] of ``cached``, those that attention saw; empty = all of them.
        tower_pairs: pairs of tokens that merged in each block of the vision tower, up to that of the features, in each
            piece of an image; empty = none.
    """

    shape: ModelShape
    n_visual: int
    n_text: int
    layer_tokens: tuple[int, ...]
    cached: tuple[tuple[int, ...], ...] = ()
    visual_pairs: tuple[int, ...] = ()
    seen: tuple[tuple[int, ...], ...] = ()
    tower_pairs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        layers = self.shape.n_layers
        for counts in (
            self.layer_tokens,
            *self.cached,
            *self.seen,
            *([self.visual_pairs] if self.visual_pairs else []),
        ):
            if len(counts) != layers:
                raise EngineError(
                    complaint(
                        "visual counts of a usage",
                        f"name all {layers} layers",
                        len(counts),
                        "give one count per decoder layer",
                    )
                )
            limit = self.n_visual**2 if counts is self.visual_pairs else self.n_visual
            if any(not 0 <= count <= limit for count in counts):
                raise EngineError(
                    complaint(
                        "visual counts of a usage",
                        f"lie in 0..{limit}",
                        counts,
                        "count each visual token of the sample once, and no padding",
                    )
                )

    def unpruned(self) -> Usage:
        """The same run with every visual token kept everywhere."""
        full = (self.n_visual,) * self.shape.n_layers
        return replace(
            self, layer_tokens=full, cached=(full,) * len(self.cached), visual_pairs=(), seen=(), tower_pairs=()
        )

    @property
    def n_steps(self) -> int:
        """S: decode forwards after prefill."""
        return len(self.cached)

    @property
    def layer_mean_tokens(self) -> float:
        """Mean over layers of the visual tokens processed in prefill."""
        return sum(self.layer_tokens) / self.shape.n_layers

    @property
    def layer_mean_ratio(self) -> float:
        """``layer_mean_tokens`` as a share of the prompt's visual tokens."""
        return _ratio(sum(self.layer_tokens), self._visual_full)

    @property
    def kv_peak_ratio(self) -> float:
        """Visual entries at the end of prefill as a share of the unpruned run's."""
        return _ratio(self.visual_entries(0), self._visual_full)

    @property
    def kv_mean_ratio(self) -> float:
        """Visual entries as a share of the unpruned run's, mean over decode forwards."""
        steps = self._decode_steps
        return _ratio(sum(self.visual_entries(step) for step in steps), self._visual_full * len(steps))

    @property
    def kv_read_ratio(self) -> float:
        """Visual entries that attention saw as a share of the unpruned run's, mean over decode forwards.

        It is :attr:`kv_mean_ratio` unless a temporal part leaves in the cache what it does not choose.
        """
        steps = self.seen or self.cached or (self.layer_tokens,)
        return _ratio(sum(map(sum, steps)), self._visual_full * len(steps))

    @property
    def kv_end_ratio(self) -> float:
        """Visual entries in the last decode forward as a share of the unpruned run's."""
        return _ratio(self.visual_entries(self.n_steps), self._visual_full)

    @property
    def kv_total_mean_ratio(self) -> float:
        """All entries (visual, text, generated) as a share of the unpruned run's, mean over decode forwards."""
        other = self.unpruned()
        steps = self._decode_steps
        return fsum(_ratio(self.entries(step), other.entries(step)) for step in steps) / len(steps)

    @property
    def prefill_flops(self) -> int:
        """FLOPs of the decoder layers in prefill, physical convention."""
        return prefill_flops(self.layer_totals, self.shape) - 4 * sum(self.skipped_pairs) * self.shape.attention_width

    @property
    def flops_ratio(self) -> float:
        """``prefill_flops`` as a share of the unpruned run's."""
        return _ratio(self.prefill_flops, self.unpruned().prefill_flops)

    @property
    def prefill_flops_whole(self) -> int:
        """FLOPs of the first forward: vision tower, projector, decoder layers, head for one position.

        Tower and projector are left out where nothing tells them, which ``shape.uncounted`` says.
        """
        tower = vision_flops(self.shape, images_of(self.shape, self.n_visual), self.tower_pairs)
        projector = projector_flops(self.shape, self.n_visual)
        return tower + projector + self.prefill_flops + head_flops(self.shape)

    @property
    def macs_per_layer(self) -> float:
        """Mean over layers of the field's MACs in prefill."""
        return sum(self.layer_macs) / self.shape.n_layers

    @property
    def layer_macs(self) -> tuple[int, ...]:
        """[L] MACs of each layer in prefill, field convention."""
        width = 2 * self.shape.hidden_size
        pairs = zip(self.layer_totals, self.skipped_pairs, strict=True)
        return tuple(field_macs(n, self.shape) - skipped * width for n, skipped in pairs)

    @property
    def flops_ratio_field(self) -> float:
        """The field's MACs as a share of the unpruned run's."""
        full = field_macs(self.n_visual + self.n_text, self.shape) * self.shape.n_layers
        return _ratio(sum(self.layer_macs), full)

    @property
    def decode_flops(self) -> int:
        """FLOPs of all decode forwards together, head included, physical convention."""
        return sum(
            decode_step_flops([count + self.n_text + step for count in counts], self.shape)
            for step, counts in enumerate(self.seen or self.cached, start=1)
        )

    @property
    def decode_flops_ratio(self) -> float:
        """``decode_flops`` as a share of the unpruned run's; 1 when nothing was decoded."""
        return _ratio(self.decode_flops, self.unpruned().decode_flops)

    @property
    def layer_totals(self) -> tuple[int, ...]:
        """[L] all tokens, visual and text, that each layer processed in prefill."""
        return tuple(count + self.n_text for count in self.layer_tokens)

    @property
    def skipped_pairs(self) -> tuple[int, ...]:
        """[L] pairs of visual tokens, in the square's convention, whose attention was left out in prefill."""
        if not self.visual_pairs:
            return (0,) * self.shape.n_layers
        return tuple(n * n - pairs for n, pairs in zip(self.layer_tokens, self.visual_pairs, strict=True))

    def visual_entries(self, step: int) -> int:
        """Visual cache entries of all layers together in decode forward ``step``; 0 = the end of prefill."""
        return sum(self.layer_tokens if step == 0 else self.cached[step - 1])

    def entries(self, step: int) -> int:
        """Entries of every kind of all layers in decode forward ``step``; 0 = the end of prefill."""
        return self.visual_entries(step) + self.shape.n_layers * (self.n_text + step)

    def kv_bytes(self, step: int) -> int:
        """Bytes of all cached keys and values in decode forward ``step``; 0 = the end of prefill."""
        return self.entries(step) * self.shape.kv_bytes_per_token_layer

    def kv_visual_bytes(self, step: int) -> int:
        """Bytes of the visual entries in decode forward ``step``; 0 = the end of prefill."""
        return self.visual_entries(step) * self.shape.kv_bytes_per_token_layer

    @property
    def kv_bytes_mean(self) -> float:
        """Mean over decode forwards of :meth:`kv_bytes`; with none, the bytes at the end of prefill."""
        steps = self._decode_steps
        return sum(self.kv_bytes(step) for step in steps) / len(steps)

    def ratios(self) -> dict[str, float]:
        """The reported budget figures by the names that results files use."""
        return {
            "layer_mean_tokens": self.layer_mean_tokens,
            "layer_mean_ratio": self.layer_mean_ratio,
            "flops_ratio": self.flops_ratio,
            "flops_ratio_field": self.flops_ratio_field,
            "kv_peak_ratio": self.kv_peak_ratio,
            "kv_mean_ratio": self.kv_mean_ratio,
            "kv_end_ratio": self.kv_end_ratio,
            "kv_read_ratio": self.kv_read_ratio,
            "kv_total_mean_ratio": self.kv_total_mean_ratio,
        }

    @property
    def _visual_full(self) -> int:
        return self.n_visual * self.shape.n_layers

    @property
    def _decode_steps(self) -> range:
        """Steps that means over decoding run over; the end of prefill stands in where nothing was decoded."""
        return range(1, self.n_steps + 1) if self.n_steps else range(1)


def mean_ratios(usages: Sequence[Usage]) -> dict[str, float]:
    """:meth:`Usage.ratios`, each figure averaged over samples with equal weight.

    Raises:
        EngineError: when there is no sample.
    """
    if not usages:
        raise EngineError(complaint("an average over samples", "have at least one sample", 0, "run a prompt first"))
    every = [usage.ratios() for usage in usages]
    return {name: sum(ratios[name] for ratios in every) / len(every) for name in every[0]}
