"""The engine: hooks on one model, and the routing of every forward to a prefill or a decode pass.

It hooks two modules: the entry (which sees ``input_ids`` and so knows where the visual tokens are) and the language
model (which sees embeddings, positions, the 2-D mask and the cache), and wraps the host's ``generate``. What is read of
the vision tower, and all else beside the tokens, is done by abilities that it attaches. Decoder layers are hooked only
for the duration of a pass that changes something in them, and the attention function is switched to the wrapper only
for a pass that reads or masks attention itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from tokentrim.contracts import fits
from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.engine import refusals
from tokentrim.engine.abilities.editing import Editing
from tokentrim.engine.abilities.evidence import GivenEvidence
from tokentrim.engine.abilities.packing import Packing
from tokentrim.engine.abilities.vision import VisionCapture
from tokentrim.engine.ability import Ability
from tokentrim.engine.compiled import Compiled
from tokentrim.engine.context import Context
from tokentrim.engine.deciding import Doubts
from tokentrim.engine.decode import Decode
from tokentrim.engine.generate import Generating
from tokentrim.engine.passes import Passes
from tokentrim.engine.prefill import Prefill
from tokentrim.engine.prompting import Prompting
from tokentrim.engine.seams import attention, masks, positions
from tokentrim.engine.seams.calls import bind, cached_length, pictured
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.seams.sharding import SharedHeads
from tokentrim.engine.seams.undo import Undo, hook
from tokentrim.engine.tokens import cache
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.turns import Turns
from tokentrim.engine.untouched import Untouched


class Engine:
    """Applies one strategy to one model while installed.

    Attributes:
        context: what passes ask for: the model, the strategy, and what acts beside it.
        evidence: takes relevance for the next prompt.
    """

    def __init__(
        self,
        host: nn.Module,
        adapter: Adapter,
        layout: Layout,
        strategy: Strategy,
        *,
        on_prompt: Callable[[Prompt], None],
        record: bool = True,
        guide: Ability | None = None,
        compiled: bool = False,
    ) -> None:
        """Prepare to apply ``strategy`` to ``host``, laid out as ``layout`` says; ``on_prompt`` sees what has run."""
        fits.check(strategy, layout)
        spatial, temporal, editor = strategy.spatial_parts, strategy.temporal_part, strategy.attention_part
        clock, heads, needs = Clock.of(layout.layers), SharedHeads.of(host), strategy.needed()
        self.evidence, self._passes = GivenEvidence(), Passes(clock, layout.text_config)
        vision = VisionCapture.of(adapter, layout, clock, spatial, needs, keeps_pixels=guide is not None)
        abilities = (
            self.evidence,
            guide,
            vision,
            Editing.of(editor, layout.shape, attention.implementation_of(layout.text_config)),
            None if heads.shared else Packing(layout.layers),
            Compiled(layout, self._passes) if compiled else None,
        )
        self.context = Context(
            adapter=adapter,
            layout=layout,
            spatial=spatial,
            temporal=temporal,
            needs=needs,
            heads=heads,
            clock=clock,
            doubts=Doubts(),
            vision=vision,
            abilities=tuple(ability for ability in abilities if ability is not None),
            turns=Turns(),
            acts=bool(spatial) or temporal is not None or editor is not None or compiled,
            compiles=compiled,
        )
        self._host, self._on_prompt = host, on_prompt
        self._generating = Generating(self.context)
        self._undo = Undo()
        self._prompting = Prompting(self.context, self._generating, on_prompt, lambda: self.installed, record)
        self.untouched = None if self.context.acts else Untouched(self._prompting)
        self._modalities: Tensor | None = None
        self._mark = ""

    # ------------------------------------------------------------------ installing

    @property
    def installed(self) -> bool:
        """Whether the model carries anything of this."""
        return bool(self._undo)

    def install(self) -> None:
        """Hook the model, and ``generate`` and the labels of the host around it; what fails half-way is to be removed.

        Raises:
            UnsupportedError: when the strategy prunes, and the model runs compiled, or steps would on several devices.
        """
        layout, undo, self._mark = self.context.layout, self._undo, uuid4().hex
        if self.context.acts:
            refusals.of_model(self._host, layout, compiles=self.context.compiles)
        self._generating.watch(self._host, undo)
        for ability in self.context.abilities:
            undo.note(ability.detach)
            ability.attach()
        for index, module in enumerate(layout.attentions):
            attention.observe(module, self._passes.observer(index), undo)
        hook(layout.entry, self._enter_entry, undo, before=True)
        hook(layout.entry, self._leave_entry, undo, before=False, always=True)
        undo.note(self._passes.end)
        hook(layout.language_model, self._enter_model, undo, before=True)
        hook(layout.language_model, self._leave_model, undo, before=False, always=True)

    def remove(self) -> None:
        """Take every hook out and put every setting back, as soon as no other thread is in the middle of a forward."""
        try:
            self.context.turns.wait()
        finally:
            self._undo.run()
            self.context.turns.give_back()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise refusals.copied("a model that is trimmed")

    # ------------------------------------------------------------------ the entry module

    def _enter_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.context.vision.suspended or self._compiling():
            return
        self.context.turns.take()
        arguments = bind(module.forward, args, kwargs)
        self._modalities, self._prompting.arguments, self._prompting.mask = None, {}, arguments.get("attention_mask")
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        columns = ids.shape[1] if ids is not None else embeds.shape[1] if embeds is not None else 0
        if cached_length(arguments.get("past_key_values")) and (columns == 1 or not pictured(arguments)):
            return  # a decode step or a turn of text; a guessed token may well be a placeholder, but stands for itself
        if ids is None and not self.context.acts:
            return  # embeddings do not tell where pictures are; nothing is pruned, so nothing has to
        self._modalities = self.context.adapter.modalities(self.context.layout, arguments)
        self._prompting.arguments = arguments

    def _leave_entry(self, *_: Any) -> None:
        if not (torch.compiler.is_compiling() or self.context.vision.suspended) and self.context.turns.is_mine():
            self._modalities, self._prompting.arguments, self._prompting.mask = None, {}, None
            self.context.turns.give_back()

    def _compiling(self) -> bool:
        """Whether torch.compile is reading this; untouched models then run without an account, others not at all."""
        if torch.compiler.is_compiling() and self.context.acts:
            refusals.refuse_compiled("a forward that torch.compile reads")
        return torch.compiler.is_compiling()

    # ------------------------------------------------------------------ the language model

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.context.vision.suspended or self._compiling():
            return None
        self.context.turns.require()
        self._passes.end()  # a pass that an exception cut short
        arguments = bind(module.forward, args, kwargs)
        past, embeds = arguments.get("past_key_values"), arguments.get("inputs_embeds")
        if embeds is None:
            if not cache.trimmed(past):
                return None  # the language model called on its own, with text
            embeds = arguments["input_ids"]  # which are as many
        mask = masks.of_padding(arguments.get("attention_mask"), self._prompting.mask)
        if self.untouched is not None:
            return self.untouched.enter({**arguments, "attention_mask": mask}, self._modalities)
        if cached_length(past):
            return (), self._enter_decode(arguments, past, embeds, mask)
        if self._modalities is None:
            return None
        return (), self._enter_prefill(arguments, past, embeds, mask, self._modalities)

    def _enter_prefill(
        self, arguments: dict[str, Any], past: Any, embeds: Tensor, mask: Any, modalities: Tensor
    ) -> dict[str, Any]:
        context = self.context
        refusals.of_mask(mask, *embeds.shape[:2])
        prompt = self._prompting.begin(modalities, mask, embeds.device)
        stream = prompt.start
        use_cache = arguments.get("use_cache")
        use_cache = context.layout.text_config.use_cache if use_cache is None else use_cache
        if refusals.checkpoints(context.layout.language_model):
            past, use_cache = None, False  # layers are then run without a cache
        cached, call = past is not None or use_cache, self._generating
        decisions = fits.decisions(context.spatial, context.shape, stream.n_visual)
        if any(stream.n_visual):
            refusals.of_prefill(
                context, arguments, call.labels, stream, decisions, cached=cached, generates=call.call is not None
            )
        if past is None and use_cache:
            past = cache.plain(context.layout.text_config)
            arguments = {**arguments, "past_key_values": past}
        if not any(stream.n_visual):
            # Nothing to prune: the forward and its decode steps run untouched, and the report says so.
            cache.mark_text(past, self._mark)
            self._on_prompt(prompt)
            return arguments
        if past is not None:
            cache.install(past, prompt, context.shape.n_layers)
        position_ids = positions.of_call(arguments, 0, stream.length, embeds.device)
        run = Prefill(context, prompt, decisions, past, embeds, position_ids)
        self._passes.begin(run, embeds.device)
        return run.enter(arguments)

    def _enter_decode(self, arguments: dict[str, Any], past: Any, embeds: Tensor, mask: Any) -> dict[str, Any]:
        pictures = self._modalities is not None and bool(self._modalities.any())
        if cache.is_text(past, self._mark) and not pictures:
            return arguments
        layers = refusals.of_continued(past, self._prompting.is_active, pictures=pictures)
        prompt = layers[0].prompt
        refusals.of_mask(mask, len(embeds))
        columns, start = embeds.shape[1], layers[0].get_seq_length()
        refusals.of_window(self.context, start + columns)
        refusals.of_outputs(self.context, arguments)
        prompt.begin_step(mask, columns, embeds.shape[0], self._generating.call)
        run = Decode(self.context, prompt, layers, columns)
        self._passes.begin(run, embeds.device)
        run.hook_layers(positions.of_call(arguments, start, columns, embeds.device))
        # Every layer has its own length: the one mask that the model would build fits none but the first.
        return {**arguments, "attention_mask": None}

    def _leave_model(self, module: nn.Module, args: Any, output: Any) -> Any:
        if torch.compiler.is_compiling() or self.context.vision.suspended or not self.context.turns.is_mine():
            return None
        if self.untouched is not None:
            return self.untouched.leave(output)
        if output is None:  # the forward raised
            return self._passes.end()
        run = self._passes.finish()
        if isinstance(run, Prefill):
            run.require_pruned()
            self._on_prompt(run.prompt)
        return None if run is None else run.with_whole_length(output)
