"""What a strategy sees when it is asked to decide: typed, lazy, read-only views.

A strategy lists in ``needs`` what the engine must have ready; only that is computed, and asking for anything else is
an error. All tensors are on the model's device. B = rows of the batch, N = current visual tokens of the longest row
(shorter rows are padded at the end; ``valid`` says where), H = query heads, T = text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from tokentrim.counting.shape import ModelShape
from tokentrim.errors import StrategyError, complaint

if TYPE_CHECKING:  # plans look at needs, and need no torch
    import torch
    from torch import Tensor


class Need(str, Enum):
    """What a strategy may ask the engine for. The value is the word that ``tokentrim ls`` prints."""

    LAST_ROW = "last-row"
    """Attention row of the last prompt token in layer b-1 (temporal: of the current token, in ``row_layer``)."""
    TEXT_ROWS = "text-rows"
    """Attention rows of every text token in layer b-1."""
    WINDOW_ROWS = "window-rows"
    """Attention rows of the last wants_window() prompt tokens in layer b-1."""
    COLUMN_MEAN = "column-mean"
    """Attention received in layer b-1, averaged over all queries."""
    NEXT_ROW = "next-row"
    """Attention row of the last prompt token in layer b itself, as it is if nothing leaves at the boundary."""
    NEXT_ROW_PLAIN = "next-row-plain"
    """As NEXT_ROW, but of queries and keys that no rotary embedding has turned: positions do not count."""
    HEAD_PEAKS = "head-peaks"
    """Attention received in layer b-1, of every query that of the head that gives the most, summed over queries."""
    PROMPT_ROW = "prompt-row"
    """Temporal only: this layer's attention row of the last prompt token, taken once at prefill."""
    PROMPT_WINDOW = "prompt-window"
    """Temporal only: the mean of this layer's attention rows of the last wants_window() prompt tokens, at prefill."""
    PROMPT_COLUMNS = "prompt-columns"
    """Temporal only: attention received in this layer at prefill, averaged over all queries of the prompt."""
    ACCUMULATED = "accumulated-rows"
    """Temporal only: this layer's attention rows of the last prompt token and of all tokens since, summed."""
    HIDDEN = "hidden"
    """Hidden states of the visual tokens at the boundary."""
    TEXT_HIDDEN = "text-hidden"
    """Hidden states of the text tokens at the boundary."""
    HIDDEN_BEFORE = "hidden-before"
    """Hidden states of the visual tokens as they entered layer b-1."""
    FINAL_NORM = "final-norm"
    """The language model's last normalisation, as a function of vectors."""
    KEYS = "keys"
    """Keys (after RoPE) of the visual tokens in layer b-1 (temporal: in this layer's cache)."""
    TEXT_KEYS = "text-keys"
    """Keys (after RoPE) of the text tokens in layer b-1."""
    VALUES = "values"
    """Values of the visual tokens in layer b-1 (temporal: in this layer's cache)."""
    VISION_ROWS = "vision-cls"
    """Vision-tower attention: [CLS] rows of chosen blocks, or the column mean where the tower has no [CLS]."""
    VISION_COLUMNS = "vision-columns"
    """Attention received in chosen blocks of the vision tower, averaged over all its queries, [CLS] among them."""
    VISION_LOGITS = "vision-logits"
    """Products of [CLS] with every key, before the softmax (of the mean query where the tower has no [CLS])."""
    VISION_WIDE = "vision-wide"
    """As VISION_ROWS, with the products of all heads added up before one softmax: one head as wide as the tower."""
    VISION_KEYS = "vision-keys"
    """Keys of the vision tower in chosen blocks."""
    VISION_HIDDEN = "vision-hidden"
    """What the vision tower made of every visual token, before the projector where that works token by token."""
    TOWER_GROUPS = "tower-groups"
    """Which visual tokens merged into one in the vision tower, as ``TowerMerger.merges_in_tower()`` says."""
    FEATURES = "features"
    """Projected visual features, as they enter the language model."""
    TEXT_EMBEDS = "text-embeds"
    """Input embeddings of the text tokens."""
    TEXT_IDS = "text-ids"
    """Which tokens the text is made of, by their numbers in the vocabulary."""
    TEXT = "text"
    """What tokens of the text say, by the model's own tokenizer."""
    GRID = "grid"
    """Image, frame, plane, tile, row and column of every visual token."""
    RANDOM = "random"
    """Reproducible noise, a function of the seed and of the sample's content alone."""
    GUIDE = "guide"
    """Attention that a second model, which answered the prompt first, gave to every visual token."""
    EVIDENCE = "evidence"
    """Relevance of every visual token, supplied by a task that knows it (testbed only)."""


