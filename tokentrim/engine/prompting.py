"""Making prompts: what is remembered of a prompt before any of it has run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokentrim.contracts.extras import PromptInfo
from tokentrim.counting.forecast import NEW_TOKENS
from tokentrim.engine.abilities.exits import Exited
from tokentrim.engine.ability import PromptOrigin
from tokentrim.engine.context import Context
from tokentrim.engine.generate import Generating
from tokentrim.engine.seams.masks import takes_masks
from tokentrim.engine.tokens.placement import Placement, encoded_elsewhere, fixed_encodings
from tokentrim.engine.tokens.prompt import TEMPORAL, Prompt
from tokentrim.engine.tokens.stream import Stream, moved
from tokentrim.engine.tokens.trace import Trace


@dataclass
class Prompting:
    """Makes the prompts of one engine.

    Attributes:
        context: the strategy and the model.
        generating: the call that is running.
        on_prompt: called with a prompt that need not run.
        is_active: whether the engine is installed.
        record: whether prompts keep a trace.
        arguments: of the running forward of the entry module, by name, where it brings a prompt.
        mask: that this forward was handed, a step's too.
    """

    context: Context
    generating: Generating
    on_prompt: Callable[[Prompt], None]
    is_active: Callable[[], bool]
    record: bool
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    mask: Any = None

    def begin(self, modalities: Tensor, mask: Tensor | None, device: torch.device | None = None) -> Prompt:
        """A prompt of ``modalities`` uint8 [B, T] under ``mask`` [B, T], shown to all abilities.

        Args:
            modalities: of every column.
            mask: 0 in padding.
            device: where its embeddings are; None = where ``modalities`` are.

        Raises:
            Exited: when a guide answers every row, so that the prompt need not run.
        """
        context = self.context
        if device is not None:
            modalities, mask = moved((modalities, mask), device)
        stream, place = self._stream(modalities, mask)
        mutual = self._mutual() if context.acts else None
        if mutual is not None:
            stream = replace(stream, mutual=mutual.to(stream.device))
        info, call = PromptInfo(stream.n_visual, context.shape), self.generating.call
        new_tokens = None if call is None else call.new_tokens
        temporal = None if context.temporal is None else context.temporal.for_answer(new_tokens or NEW_TOKENS)
        evicts = temporal is None or temporal.evicts()
        states = {number: part.begin(info) for number, part in enumerate(context.spatial)}
        if temporal is not None:
            states[TEMPORAL] = temporal.begin(info)
        prompt = Prompt(
            length=stream.length,
            start=stream,
            spatial=context.spatial,
            temporal=temporal,
            sample_keys=stream.vis_pos.new_zeros(stream.rows),
            is_active=self.is_active,
            n_layers=context.shape.n_layers,
            new_tokens=new_tokens,
            tokens=self.arguments.get("input_ids"),
            call=call,
            place=place,
            states=states,
            begins=self.on_prompt,
            trace=self._trace(stream, evicts) if self.record else None,
        )
        if any(stream.n_visual):
            self._show(prompt, mask)
        return prompt

    def _mutual(self) -> Tensor | None:
        """Which tokens of the prompt see each other in both directions; None where none do."""
        if not takes_masks(self.context.implementation):
            return None
        return self.context.adapter.mutual(self.context.layout, self.arguments)

    def _trace(self, stream: Stream, evicts: bool) -> Trace:
        context = self.context
        return Trace(stream.n_visual, context.shape.n_layers, evicts=evicts, edits=context.edits_attention)

    def _show(self, prompt: Prompt, mask: Tensor | None) -> None:
        vision = self.context.vision

        def pictures() -> dict[str, Any]:
            return {} if prompt.placement is None else vision.inputs(prompt.placement.encodings)

        origin = PromptOrigin(self.arguments, mask, pictures, self.context.clock)
        try:
            vision.suspended = True  # a guide may be this very model
            for ability in self.context.abilities:
                ability.before_prompt(prompt, origin)
        finally:
            vision.suspended = False
        if prompt.skipped:
            self.on_prompt(prompt)
            raise Exited

    def _stream(self, modalities: Tensor, mask: Tensor | None) -> tuple[Stream, Callable[[], Placement | None]]:
        """All columns of a prompt, and what makes its placement."""
        visual, place = modalities > 0, self._placing(modalities)
        if not (self.context.layout.structured and bool(visual.any())):
            return Stream.of_prompt(visual, mask), place
        placement = place()
        if placement is None:
            if self.context.acts:
                raise encoded_elsewhere("line ends")
            return Stream.of_prompt(visual, mask), place
        structure = placement.structure()
        return Stream.of_prompt(visual & ~structure, mask, structure), lambda: placement

    def _placing(self, modalities: Tensor) -> Callable[[], Placement | None]:
        """Makes the prompt's placement when somebody asks for it (it costs a look at the device); None where pictures
        of unknown size were encoded outside the context, which only those are told who need to know.
        """
        adapter, layout, tokens = self.context.adapter, self.context.layout, self.arguments.get("input_ids")
        encodings = self.context.vision.encodings(self.arguments)

        def place() -> Placement | None:
            known = fixed_encodings(adapter, layout, modalities) if encodings is None else encodings
            return None if known is None else Placement.of(adapter, layout, known, modalities, tokens)

        return place
