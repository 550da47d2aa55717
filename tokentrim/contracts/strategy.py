"""The interface of a strategy: a scorer or a selector, spatial or temporal.

Read this file, then write one class: give it a name, its parameters, its ``needs``, a ``schedule`` (or ``count``) and
a ``score``. A strategy is frozen configuration; it never touches the model, the cache, positions or masks, and never
draws from a global random generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from tokentrim.contracts.answers import Checked
from tokentrim.contracts.extras import AttentionEditor, GuideRequest, PromptInfo
from tokentrim.contracts.knobs import Replacing, changed, knob_of
from tokentrim.contracts.sites import LayerSite, Need, StepSite
from tokentrim.counting.forecast import NEW_TOKENS, TEXT_TOKENS
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape
from tokentrim.counting.solve import Knob, solve

if TYPE_CHECKING:  # what decides needs torch; plans do not
    from torch import Tensor, nn
    from typing_extensions import Self

    from tokentrim.contracts.selection import Selection

PositionPolicy = Literal["keep", "renumber"]
Stage = Literal["input", "prefill", "decode", "none"]


@dataclass(frozen=True)
class Parts:
    """A strategy taken apart: any number of spatial deciders, at most one temporal one, and one attention editor."""

    spatial: tuple[Spatial, ...] = ()
    temporal: Temporal | None = None
    attention: AttentionEditor | None = None

    @property
    def deciders(self) -> tuple[Spatial | Temporal, ...]:
        """The spatial deciders in the order of their declaration, then the temporal one."""
        return self.spatial if self.temporal is None else (*self.spatial, self.temporal)


class Strategy(Checked, Replacing, ABC):
    """Anything that ``trim`` accepts: frozen configuration, equal when its parameters are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    name: ClassVar[str] = ""  # under which the registry knows the class
    stage: ClassVar[Stage] = "none"  # where it acts: at the language model's input, during prefill, during decode
    needs: ClassVar[frozenset[Need]] = frozenset()  # all that it may ask for; needed() narrows it
    count_is_static: ClassVar[bool] = True  # whether configuration and prompt shape alone say the counts
    merges: ClassVar[bool] = False  # whether kept tokens are changed by dropped ones
    trainable: ClassVar[bool] = False  # whether it carries trained weights
    budget_knob: ClassVar[str | None] = None  # the one monotone parameter that budget matching may turn

    @abstractmethod
    def parts(self) -> Parts:
        """The spatial and temporal deciders that make up this strategy."""

    def needed(self) -> frozenset[Need]:
        """What this configuration asks the engine for."""
        return self.needs

    def prepare(self, shape: ModelShape) -> None:
        """Load and check what it needs for a model of this shape, such as weights; raise here what would stop it."""

    def meet(self, model: nn.Module, shape: ModelShape) -> None:
        """See the model's entry module once, after :meth:`prepare` (spatial parts alone): raise here if it may not."""

    def wants_window(self) -> int:
        """Trailing prompt tokens whose rows ``Need.WINDOW_ROWS`` gives, or ``Need.PROMPT_WINDOW`` the mean of."""
        return 32

    def begin(self, prompt: PromptInfo) -> Any:
        """State for one prompt, handed back at every site of this strategy (default: none)."""
        return None

    def for_answer(self, new_tokens: int) -> Self:
        """The same for an answer of at most ``new_tokens``; what is planned and run is this (default: itself)."""
        return self

    def label(self) -> str:
        """Short text for tables: the name and the parameters that differ from their defaults."""
        inner = ", ".join(f"{key}={value}" for key, value in changed(self).items())
        return f"{self.name}({inner})" if inner else self.name

    def spec(self) -> dict[str, Any]:
        """The strategy as a plain dict that :func:`tokentrim.config.specs.strategy_from` reads back."""
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

    def knob(self, largest_count: int) -> Knob[Strategy]:
        """The ``budget_knob`` with its range, or StrategyError; ``largest_count`` ends that of an unbounded integer."""
        return knob_of(self, self.budget_knob, self.label(), largest_count)

    def at_budget(
        self, shape: ModelShape, n_visual: int, *, layer_mean_ratio: float | None = None, kv_ratio: float | None = None,
        kv_read_ratio: float | None = None, flops_ratio: float | None = None, n_text: int = TEXT_TOKENS,
        new_tokens: int = NEW_TOKENS,
    ) -> tuple[Strategy, float]:  # fmt: skip
        """This strategy with its knob solved on the plan for one of the ratios, and the value that was realised.

        See :func:`tokentrim.counting.solve.solve`, which says what the ratios are shares of and what is raised.
        """
        return solve(
            self, shape, n_visual, layer_mean_ratio=layer_mean_ratio, kv_ratio=kv_ratio, kv_read_ratio=kv_read_ratio,
            flops_ratio=flops_ratio, n_text=n_text, new_tokens=new_tokens,
        )  # fmt: skip


