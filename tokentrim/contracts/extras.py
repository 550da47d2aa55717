"""What few strategies need: editing attention, a second model that answers first, what is known of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokentrim.counting.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AttentionEdit:
    """What is edited in one decoder layer's attention.

    Attributes:
        radius: a visual query sees, of the visual keys, those whose row and column in its plane differ by at most
            this, earlier and later ones alike; None = as in the model.
        heads: [H]; where False, the head's weights on visual keys count nothing (the others are not rescaled), and it
            adds nothing to visual tokens. None = all heads as in the model.
        blind: whether every head's weights on visual keys count nothing (nor are the others rescaled); unlike those of
            ``heads``, it still adds to visual tokens what it reads from text.
    """

    radius: int | None = None
    heads: tuple[bool, ...] | None = None
    blind: bool = False

    @property
    def acts(self) -> bool:
        """Whether anything is edited."""
        return self.radius is not None or self.blind or (self.heads is not None and not all(self.heads))


class AttentionEditor(ABC):
    """The third ability, beside deciding at boundaries and at decode steps: changing what attention sees.

    Tokens stay where they are. Neighbourhoods are computed in blocks that leave the rest out; heads are recomputed.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what a new class answers, whoever asks it."""
        from tokentrim.contracts.answers import check_answers  # it knows AttentionEdit

        super().__init_subclass__(**kwargs)
        check_answers(cls, ("edit",))

    @abstractmethod
    def edit(self, layer: int, shape: ModelShape) -> AttentionEdit | None:
        """What is edited in decoder layer ``layer`` (0-based); None = nothing."""


class TowerMerger(ABC):
    """A spatial strategy whose tokens already merge inside the vision tower.

    Between attention and MLP of each block a part of the patches joins those most like them
    (:func:`tokentrim.contracts.toolkit.matching.soft_matching`). Behind the tower every patch has its group's vector,
    and ``Need.TOWER_GROUPS`` says which are one.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check what a new class answers, whoever asks it."""
        from tokentrim.contracts.answers import check_answers  # it knows the extras

        super().__init_subclass__(**kwargs)
        check_answers(cls, ("merges_in_tower",))

    @abstractmethod
    def merges_in_tower(self, tokens: int, blocks: int) -> tuple[int, ...]:
        """Pairs that merge in each block, first to last; none in blocks past its end, never more than half of what
        is left.

        Args:
            tokens: patches of a picture, or of one of its tiles: each is merged by itself.
            blocks: blocks up to the one whose output becomes the features.
        """


class CacheMerger(ABC):
    """A temporal strategy that ranks once, in whose caches what leaves goes into what stays."""

    @abstractmethod
    def merged(self, keys: Tensor, values: Tensor, kept: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H_kv, n, head_dim] of the entries that stay, when the others leave a layer.

        Args:
            keys: [B, H_kv, N, head_dim] after RoPE, of all entries of the layer, in raster order; of the heads of this
                process, where several share them.
            values: likewise.
            kept: int64 [B, n], which entries stay, ascending; -1 past a row's last.
            valid: bool [B, N], False in padding.
        """


@dataclass(frozen=True)
class GuideRequest:
    """A second model that answers every prompt first, and what is read of its attention (``Need.GUIDE``).

    Attributes:
        model: a registered model or a model folder; ``"self"`` for the trimmed model itself, unpruned.
        new_tokens: most tokens of its answer.
        rows: whose attention is summed: the text behind the last visual token of the prompt, the generated tokens,
            both, or the last prompt token alone.
        layers: decoder layers that are summed over (negative = from the end); None = all.
        exit_threshold: in ``generate``, the guide gives a row's answer where its score is above this; None = never.
        consistency_ratio: share of the visual tokens with which it is asked again for that score.
    """

    model: str
    new_tokens: int = 16
    rows: Literal["prompt", "generated", "both", "last"] = "both"
    layers: tuple[int, ...] | None = None
    exit_threshold: float | None = None
    consistency_ratio: float = 0.05


@dataclass(frozen=True)
class PromptInfo:
    """What is known of a prompt before any of it has run.

    Attributes:
        n_visual: visual tokens of each row.
        shape: the model's numbers.
    """

    n_visual: tuple[int, ...]
    shape: ModelShape
