"""The engine: hooks on one model, and the routing of every forward to a prefill or a decode pass.

It hooks three modules: the entry (which sees ``input_ids`` and so knows where the visual tokens are), the language
model (which sees embeddings, positions, the 2-D mask and the cache), and the vision tower (whose attention some
strategies read). Decoder layers are hooked only for the duration of a pass that changes something in them, and the
attention function is switched to the wrapper only for a pass that reads or masks attention itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from tokentrim import attention, cache, planning
from tokentrim.adapter import Adapter, Layout, bind
from tokentrim.clock import Clock
from tokentrim.deciding import begin_states
from tokentrim.decode import Decode
from tokentrim.errors import DataError, EngineError, StrategyError, UnsupportedError, complaint
from tokentrim.prefill import Prefill
from tokentrim.prompt import Prompt
from tokentrim.shape import ModelShape
from tokentrim.sites import Grid, Need
from tokentrim.strategy import PromptInfo, Strategy
from tokentrim.stream import Stream
from tokentrim.trace import Trace
from tokentrim.vision import VisionCapture


class Engine:
    """Applies one strategy to one model while installed.

    Attributes:
        layout: the located modules.
        strategy: what decides.
        clock: durations by name: prefill, decode, vision, selection.
        prompts: called with every prompt when its prefill is over.
        evidence: relevance for the next prompt, float [B, N] or a list of rows.
        check_indices: check every Selection's indices on the device (costs a synchronisation; for tests).
    """

    def __init__(self, adapter: Adapter, layout: Layout, strategy: Strategy, *, record: bool = True) -> None:
        planning.check(strategy, layout.shape, vision_blocks=len(layout.vision_attentions))
        self.adapter, self.layout, self.strategy, self.record = adapter, layout, strategy, record
        self.clock = Clock()
        self.check_indices = False
        self.evidence: Any = None
        self.on_prompt: Callable[[Prompt], None] = lambda prompt: None
        self.spatial, self.temporal = strategy.spatial_parts, strategy.temporal_part
        self.renumbers = any(part.positions == "renumber" for part in self.spatial)
        self.wants_prompt_row = self.temporal is not None and Need.PROMPT_ROW in self.temporal.needed()
        needed = strategy.needed()
        blocks = [
            block % len(layout.vision_attentions)
            for part in self.spatial
            if Need.VISION_ROWS in part.needed()
            for block in part.wants_vision_blocks()
        ]
        self.vision = VisionCapture(layout, frozenset(blocks), self.clock, wants_keys=Need.RANDOM in needed)
        self._undo: list[Callable[[], None]] = []
        self._pass: Prefill | Decode | None = None
        self._visual: Tensor | None = None
        self._input_ids: Tensor | None = None
        self._before: str | None = None
        self._mark: Any = None
        self._text_only: WeakSet[Any] = WeakSet()

    @property
    def shape(self) -> ModelShape:
        """The model's numbers."""
        return self.layout.shape

    @property
    def implementation(self) -> str:
        """The attention implementation that the model was set to."""
        return self._before or attention.implementation_of(self.layout.text_config)

    @property
    def installed(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._undo)

    # ------------------------------------------------------------------ installing

    def install(self) -> None:
        """Hook the model; on any failure nothing remains."""
        layout = self.layout
        try:
            for handle in (
                layout.entry.register_forward_pre_hook(self._enter_entry, with_kwargs=True),
                layout.entry.register_forward_hook(self._leave_entry, always_call=True),
                layout.language_model.register_forward_pre_hook(self._enter_model, with_kwargs=True),
                layout.language_model.register_forward_hook(self._leave_model, always_call=True),
            ):
                self._undo.append(handle.remove)
            self._undo += self.vision.hook()
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
        arguments = bind(module, args, kwargs)
        self._visual = self._input_ids = None
        past = arguments.get("past_key_values")
        ids, embeds = arguments.get("input_ids"), arguments.get("inputs_embeds")
        columns = ids.shape[1] if ids is not None else embeds.shape[1] if embeds is not None else 0
        if past is not None and past.get_seq_length() > 0 and columns == 1:
            return  # a decode step: no visual token can be among its input
        self._visual = self.adapter.visual_mask(self.layout, arguments)
        self._input_ids = ids
        features = self.adapter.features(arguments)
        if features is not None and not self.vision.is_of(features):
            self.vision.rows, self.vision.keys = {}, None  # encoded elsewhere: what was captured is of other images

    def _leave_entry(self, module: nn.Module, args: Any, output: Any) -> None:
        self._visual = self._input_ids = None

    # ------------------------------------------------------------------ the language model

    def _enter_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._end_pass()  # a pass that an exception cut short
        arguments = bind(module, args, kwargs)
        past, embeds = arguments.get("past_key_values"), arguments.get("inputs_embeds")
        if embeds is None:
            return None  # the language model called on its own, with text
        seen = past is not None and past.get_seq_length() > 0
        visual = self._visual
        if seen:
            return (), self._enter_decode(arguments, past, embeds, visual)
        if visual is None:
            return None
        return (), self._enter_prefill(arguments, past, embeds, visual)

    def _enter_prefill(self, arguments: dict[str, Any], past: Any, embeds: Tensor, visual: Tensor) -> dict[str, Any]:
        mask = arguments.get("attention_mask")
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            raise UnsupportedError(
                complaint(
                    "attention_mask of a trimmed model",
                    "be 2-D [batch, tokens]",
                    tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__,
                    "pass the processor's attention_mask",
                )
            )
        stream = Stream.of_prompt(visual, mask)
        prompt = self._new_prompt(stream, mask)
        if not any(stream.n_visual):
            # Nothing to prune: the forward and its decode steps run untouched, and the report says so.
            if past is not None:
                self._text_only.add(past)
            self.on_prompt(prompt)
            return arguments
        decisions = planning.decisions(self.spatial, self.shape, stream.n_visual)
        self._refuse(arguments, stream, decisions)
        use_cache = arguments.get("use_cache")
        use_cache = self.layout.text_config.use_cache if use_cache is None else use_cache
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

    def _new_prompt(self, stream: Stream, mask: Tensor | None) -> Prompt:
        info = PromptInfo(stream.n_visual, self.shape)
        keys = stream.vis_pos.new_zeros(stream.rows)
        if Need.RANDOM in self.strategy.needed() and any(stream.n_visual):
            keys = self.vision.sample_keys(stream.n_visual, self._input_ids, mask).to(stream.vis_pos.device)
        layers = self.shape.n_layers
        return Prompt(
            length=stream.length,
            start=stream,
            spatial=self.spatial,
            temporal=self.temporal,
            sample_keys=keys,
            is_active=lambda: self.installed,
            n_layers=layers,
            evidence=self._take_evidence(stream),
            states=begin_states(self.spatial, self.temporal, lambda part: part.begin(info)),
            trace=Trace(stream.n_visual, layers) if self.record else None,
        )

    def _refuse(self, arguments: dict[str, Any], stream: Stream, decisions: Sequence[planning.Decision]) -> None:
        """Raise UnsupportedError for what would come out wrong."""
        model = self.layout.language_model
        if model.training and getattr(model, "gradient_checkpointing", False):
            raise UnsupportedError(
                complaint(
                    "gradient checkpointing",
                    "be off while a model is trimmed: it runs layers twice",
                    "on",
                    "call model.gradient_checkpointing_disable()",
                )
            )
        if arguments.get("use_cache") is False and self.temporal is not None:
            raise UnsupportedError(
                complaint(
                    f"temporal strategy {self.temporal.label()!r}",
                    "have a KV cache to act on",
                    "use_cache=False",
                    "drop use_cache=False, or the temporal part",
                )
            )
        for row in stream.ends_visual:
            # Its hidden state at the end may be dropped, and with it the logits of the first new token.
            if any(not d.part.count_is_static or d.counts[row] < stream.n_visual[row] for d in decisions):
                raise DataError(
                    complaint(
                        f"the last token of row {row} of a pruned prompt",
                        "be text",
                        "a visual token",
                        "put the question, or the template's closing tokens, after the image",
                    )
                )
        self._check_window(stream.length)

    @property
    def window(self) -> int | None:
        """Tokens that sliding-window attention sees, or None where attention has no window."""
        config = self.layout.text_config
        return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None

    def _check_window(self, length: int) -> None:
        window = self.window
        if window is not None and length > window:
            raise UnsupportedError(
                complaint(
                    "a sequence under sliding-window attention",
                    f"be at most the window, {window} tokens long",
                    length,
                    "shorten the prompt or the answer, or use a model without a sliding window",
                )
            )

    def _enter_decode(
        self, arguments: dict[str, Any], past: Any, embeds: Tensor, visual: Tensor | None
    ) -> dict[str, Any]:
        if not cache.trimmed(past):
            if past in self._text_only and (visual is None or not bool(visual.any())):
                return arguments
            raise UnsupportedError(
                complaint(
                    "a continued KV cache",
                    "have been filled inside this context, by a prompt with its images",
                    type(past).__name__,
                    "start the prompt again inside 'with trim(model, ...)'",
                )
            )
        if visual is not None and bool(visual.any()):
            raise UnsupportedError(
                complaint(
                    "a continued prompt",
                    "bring text only",
                    "new images (or a prompt fed in chunks)",
                    "start a new prompt that holds all images, without prefill_chunk_size",
                )
            )
        layers: list[cache.TrimLayer] = past.layers
        prompt = layers[0].prompt
        prompt.require_active()
        columns, rows = embeds.shape[1], embeds.shape[0]
        self._check_window(layers[0].get_seq_length() + columns)
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
            config = self.layout.text_config
            self._before = attention.implementation_of(config)
            attention.switch(config, attention.wrapped_name(self._before))

    def _end_pass(self) -> None:
        run, self._pass = self._pass, None
        if run is not None:
            run.close()
        if self._before is not None:
            attention.switch(self.layout.text_config, self._before)
            self._before = None

    def _leave_model(self, module: nn.Module, args: Any, output: Any) -> Any:
        run = self._pass
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
        self._check_pruned(run)
        self.on_prompt(run.prompt)
        return _with_hidden(output, run.restore_length)

    def _check_pruned(self, run: Prefill) -> None:
        """No silent fallback: every decision that was due has been taken."""
        promised = list(run.prompt.start.n_visual)
        for decision in run.decisions:
            if decision.part.count_is_static:
                promised = [min(n, count) for n, count in zip(promised, decision.counts, strict=True)]
                ran = run.stream_of(decision.boundary).n_visual
                if any(n > limit for n, limit in zip(ran, promised, strict=True)):
                    raise EngineError(
                        complaint(
                            f"layer {decision.boundary}",
                            f"run with {promised} visual tokens",
                            ran,
                            "pruning did not happen: please report this model and call",
                        )
                    )

    # ------------------------------------------------------------------ what sites ask for

    def grid_of(self, n_visual: tuple[int, ...], ids: Tensor, valid: Tensor) -> Grid:
        """The grid of the current tokens ``ids`` [B, N]."""
        grid = self.adapter.grid(self.layout, n_visual, ids.device)

        def pick(tensor: Tensor) -> Tensor:
            return tensor.gather(1, ids).masked_fill(~valid, -1)

        return Grid(pick(grid.image), pick(grid.frame), pick(grid.row), pick(grid.col), grid.rows, grid.cols)

    def _take_evidence(self, stream: Stream) -> Tensor | None:
        given, self.evidence = self.evidence, None
        if given is None or not any(stream.n_visual):
            return None
        lines = [torch.as_tensor(row, dtype=torch.float32) for row in given]
        if not lines or stream.rows % len(lines):
            raise DataError(
                complaint(
                    "evidence",
                    f"have one row per sample ({stream.rows} rows in the prompt)",
                    len(lines),
                    "pass a list with one relevance vector per sample",
                )
            )
        repeats = stream.rows // len(lines)
        lines = [line for line in lines for _ in range(repeats)]
        full = torch.zeros(stream.rows, max(stream.n_visual))
        for row, (line, n) in enumerate(zip(lines, stream.n_visual, strict=True)):
            if line.shape != (n,):
                raise DataError(
                    complaint(
                        f"evidence of row {row}",
                        f"score its {n} visual tokens",
                        tuple(line.shape),
                        "compute it for this model's visual grid",
                    )
                )
            full[row, :n] = line
        return full.to(stream.vis_pos.device)

    def evidence_of(self, prompt: Prompt, ids: Tensor) -> Tensor:
        """Relevance of the current tokens ``ids`` [B, N]."""
        if prompt.evidence is None:
            raise StrategyError(
                complaint(
                    "a strategy that reads evidence",
                    "be given it before each prompt",
                    None,
                    "call session.annotate(evidence=...); only tasks that know the answer's place can",
                )
            )
        return prompt.evidence.gather(1, ids)


def _with_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``output`` with its last hidden state changed, for dataclass and tuple outputs alike."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    output.last_hidden_state = change(output.last_hidden_state)
    return output
