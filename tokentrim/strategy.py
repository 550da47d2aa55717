"""The interface of a strategy: four ways to decide, one way to combine them.

Read this file, then write one class: give it a name, its parameters, its ``needs``, a ``schedule`` (or ``count``) and
a ``score``. A strategy is frozen configuration; it never touches the model, the cache, positions or masks, and never
draws from a global random generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tokentrim.errors import StrategyError, complaint
from tokentrim.schedule import Schedule
from tokentrim.selection import Selection
from tokentrim.shape import ModelShape
from tokentrim.sites import LayerSite, Need, StepSite

PositionPolicy = Literal["keep", "renumber"]
Stage = Literal["input", "prefill", "decode", "none"]


@dataclass(frozen=True)
class Parts:
    """A strategy taken apart: any number of spatial deciders, at most one temporal one, and one attention editor."""

    spatial: tuple[Spatial, ...] = ()
    temporal: Temporal | None = None
    attention: AttentionEditor | None = None


@dataclass(frozen=True)
class AttentionEdit:
    """What is edited in one decoder layer's attention.

    Attributes:
        radius: a visual query sees, of the visual keys, those whose row and column in its plane differ by at most
            this, earlier and later ones alike; None = as in the model.
        heads: [H]; where False, the head's weights on visual keys count nothing (the others are not rescaled), and it
            adds nothing to visual tokens. None = all heads as in the model.
    """

    radius: int | None = None
    heads: tuple[bool, ...] | None = None

    @property
    def acts(self) -> bool:
        """Whether anything is edited."""
        return self.radius is not None or (self.heads is not None and not all(self.heads))


class AttentionEditor(ABC):
    """The third ability, beside deciding at boundaries and at decode steps: changing what attention sees.

    Tokens stay where they are. Neighbourhoods are computed in blocks that leave the rest out; heads are recomputed.
    """

    @abstractmethod
    def edit(self, layer: int, shape: ModelShape) -> AttentionEdit | None:
        """What is edited in decoder layer ``layer`` (0-based); None = nothing."""


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


class Strategy(BaseModel, ABC):
    """Anything that ``trim`` accepts: frozen configuration, equal when its parameters are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    name: ClassVar[str] = ""
    """Name under which the registry knows the class."""
    stage: ClassVar[Stage] = "none"
    """Where it acts: at the language model's input, during prefill, during decode."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """All that the class may ask for; :meth:`needed` narrows it for one configuration."""
    count_is_static: ClassVar[bool] = True
    """Whether the counts are known from configuration and prompt shape alone."""
    merges: ClassVar[bool] = False
    """Whether kept tokens are changed by dropped ones."""
    trainable: ClassVar[bool] = False
    """Whether it carries trained weights."""
    budget_knob: ClassVar[str | None] = None
    """The one monotone parameter that budget matching may turn."""

    @abstractmethod
    def parts(self) -> Parts:
        """The spatial and temporal deciders that make up this strategy."""

    def needed(self) -> frozenset[Need]:
        """What this configuration asks the engine for."""
        return self.needs

    def prepare(self, shape: ModelShape) -> None:
        """Called when a model is about to carry this strategy: raise here what would stop it (default: nothing)."""
        return

    def meet(self, model: nn.Module, shape: ModelShape) -> None:
        """Called once when a model is about to carry this strategy, with its entry module: raise here if it may not."""
        return

    def begin(self, prompt: PromptInfo) -> Any:
        """State for one prompt, handed back at every site of this strategy (default: none)."""
        return None

    def label(self) -> str:
        """Short text for tables: the name and the parameters that differ from their defaults."""
        changed = self.model_dump(exclude_defaults=True)
        inner = ", ".join(f"{key}={value}" for key, value in changed.items())
        return f"{self.name}({inner})" if inner else self.name

    def spec(self) -> dict[str, Any]:
        """The strategy as a plain dict that :func:`tokentrim.config.strategy_from` reads back."""
        return {"name": self.name, **self.model_dump(mode="json")}

    @property
    def spatial_parts(self) -> tuple[Spatial, ...]:
        """Spatial deciders, in the order of their boundaries' declaration."""
        return self.parts().spatial

    @property
    def temporal_part(self) -> Temporal | None:
        """The temporal decider, if there is one."""
        return self.parts().temporal

    @property
    def attention_part(self) -> AttentionEditor | None:
        """What edits attention, if anything does."""
        return self.parts().attention

    def at_budget(
        self,
        shape: ModelShape,
        n_visual: int,
        *,
        layer_mean_ratio: float | None = None,
        kv_ratio: float | None = None,
        flops_ratio: float | None = None,
        n_text: int = 35,
        new_tokens: int = 64,
    ) -> tuple[Strategy, float]:
        """This strategy with its budget knob solved on the plan, and the value that was realised.

        Exactly one ratio is given, each a share of the unpruned run: layer-mean visual tokens, mean visual KV
        entries over the decode steps, or prefill FLOPs of the language model (physical convention).

        Raises:
            StrategyError: when the strategy has no budget knob, or more than one ratio is given.
        """
        from tokentrim.budgeting import solve  # the solver needs plan(), which needs this module

        return solve(
            self,
            shape,
            n_visual,
            layer_mean_ratio=layer_mean_ratio,
            kv_ratio=kv_ratio,
            flops_ratio=flops_ratio,
            n_text=n_text,
            new_tokens=new_tokens,
        )