ATTENTION_ROWS: Final = frozenset(
    {Need.LAST_ROW, Need.TEXT_ROWS, Need.WINDOW_ROWS, Need.COLUMN_MEAN, Need.HEAD_PEAKS}
    | {Need.NEXT_ROW, Need.NEXT_ROW_PLAIN}
)
"""Needs that are attention of the decoder layer before a boundary, or of the one behind it."""
FROM_LAYERS: Final = ATTENTION_ROWS | {Need.KEYS, Need.TEXT_KEYS, Need.VALUES, Need.HIDDEN_BEFORE}
"""Needs that read a decoder layer beside a boundary, and so do not exist at boundary 0."""
FROM_LAYER_BEFORE: Final = FROM_LAYERS - {Need.NEXT_ROW, Need.NEXT_ROW_PLAIN}
"""Those of them that read layer b-1 of a boundary b."""
FROM_TOWER: Final = frozenset(
    {Need.VISION_ROWS, Need.VISION_COLUMNS, Need.VISION_LOGITS, Need.VISION_WIDE, Need.VISION_KEYS}
)
"""Needs that read the attention of vision blocks, those of ``Spatial.wants_vision_blocks()``."""
FROM_LAST_ROW: Final = frozenset({Need.PROMPT_ROW, Need.ACCUMULATED})
"""Needs that begin with every layer's attention row of the last prompt token."""
FROM_PROMPT: Final = FROM_LAST_ROW | {Need.PROMPT_WINDOW, Need.PROMPT_COLUMNS}
"""Needs that read attention of every layer while the prompt is processed, for its decode steps."""
AT_BOUNDARIES: Final = frozenset(Need) - FROM_PROMPT
"""Needs that a :class:`LayerSite` can serve."""
AT_STEPS: Final = FROM_PROMPT | {Need.LAST_ROW, Need.KEYS, Need.VALUES, Need.RANDOM}
"""Needs that a :class:`StepSite` can serve."""


@dataclass(frozen=True)
class Grid:
    """Where each visual token came from; all int64 [B, N] (-1 where a token has no place in the grid).

    A *plane* is one rectangle of tokens that covers a whole picture: an image of a plain model is one plane; a tiled
    image is two, a thumbnail and the assembled tiles; each frame of a video is one. Tokens of equal (image, frame,
    plane) lie in one plane, at (row, col) of its rows x cols.

    Attributes:
        image: number of the image or video in its prompt, images before videos.
        frame: number of the (temporally merged) video frame; 0 in images.
        plane: 0, or 1 for the assembled tiles of a tiled image.
        tile: 0 for a whole picture (or thumbnail), 1, 2, ... for its tiles in reading order.
        row: row in the plane.
        col: column in the plane.
        rows: rows of the plane that the token lies in.
        cols: columns of that plane.
    """

    image: Tensor
    frame: Tensor
    plane: Tensor
    tile: Tensor
    row: Tensor
    col: Tensor
    rows: Tensor
    cols: Tensor


@dataclass(frozen=True)
class Note:
    """Scores that a selector ranked by, as it told its site.

    Attributes:
        scores: float [B, N], higher = better.
        about: what they decide, where they do not decide everything.
    """

    scores: Tensor
    about: str = ""


@dataclass(frozen=True)
class _Site:
    """Shared part of both views."""

    shape: ModelShape
    n_visual: tuple[int, ...]
    """Current visual tokens of each row, as host integers."""
    ids: Tensor
    """int64 [B, N]: original (raster) number of each current visual token; -1 in padding."""
    valid: Tensor
    """bool [B, N]: False in padding."""
    state: Any
    """What ``Strategy.begin`` returned for this prompt."""
    keys_of_rows: Tensor
    """int64 [B]: content key of each sample; seeds its noise (read it through :meth:`random`)."""
    needs: frozenset[Need]
    providers: Mapping[Need, Callable[[], Any]] = field(repr=False)
    cache: dict[Need, Any] = field(default_factory=dict[Need, Any], repr=False)
    notes: list[Note] | None = field(default=None, repr=False)

    def _get(self, need: Need) -> Any:
        if need not in self.needs:
            raise StrategyError(
                complaint(
                    "a site's data",
                    f"be declared before use; got a read of {need.value!r}, declared",
                    sorted(n.value for n in self.needs),
                    f"add Need.{need.name} to the strategy's needs",
                )
            )
        if need not in self.cache:
            self.cache[need] = self.providers[need]()
        return self.cache[need]

    @property
    def device(self) -> torch.device:
        """Device of every tensor of this view."""
        return self.ids.device

    def random(self, seed: int, salt: int = 0) -> Tensor:
        """Uniform noise [B, N] in [0, 1), one number per original visual token.

        A counter-based generator keyed by (seed, salt, content of the sample, raster number): the same sample draws
        the same noise in any batch, on any device, and torch's global generator is never touched.
        """
        from tokentrim.contracts.noise import uniform  # it computes with torch

        self._get(Need.RANDOM)
        return uniform(self.keys_of_rows, self.ids, seed=seed, salt=salt)

    def note(self, scores: Tensor, about: str = "") -> None:
        """For selectors: show ``tokentrim explain`` the scores that the choice is made by. Otherwise it does nothing.

        Args:
            scores: float [B, N], higher = better, of the current tokens.
            about: what they decide, where they do not decide everything.
        """
        if self.notes is not None:
            self.notes.append(Note(scores, about))


