"""Context: what the passes of one engine ask for, and nothing of how a forward gets to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.sites import FROM_PROMPT, Need
from tokentrim.contracts.strategy import Spatial, Temporal
from tokentrim.counting.shape import ModelShape
from tokentrim.engine.abilities.vision import VisionCapture
from tokentrim.engine.ability import Ability
from tokentrim.engine.deciding import Doubts
from tokentrim.engine.seams.attention import Kernel, implementation_of
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.seams.masks import window_in
from tokentrim.engine.seams.sharding import SharedHeads
from tokentrim.engine.seams.words import Words
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream
from tokentrim.engine.turns import Turns


@dataclass(frozen=True)
class Context:
    """One strategy on one model.

    Attributes:
        adapter: the model family's.
        layout: the located modules.
        spatial: deciders of the prefill, in declaration order.
        temporal: decider of the decode steps, or None.
        needs: what any part asks for.
        heads: completes what one of several processes reads.
        clock: durations by name: prefill, decode, vision, selection.
        doubts: whether scores were numbers, to be settled when an answer is there.
        vision: what was read while pictures were encoded.
        abilities: all that acts beside the deciders, ``vision`` among them.
        turns: whose forward runs.
        acts: whether forwards are changed at all; where not, they are only counted.
        compiles: whether decode steps run compiled where they can.
        words: the model's tokenizer, where a part reads text.
    """

    adapter: Adapter
    layout: Layout
    spatial: tuple[Spatial, ...]
    temporal: Temporal | None
    needs: frozenset[Need]
    heads: SharedHeads
    clock: Clock
    doubts: Doubts
    vision: VisionCapture
    abilities: tuple[Ability, ...]
    turns: Turns
    acts: bool
    compiles: bool
    words: Words | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", Words.of(self.layout) if Need.TEXT in self.needs else None)

    @property
    def shape(self) -> ModelShape:
        """The model's numbers."""
        return self.layout.shape

    @property
    def implementation(self) -> str:
        """The attention implementation that the model was set to."""
        return implementation_of(self.layout.text_config)

    @property
    def window(self) -> int | None:
        """Tokens that sliding-window attention sees, or None where attention has no window."""
        return window_in(self.layout.text_config)

    @property
    def renumbers(self) -> bool:
        """Whether tokens that stay get contiguous positions."""
        return any(part.positions == "renumber" for part in self.spatial)

    @property
    def prompt_rows(self) -> frozenset[Need]:
        """For what attention of every layer at prefill is kept."""
        return frozenset() if self.temporal is None else FROM_PROMPT & self.temporal.needed()

    @property
    def edits_attention(self) -> bool:
        """Whether an ability changes what attention computes."""
        return any(ability.edits_attention for ability in self.abilities)

    @property
    def edits_steps(self) -> bool:
        """Whether one does so in decode steps."""
        return any(ability.edits_steps for ability in self.abilities)

    def around_attention(self, layer: int, kernel: Kernel, stream: Stream, prompt: Prompt) -> Kernel:
        """The attention function of ``layer`` with all abilities around it."""
        for ability in self.abilities:
            kernel = ability.around_attention(layer, kernel, stream, prompt)
        return kernel