class Spatial(Strategy, ABC):
    """A decider that acts while the prompt is processed: at the input or between decoder layers."""

    stage: ClassVar[Stage] = "prefill"
    positions: PositionPolicy = Field(default="keep", description="position ids of kept tokens after pruning")

    @abstractmethod
    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """boundary -> keep_count for a prompt with ``n_visual`` visual tokens.

        Where ``count_is_static`` is False the counts are upper bounds and the boundaries still hold.
        """

    def wants_vision_blocks(self) -> tuple[int, ...]:
        """Vision-tower blocks whose rows ``Need.VISION_ROWS`` wants (negative = from the end)."""
        return (-2,)

    def wants_window(self) -> int:
        """Number of trailing prompt tokens whose rows ``Need.WINDOW_ROWS`` wants."""
        return 32

    def wants_guide(self) -> GuideRequest | None:
        """The guide whose attention ``Need.GUIDE`` gives (default: none)."""
        return None

    def parts(self) -> Parts:
        """Itself, alone."""
        return Parts(spatial=(self,))


class SpatialScorer(Spatial, ABC):
    """Narrow interface: score every token; the engine keeps the highest, as many as the schedule says."""

    @abstractmethod
    def score(self, site: LayerSite) -> Tensor:
        """float [B, N]: higher = kept. Equal scores go to the lower raster number; NaN is an error."""


class SpatialSelector(Spatial, ABC):
    """Wide interface: build the Selection itself (merging, clustering, diversity, data-dependent counts)."""

    @abstractmethod
    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Decide. ``count`` is int64 [B] on the host: the schedule's keep_count of each row."""


class Temporal(Strategy, ABC):
    """A decider that acts on cached visual entries at decode steps; what it drops is gone for good."""

    stage: ClassVar[Stage] = "decode"

    @abstractmethod
    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """Visual entries that layer ``layer`` may still hold when decode forward ``step`` (1, 2, ...) attends.

        Args:
            step: decode forward, 1 = the first after prefill.
            layer: decoder layer, 0-based.
            n_prefill: visual entries of this layer and sample at the end of prefill.
            shape: the model's numbers.
        """

    def parts(self) -> Parts:
        """Itself, alone."""
        return Parts(temporal=self)


class TemporalScorer(Temporal, ABC):
    """Narrow temporal interface: score every cached visual entry; the engine evicts the lowest."""

    def ranks_once(self) -> bool:
        """Whether scores stay what they are at the first eviction (default: no).

        Each layer is then asked once, its entries are stored in the order in which they will leave, and an eviction
        moves an offset. Such a strategy must not read what a step brings (``Need.LAST_ROW``).
        """
        return False

    @abstractmethod
    def score(self, site: StepSite) -> Tensor:
        """float [B, N]: higher = stays."""


class TemporalSelector(Temporal, ABC):
    """Wide temporal interface: build the Selection of surviving entries itself."""

    @abstractmethod
    def select(self, site: StepSite, count: Tensor) -> Selection:
        """Decide. ``count`` is int64 [B] on the host: entries that each row may keep."""


class Composition(Strategy):
    """Several spatial parts at different boundaries and at most one temporal part, acting as one strategy."""

    name: ClassVar[str] = "composition"
    stage: ClassVar[Stage] = "prefill"
    spatial: tuple[Spatial, ...] = ()
    temporal: Temporal | None = None

    def parts(self) -> Parts:
        """The parts as given."""
        return Parts(self.spatial, self.temporal)

    def needed(self) -> frozenset[Need]:
        """Union over the parts."""
        members: list[Strategy] = [*self.spatial, *([self.temporal] if self.temporal else [])]
        return frozenset().union(*(member.needed() for member in members)) if members else frozenset()

    def label(self) -> str:
        """The parts' labels joined by ``+``."""
        members: list[Strategy] = [*self.spatial, *([self.temporal] if self.temporal else [])]
        return " + ".join(member.label() for member in members) or "none"

    def spec(self) -> dict[str, Any]:
        """``{spatial: [...], temporal: {...}}``."""
        return {
            "spatial": [part.spec() for part in self.spatial],
            **({"temporal": self.temporal.spec()} if self.temporal else {}),
        }


def compose(spatial: tuple[Strategy, ...] = (), temporal: Strategy | None = None) -> Strategy:
    """Combine parts into one strategy.

    Args:
        spatial: strategies with spatial parts only.
        temporal: a strategy with a temporal part only, or None.

    Raises:
        StrategyError: when a part is of the other kind, or two spatial parts disagree on the position policy.
    """
    for strategy in (*spatial, *([temporal] if temporal else [])):
        if strategy.attention_part is not None:
            raise StrategyError(
                complaint(
                    f"part {strategy.label()!r}",
                    "not edit attention: such a strategy acts alone",
                    strategy.name,
                    "use it by its name, without 'spatial:' and 'temporal:'",
                )
            )
    deciders: list[Spatial] = []
    for strategy in spatial:
        if strategy.temporal_part is not None:
            raise StrategyError(
                complaint(
                    f"spatial part {strategy.label()!r}",
                    "act during prefill only",
                    "a temporal strategy",
                    "move it to 'temporal:'",
                )
            )
        deciders.extend(strategy.spatial_parts)
    if temporal is not None and (temporal.spatial_parts or temporal.temporal_part is None):
        raise StrategyError(
            complaint(
                f"temporal part {temporal.label()!r}",
                "act at decode steps only",
                "a spatial strategy",
                "move it to 'spatial:'",
            )
        )
    policies = {part.positions for part in deciders}
    if len(policies) > 1:
        raise StrategyError(
            complaint(
                "spatial parts of one strategy",
                "share one position policy",
                sorted(policies),
                "set the same 'positions' on each part",
            )
        )
    return Composition(spatial=tuple(deciders), temporal=temporal.temporal_part if temporal else None)