@dataclass(frozen=True)
class LayerSite(_Site):
    """A spatial decision: boundary ``boundary``, before decoder layer ``boundary``."""

    boundary: int = 0
    n_original: tuple[int, ...] = ()
    """Visual tokens of each row before anything was dropped; empty where nothing was."""
    projector: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    """What :meth:`project` applies; None where there is nothing to apply."""

    @property
    def last_row(self) -> Tensor:
        """float [B, H, N]: attention of the last prompt token to each visual token in layer b-1.

        Softmax over all keys of the row, then the visual columns.
        """
        return self._get(Need.LAST_ROW)

    @property
    def text_rows(self) -> tuple[Tensor, Tensor]:
        """(rows float [B, H, T, N], valid bool [B, T]): attention of every text token in layer b-1."""
        return self._get(Need.TEXT_ROWS)

    @property
    def window_rows(self) -> tuple[Tensor, Tensor]:
        """(rows float [B, H, W, N], valid bool [B, W]): attention of the last W prompt tokens in layer b-1."""
        return self._get(Need.WINDOW_ROWS)

    @property
    def column_mean(self) -> Tensor:
        """float [B, H, N]: attention received in layer b-1, averaged over all (real) queries of the prompt."""
        return self._get(Need.COLUMN_MEAN)

    @property
    def next_row(self) -> Tensor:
        """float [B, H, N]: attention of the last prompt token to each visual token in layer b, were nothing dropped.

        That layer's own norm, projections and RoPE on the states at this boundary, at the positions that they have;
        softmax over all keys of the row, then the visual columns.
        """
        return self._get(Need.NEXT_ROW)

    @property
    def next_row_plain(self) -> Tensor:
        """float [B, H, N]: the same without RoPE, so that no token is preferred for where it stands."""
        return self._get(Need.NEXT_ROW_PLAIN)

    @property
    def head_peaks(self) -> Tensor:
        """float [B, 2, N]: in layer b-1, the largest attention of all heads that a query gives, summed over queries.

        First over the visual tokens as queries, then over the text behind the last visual token of the prompt.
        """
        return self._get(Need.HEAD_PEAKS)

    @property
    def hidden(self) -> Tensor:
        """[B, N, D]: hidden states of the visual tokens at this boundary."""
        return self._get(Need.HIDDEN)

    @property
    def hidden_before(self) -> Tensor:
        """[B, N, D]: hidden states of the same tokens as they entered layer b-1."""
        return self._get(Need.HIDDEN_BEFORE)

    def final_norm(self, vectors: Tensor) -> Tensor:
        """[..., D]: hidden states [..., D] through the normalisation that follows the last decoder layer."""
        return self._get(Need.FINAL_NORM)(vectors)

    @property
    def text_hidden(self) -> tuple[Tensor, Tensor, Tensor]:
        """(hidden [B, T, D], valid bool [B, T], behind bool [B, T]): hidden states of the text tokens at this boundary.

        ``behind`` marks those that come after the row's last visual token of the prompt, dropped or not; a row's last
        valid one is the last token of its prompt.
        """
        return self._get(Need.TEXT_HIDDEN)

    @property
    def keys(self) -> Tensor:
        """[B, H_kv, N, head_dim]: keys after RoPE of the visual tokens in layer b-1."""
        return self._get(Need.KEYS)

    @property
    def text_keys(self) -> tuple[Tensor, Tensor, Tensor]:
        """(keys [B, H_kv, T, head_dim], valid bool [B, T], behind bool [B, T]) in layer b-1, after RoPE.

        ``behind`` as in :attr:`text_hidden`.
        """
        return self._get(Need.TEXT_KEYS)

    @property
    def values(self) -> Tensor:
        """[B, H_kv, N, head_dim]: values of the visual tokens in layer b-1."""
        return self._get(Need.VALUES)

    @property
    def vision_rows(self) -> Tensor:
        """float [B, blocks, H_vision, N]: [CLS] rows (column mean without [CLS]) of wants_vision_blocks()."""
        return self._get(Need.VISION_ROWS)

    @property
    def vision_columns(self) -> Tensor:
        """float [B, blocks, H_vision, N]: attention received, mean over all queries, in wants_vision_blocks()."""
        return self._get(Need.VISION_COLUMNS)

    @property
    def vision_logits(self) -> Tensor:
        """float [B, blocks, H_vision, N]: scaled products of [CLS] (the mean query without [CLS]) with every key."""
        return self._get(Need.VISION_LOGITS)

    @property
    def vision_wide(self) -> Tensor:
        """float [B, blocks, 1, N]: vision_rows with heads joined into one: softmax(q k / sqrt(H_vision head_dim))."""
        return self._get(Need.VISION_WIDE)

    @property
    def vision_keys(self) -> Tensor:
        """[B, blocks, N, H_vision * head_dim]: keys of the tower in wants_vision_blocks(), head after head."""
        return self._get(Need.VISION_KEYS)

    @property
    def vision_hidden(self) -> Tensor:
        """[B, N, D_vision]: what enters the projector for each current token.

        Where the projector joins patches, or is not known, no vector before it belongs to one token: there these are
        the features (of Qwen-VL, as its authors' ports do), and :meth:`project` leaves vectors as they are.
        """
        return self._get(Need.VISION_HIDDEN)

    def project(self, vectors: Tensor) -> Tensor:
        """[..., D]: vectors [..., D_vision] of the kind of :attr:`vision_hidden`, through the model's projector."""
        self._get(Need.VISION_HIDDEN)
        return vectors if self.projector is None else self.projector(vectors)

    @property
    def tower_groups(self) -> Tensor:
        """int64 [B, N]: for each current token the first one that merged with it in the vision tower; -1 in padding.

        A token that merged with none is its own first. The tokens of a group have equal features.
        """
        return self._get(Need.TOWER_GROUPS)

    @property
    def features(self) -> Tensor:
        """[B, N, D]: projected visual features of the current tokens, as they entered the language model."""
        return self._get(Need.FEATURES)

    @property
    def text_embeds(self) -> tuple[Tensor, Tensor]:
        """(embeddings [B, T, D], valid bool [B, T]): input embeddings of the text tokens."""
        return self._get(Need.TEXT_EMBEDS)

    @property
    def text_ids(self) -> tuple[Tensor, Tensor, Tensor]:
        """(numbers int64 [B, T], valid bool [B, T], behind bool [B, T]): which tokens the text is made of.

        In the order of :attr:`text_embeds`. ``behind`` is that of :attr:`text_hidden`.
        """
        return self._get(Need.TEXT_IDS)

    def text(self, chosen: Tensor) -> tuple[tuple[str, ...], ...]:
        """What each of those text tokens of a row says that ``chosen`` bool [B, T] marks; special ones say nothing.

        Joined they are the text. By the tokenizer where the model was loaded from. Reads the device.
        """
        return self._get(Need.TEXT)(chosen)

    @property
    def grid(self) -> Grid:
        """Image, frame, plane, tile, row and column of every current visual token."""
        return self._get(Need.GRID)

    @property
    def guide(self) -> Tensor:
        """float32 [B, N]: attention of the guide that ``wants_guide()`` names, summed over layers, heads and rows."""
        return self._get(Need.GUIDE)

    @property
    def evidence(self) -> Tensor:
        """float [B, N]: relevance of every current visual token, as the task supplied it."""
        return self._get(Need.EVIDENCE)


