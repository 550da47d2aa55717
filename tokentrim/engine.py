"""The engine: hooks on one model, and the routing of every forward to a prefill or a decode pass.

It hooks three modules: the entry (which sees ``input_ids`` and so knows where the visual tokens are), the language
model (which sees embeddings, positions, the 2-D mask and the cache), and the vision tower (whose attention some
strategies read). Decoder layers are hooked only for the duration of a pass that changes something in them, and the
attention function is switched to the wrapper only for a pass that reads or masks attention itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tokentrim import attention, cache, evidence, exiting, generating, planning, refusals
from tokentrim.adapter import Adapter, Layout, bind
from tokentrim.clock import Clock
from tokentrim.compiled import Compiled
from tokentrim.deciding import Doubts, begin_states
from tokentrim.decode import Decode
from tokentrim.editing import Editing
from tokentrim.errors import UnsupportedError, complaint
from tokentrim.extras import PromptInfo
from tokentrim.guide import Guide
from tokentrim.placement import Placement, encoded_elsewhere, fixed_encodings
from tokentrim.prefill import Prefill
from tokentrim.prompt import Prompt
from tokentrim.shape import ModelShape
from tokentrim.sharding import Heads
from tokentrim.sites import Grid, Need
from tokentrim.strategy import Strategy
from tokentrim.stream import Stream
from tokentrim.trace import Trace
from tokentrim.untouched import Untouched
from tokentrim.vision import VisionCapture


class Engine:
    """Applies one strategy to one model while installed.

    Attributes:
        layout: the located modules.
        strategy: what decides.
        clock: durations by name: prefill, decode, vision, selection.
        doubts: whether scores were numbers, to be settled when an answer is there.
        prompts: called with every prompt when its prefill is over.
        evidence: relevance for the next prompt, float [B, N], a list of rows, or a function of its grid.
        check_indices: check every Selection's indices on the device (costs a synchronisation; for tests).
        compiled: runs decode steps compiled, if it was asked for.
        untouched: does the accounting where the strategy has no part; None for one that prunes.
        call: the call of ``generate`` that is running, if any.
        labels: int64 [B, T] that the running forward was given, if any.
    """

    def __init__(
        self,
        adapter: Adapter,
        layout: Layout,
        strategy: Strategy,
        *,
        record: bool = True,
        guide: Guide | None = None,
        compiled: bool = False,
    ) -> None:
        planning.check(strategy, layout.shape, vision_blocks=len(layout.vision_attentions), unserved=layout.unserved)
        self.adapter, self.layout, self.strategy, self.record = adapter, layout, strategy, record
        self.clock, self.doubts = Clock(), Doubts()
        self.check_indices = False
        self.evidence: Any = None
        self.on_prompt: Callable[[Prompt], None] = lambda prompt: None
        self.spatial, self.temporal = strategy.spatial_parts, strategy.temporal_part
        idle = not self.spatial and self.temporal is None and strategy.attention_part is None
        self.untouched = Untouched(self) if idle and not compiled else None
        self.compiled = Compiled(self) if compiled else None
        self.call: generating.Call | None = None
        self.labels: Tensor | None = None
        self.heads = Heads()
        self.editing = Editing.of(strategy.attention_part, layout.shape, self.implementation)
        self.renumbers = any(part.positions == "renumber" for part in self.spatial)
        self.wants_prompt_row = self.temporal is not None and Need.PROMPT_ROW in self.temporal.needed()
        needed = strategy.needed()
        blocks = [
            layout.vision_block(block)
            for part in self.spatial
            if Need.VISION_ROWS in part.needed()
            for block in part.wants_vision_blocks()
        ]
        self.guide = guide
        captured = (adapter, layout, frozenset(blocks), self.clock)
        self.vision = VisionCapture(*captured, wants_keys=Need.RANDOM in needed, keeps_pixels=guide is not None)
        self._undo: list[Callable[[], None]] = []
        self._pass: Prefill | Decode | None = None
        self._modalities: Tensor | None = None
        self._arguments: dict[str, Any] = {}
        self._switch_off: Callable[[], None] | None = None
        self._mark: Any = None
        self._text_only: WeakSet[Any] = WeakSet()
        self._thread: int | None = None

    @property
    def shape(self) -> ModelShape:
        """The model's numbers."""
        return self.layout.shape

    @property
    def implementation(self) -> str:
        """The attention implementation that the model was set to."""
        return attention.implementation_of(self.layout.text_config)

    @property
    def decoding(self) -> Decode | None:
        """The decode pass that is running, if one is."""
        return self._pass if isinstance(self._pass, Decode) else None

    def catch_up(self, run: Decode) -> None:
        """A step that was meant to run compiled runs as usual."""
        run.catch_up()
        if run.observes and self._switch_off is None:
            self._switch_off = attention.switch_on(self.layout.text_config)

    @property
    def installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._undo)

    # ------------------------------------------------------------------ installing

    def install(self, host: nn.Module) -> None:
        """Hook the model, and ``generate`` and the labels of ``host`` around it; on any failure nothing remains.

        Raises:
            UnsupportedError: when the strategy prunes, and the model runs compiled or on several devices.
        """
        layout, self.heads = self.layout, Heads.of(host)
        if self.untouched is None:
            refusals.of_model(host, layout)
        try:
            self._undo += [generating.watch(host, self), generating.watch_labels(host, self)]
            for handle in (
                layout.entry.register_forward_pre_hook(self._enter_entry, with_kwargs=True),
                layout.entry.register_forward_hook(self._leave_entry, always_call=True),
                layout.language_model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
                layout.language_model.register_forward_hook(self._leave_model, always_call=True),
            ):
                self._undo.append(handle.remove)
            self._undo += self.vision.hook()
            if self.compiled is not None:
                self._undo.append(self.compiled.install())
            for index, module in enumerate(layout.attentions):
                attention.observe(module, self._observer(index))
                self._undo.append(lambda m=module: attention.ignore(m))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every hook out and put every setting back."""
        self._end_pass()
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    def _observer(self, layer: int) -> attention.Observer:
        def look(
            kernel: attention.Kernel,
            module: nn.Module,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            mask: Any,
            options: dict[str, Any],
        ) -> tuple[Tensor, Tensor | None]:
            if self._pass is None:
                return kernel(module, query, key, value, mask, **options)
            return self._pass.attend(layer, kernel, module, query, key, value, mask, options)

        return look

    # ------------------------------------------------------------------ the entry module

    def _enter_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.vision.suspended or self._compiling():
            return
        self._require_one_thread()
        arguments = bind(module.forward, args, kwargs)
        self._leave_entry()
        self._thread = threading.get_ident()
        past = arguments.get("past_key_values")
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        columns = ids.shape[1] if ids is not None else embeds.shape[1] if embeds is not None else 0
        if past is not None and past.get_seq_length() > 0 and (columns == 1 or not generating.pictured(arguments)):
            return  # a decode step or a turn of text; a guessed token may well be a placeholder, but stands for itself
        if ids is None and self.untouched is not None:
            return  # embeddings do not tell where pictures are; nothing is pruned, so nothing has to
        self._modalities = self.adapter.modalities(self.layout, arguments)
        self._arguments = arguments

    def _leave_entry(self, *_: Any) -> None:
        if torch.compiler.is_compiling() or self.vision.suspended:
            return
        if self._thread in (None, threading.get_ident()):
            self._modalities, self._arguments, self._thread = None, {}, None

    def _compiling(self) -> bool:
        """Whether torch.compile is reading this; untouched models then run without an account, others not at all."""
        if torch.compiler.is_compiling() and self.untouched is None:
            refusals.refuse_compiled("a forward that torch.compile reads")
        return torch.compiler.is_compiling()

    def _require_one_thread(self) -> None:
        if self._thread not in (None, threading.get_ident()):
            raise UnsupportedError(
                complaint(
                    "a trimmed model",
                    "run one forward at a time",
                    "two threads",
                    "give each thread a model of its own; weights may be shared",
                )
            )

    # ------------------------------------------------------------------ the language model

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.vision.suspended or self._compiling():
            return None
        self._require_one_thread()
        self._end_pass()  # a pass that an exception cut short
        arguments = bind(module.forward, args, kwargs)
        past, embeds = arguments.get("past_key_values"), arguments.get("inputs_embeds")
        if embeds is None:
            return None  # the language model called on its own, with text
        modalities = self._modalities
        if self.untouched is not None:
            return self.untouched.enter(arguments, modalities)
        seen = past is not None and past.get_seq_length() > 0
        if seen:
            return (), self._enter_decode(arguments, past, embeds, modalities)
        if modalities is None:
            return None
        return (), self._enter_prefill(arguments, past, embeds, modalities)

    def _enter_prefill(
        self, arguments: dict[str, Any], past: Any, embeds: Tensor, modalities: Tensor
    ) -> dict[str, Any]:
        mask = arguments.get("attention_mask")
        refusals.of_mask(mask)
        stream, place = self.stream_of_prompt(modalities, mask)
        prompt = self.new_prompt(stream, mask, place)
        if not any(stream.n_visual):
            # Nothing to prune: the forward and its decode steps run untouched, and the report says so.
            if past is not None:
                self._text_only.add(past)
            self.on_prompt(prompt)
            return arguments
        decisions = planning.decisions(self.spatial, self.shape, stream.n_visual)
        refusals.of_prefill(self, arguments, stream, decisions)
        use_cache = arguments.get("use_cache")
        use_cache = self.layout.text_config.use_cache if use_cache is None else use_cache
        if refusals.checkpoints(self.layout.language_model):
            past, use_cache = None, False  # layers are then run without a cache
        if past is None and use_cache:
            from transformers import DynamicCache  # the model would make the same one

            past = DynamicCache(config=self.layout.text_config)
            arguments = {**arguments, "past_key_values": past}
        if past is not None:
            cache.install(past, prompt, self.shape.n_layers)
        positions = arguments.get("position_ids")
        if positions is None:
            positions = torch.arange(stream.length, device=embeds.device).unsqueeze(0)
        run = Prefill(self, prompt, decisions, past, embeds, positions)
        self._begin_pass(run, embeds.device, run.observes)
        return run.enter(arguments)

    def stream_of_prompt(
        self, modalities: Tensor, mask: Tensor | None
    ) -> tuple[Stream, Callable[[], Placement | None]]:
        """All columns of a prompt, and what makes its placement."""
        visual, place = modalities > 0, self._placing(modalities)
        if not (self.layout.structured and bool(visual.any())):
            return Stream.of_prompt(visual, mask), place
        placement = place()
        if placement is None:
            if self.untouched is None:
                raise encoded_elsewhere("line ends")
            return Stream.of_prompt(visual, mask), place
        structure = placement.structure()
        return Stream.of_prompt(visual & ~structure, mask, structure), lambda: placement

    def _placing(self, modalities: Tensor) -> Callable[[], Placement | None]:
        """Makes the prompt's placement when somebody asks for it (it costs a look at the device); None where pictures
        of unknown size were encoded outside the context, which only those are told who need to know.
        """
        encodings = self.vision.encodings(self._arguments)

        def place() -> Placement | None:
            known = fixed_encodings(self.adapter, self.layout, modalities) if encodings is None else encodings
            return None if known is None else Placement.of(self.adapter, self.layout, known, modalities)

        return place

    def new_prompt(self, stream: Stream, mask: Tensor | None, place: Callable[[], Placement | None]) -> Prompt:
        """What is remembered of a prompt, before any of it has run."""
        info = PromptInfo(stream.n_visual, self.shape)
        prompt = Prompt(
            length=stream.length,
            start=stream,
            spatial=self.spatial,
            temporal=self.temporal,
            sample_keys=stream.vis_pos.new_zeros(stream.rows),
            is_active=lambda: self.installed,
            n_layers=self.shape.n_layers,
            new_tokens=self.call.new_tokens if self.call else None,
            place=place,
            states=begin_states(self.spatial, self.temporal, lambda part: part.begin(info)),
            trace=Trace(stream.n_visual, self.shape.n_layers) if self.record else None,
        )
        given: Any = self.evidence
        self.evidence = None
        if any(stream.n_visual):
            if given is not None:
                rows: Any = given(self.grid_of(prompt)) if callable(given) else given
                prompt.evidence = evidence.aligned(rows, stream)
            if self.guide is not None:
                self._ask(self.guide, prompt, mask)
            if Need.RANDOM in self.strategy.needed():
                ids = self._arguments.get("input_ids")
                keys = self.vision.sample_keys(prompt.placement, stream.rows, ids, mask)
                prompt.sample_keys = keys.to(stream.vis_pos.device)
        return prompt

    def _ask(self, guide: Guide, prompt: Prompt, mask: Tensor | None) -> None:
        """Let the guide answer the prompt first; its time counts as selection."""
        if prompt.placement is None or not (sources := self.vision.inputs(prompt.placement.encodings)):
            raise encoded_elsewhere("the prompt of a guide")
        device = prompt.start.vis_pos.device
        self.vision.suspended = True  # the guide may be this very model
        try:
            with self.clock.timed("selection", device), self.clock.timed("prefill", device):
                guide.answer(prompt, self._arguments, sources, mask, self.call.exits if self.call else None)
        finally:
            self.vision.suspended = False
        exiting.leave(prompt, self.on_prompt)

    @property
    def window(self) -> int | None:
        """Tokens that sliding-window attention sees, or None where attention has no window."""
        config = self.layout.text_config
        return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None

    def _enter_decode(
        self, arguments: dict[str, Any], past: Any, embeds: Tensor, modalities: Tensor | None
    ) -> dict[str, Any]:
        if not cache.trimmed(past):
            if past in self._text_only and (modalities is None or not bool(modalities.any())):
                return arguments
            raise UnsupportedError(
                complaint(
                    "a continued KV cache",
                    "have been filled inside this context, by a prompt with its images",
                    type(past).__name__,
                    "start the prompt again inside 'with trim(model, ...)'",
                )
            )
        if modalities is not None and bool(modalities.any()):
            generating.refuse_new_pictures()
        layers: list[cache.TrimLayer] = past.layers
        prompt = layers[0].prompt
        prompt.require_active()
        columns, rows = embeds.shape[1], embeds.shape[0]
        refusals.of_window(self, layers[0].get_seq_length() + columns)
        prompt.step += 1
        mask = arguments.get("attention_mask")
        new_valid = None
        if columns > 1 and isinstance(mask, Tensor) and mask.dim() == 2:
            new_valid = mask[:, -columns:].bool()
            new_valid = None if bool(new_valid.all()) else new_valid
        prompt.append(new_valid, columns, rows)
        run = Decode(self, prompt, layers, columns)
        self._begin_pass(run, embeds.device, run.observes)
        positions = arguments.get("position_ids")
        if positions is None:
            start = layers[0].get_seq_length()
            positions = torch.arange(start, start + columns, device=embeds.device).unsqueeze(0)
        run.hook_layers(positions)
        # Every layer has its own length: the one mask that the model would build fits none but the first.
        return {**arguments, "attention_mask": None}

    def _begin_pass(self, run: Prefill | Decode, device: torch.device, observes: bool) -> None:
        self._pass = run
        self._mark = ("prefill" if isinstance(run, Prefill) else "decode", self.clock.start(device))
        if observes:
            self._switch_off = attention.switch_on(self.layout.text_config)

    def _end_pass(self) -> None:
        run, self._pass = self._pass, None
        if run is not None:
            run.close()
        if self._switch_off is not None:
            self._switch_off()
            self._switch_off = None

    def _leave_model(self, module: nn.Module, args: Any, output: Any) -> Any:
        run = self._pass
        if torch.compiler.is_compiling() or self.vision.suspended or self._thread not in (None, threading.get_ident()):
            return None
        if self.untouched is not None:
            return self.untouched.leave(output)
        if run is None:
            return None
        if output is None:  # the forward raised
            self._end_pass()
            return None
        run.leave()
        self._end_pass()
        if self._mark is not None:
            self.clock.stop(*self._mark)
            self._mark = None
        if not isinstance(run, Prefill):
            return None
        run.require_pruned()
        self.on_prompt(run.prompt)
        return _with_hidden(output, run.restore_length)

    # ------------------------------------------------------------------ what sites ask for

    def grid_of(self, prompt: Prompt, ids: Tensor | None = None, valid: Tensor | None = None) -> Grid:
        """The grid of the current tokens ``ids`` [B, N], or of all visual tokens of the prompt."""
        if prompt.placement is None:
            raise encoded_elsewhere("the visual grid")
        start = prompt.start
        where = start.vis_pos if ids is None else start.vis_pos.gather(1, ids)
        return prompt.placement.grid(where, start.vis_valid if valid is None else valid)


def _with_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``output`` with its last hidden state changed, for dataclass and tuple outputs alike."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.last_hidden_state = change(output.last_hidden_state)
    return output