class Spatial(Strategy, ABC):
    """A decider that acts while the prompt is processed: at the input or between decoder layers."""

    stage: ClassVar[Stage] = "prefill"
    positions: PositionPolicy = Field(default="keep", description="position ids of kept tokens after pruning")

    @abstractmethod
    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """boundary -> keep_count for ``n_visual`` visual tokens; upper bounds where ``count_is_static`` is False."""

    def needed_at(self, boundary: int) -> frozenset[Need]:
        """Of :meth:`needed`, what it reads at ``boundary`` (default: all): the engine gets nothing else ready there."""
        return self.needed()

    def wants_vision_blocks(self, features: int) -> tuple[int, ...]:
        """Vision blocks whose attention is read (-1 = the last); ``features``: the one that makes the features."""
        return (features,)

    def vision_blocks_of(self, features: int, depth: int) -> tuple[int, ...]:
        """Those blocks in a tower of ``depth`` blocks: override this one where they depend on the depth."""
        return self.wants_vision_blocks(features)

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
        """Real numbers [B, N], or inf: higher = kept. Equal scores go to the lower raster number; NaN is an error."""


class SpatialSelector(Spatial, ABC):
    """Wide interface: build the Selection itself (merging, clustering, diversity, data-dependent counts)."""

    @abstractmethod
    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Decide. ``count`` is int64 [B] on the host: the schedule's keep_count of each row."""


class Temporal(Strategy, ABC):
    """A decider that acts on cached visual entries at decode steps."""

    stage: ClassVar[Stage] = "decode"

    @abstractmethod
    def count(self, step: int, layer: int, n_prefill: int, shape: ModelShape) -> int:
        """Visual entries that ``layer`` (0-based) may still hold when decode forward ``step`` attends (1 = the first
        after prefill); ``n_prefill``: those of one sample at the end of prefill. More than there are: all may stay.
        """

    def evicts(self) -> bool:
        """Whether what it does not choose leaves the cache for good (default: yes), or stays for later steps."""
        return True

    def row_layer(self, layer: int, shape: ModelShape) -> int:
        """The decoder layer whose ``Need.LAST_ROW`` decides in ``layer``: an earlier one, or itself (default)."""
        return layer

    def parts(self) -> Parts:
        """Itself, alone."""
        return Parts(temporal=self)


class TemporalScorer(Temporal, ABC):
    """Narrow temporal interface: score every cached visual entry; the engine evicts the lowest."""

    def ranks_once(self) -> bool:
        """Whether scores stay what they are at the first eviction (default: no).

        Where it evicts, each layer is then asked once, its entries are stored in the order in which they will leave,
        and an eviction moves an offset. Such a strategy must not read what a step brings (``Need.LAST_ROW``).
        """
        return False

    @abstractmethod
    def score(self, site: StepSite) -> Tensor:
        """Real numbers [B, N], or inf: higher = stays; NaN is an error."""


class TemporalSelector(Temporal, ABC):
    """Wide temporal interface: build the Selection of surviving entries itself."""

    @abstractmethod
    def select(self, site: StepSite, count: Tensor) -> Selection:
        """Decide. ``count`` is int64 [B] on the host: entries that each row may keep."""