@dataclass(frozen=True)
class StepSite(_Site):
    """A temporal decision: decode forward ``step`` (1 = the first after prefill), in decoder layer ``layer``."""

    step: int = 1
    layer: int = 0

    @property
    def last_row(self) -> Tensor:
        """float [B, H, N]: attention of the current token to each cached visual token of this layer.

        In the layer that ``row_layer`` names, before anything is let go at this step; 0 where that layer has none.
        """
        return self._get(Need.LAST_ROW)

    @property
    def prompt_row(self) -> Tensor:
        """float [B, H, N]: this layer's attention row of the last prompt token, as it was at prefill."""
        return self._get(Need.PROMPT_ROW)

    @property
    def prompt_window(self) -> Tensor:
        """float [B, H, N]: mean of this layer's rows of the last wants_window() prompt tokens (those there are)."""
        return self._get(Need.PROMPT_WINDOW)

    @property
    def prompt_columns(self) -> Tensor:
        """float [B, H, N]: attention received in this layer at prefill, averaged over all (real) queries."""
        return self._get(Need.PROMPT_COLUMNS)

    @property
    def accumulated(self) -> Tensor:
        """float [B, H, N]: this layer's rows of the last prompt token and of every forward since, summed.

        A forward of several tokens counts its last one.
        """
        return self._get(Need.ACCUMULATED)

    @property
    def keys(self) -> Tensor:
        """[B, H_kv, N, head_dim]: cached keys of the visual tokens."""
        return self._get(Need.KEYS)

    @property
    def values(self) -> Tensor:
        """[B, H_kv, N, head_dim]: cached values of the visual tokens."""
        return self._get(Need.VALUES)
