"""Decode: one forward after prefill. Does nothing per layer unless a temporal part acts or a row is padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.sites import Need, StepSite
from tokentrim.contracts.strategy import Temporal, TemporalScorer
from tokentrim.engine import recording
from tokentrim.engine.context import Context
from tokentrim.engine.deciding import Providers, decide_order, decide_step
from tokentrim.engine.seams import attention_rows, outputs, positions
from tokentrim.engine.seams.attention import Attended, AttentionCall
from tokentrim.engine.seams.masks import causal_mask
from tokentrim.engine.tokens.cache import TrimLayer
from tokentrim.engine.tokens.eviction import evict, evict_first, fronted
from tokentrim.engine.tokens.prompt import TEMPORAL, Prompt
from tokentrim.engine.tokens.stream import Stream, spread

_MASKLESS = ("sdpa", "flash")
"""Kernels that take no mask for one query over unpadded keys, whatever the length of each layer."""
_SOFTMAX = ("sdpa", "eager")
"""Kernels that compute a plain softmax where nothing else is asked of them."""


@dataclass
class Decode:
    """One pass over new tokens."""

    context: Context
    prompt: Prompt
    layers: list[TrimLayer]
    queries: int
    acting: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    masks: dict[tuple[int, int], Any] = field(default_factory=dict[tuple[int, int], Any])
    handles: list[Any] = field(default_factory=list[Any])

    def __post_init__(self) -> None:
        if not self.context.compiles or self.queries != 1:
            self._settle()
        self.streams = [layer.held_stream for layer in self.layers]
        self.plan_evictions()
        if self.acting:
            with self.context.clock.timed("selection", self.streams[0].vis_pos.device):
                self._arrange()
                self._evict_ranked()
        self.observes = self._observes()

    def catch_up(self) -> None:
        """Make up for evictions that compiled steps have put off, because this step runs as usual."""
        self._settle()
        self.streams = [layer.held_stream for layer in self.layers]
        self.observes = self._observes()

    def _settle(self) -> None:
        for layer in self.layers:
            layer.settle()

    def _observes(self) -> bool:
        """Whether this step's attention has to be read, masked or edited."""
        prompt = self.prompt
        unpadded = prompt.appended_valid is None and prompt.shown is None and all(s.valid is None for s in self.streams)
        plain = unpadded and self.queries == 1 and self.context.implementation.startswith(_MASKLESS)
        # A window that is exactly full hides nothing, but the model makes a mask of it: of the first layer's length.
        plain = plain and (self.context.window is None or self.layers[0].get_seq_length() + 1 < self.context.window)
        return bool(self.acting) or not plain or self.context.edits_steps

    def plan_evictions(self) -> None:
        """Which layers hold more visual entries than the temporal part allows at this step."""
        part, prompt, shape = self.prompt.temporal, self.prompt, self.context.shape
        if part is None:
            return
        for index, layer in enumerate(self.layers):
            allowed = {n: part.count(prompt.step, index, n, shape) for n in set(layer.prefill_counts)}
            counts = tuple(min(held, allowed[n]) for held, n in zip(layer.n_visual, layer.prefill_counts, strict=True))
            # Where the count depends on the data, only asking tells whether this step evicts.
            if counts != layer.n_visual or not part.count_is_static:
                self.acting[index] = counts

    def _arrange(self) -> None:
        """Before a layer's first eviction: rows end flush right, and who leaves in a known order stands in it."""
        part = self.prompt.temporal
        made: dict[int, tuple[Stream, Tensor]] = {}  # layers that share a stream share its order
        for index in self.acting:
            held, stream = self.layers[index], self.layers[index].held_stream
            if isinstance(part, TemporalScorer) and part.ranks_once():
                if not held.ranked:
                    with torch.no_grad():
                        order = decide_order(part, self._site(part, index, held, {}))
                    held.rearrange(*fronted(stream, order))
                    held.ranked, held.prompt_row = True, None  # the row has said all that it will be asked
            elif not stream.flush:
                if id(stream) not in made:
                    made[id(stream)] = fronted(stream)
                held.rearrange(*made[id(stream)])

    def _evict_ranked(self) -> None:
        """Evict by offset where the order of leaving is known; nothing else has to be seen of this step."""
        for index in [index for index in self.acting if self.layers[index].ranked]:
            held, counts = self.layers[index], self.acting.pop(index)
            if counts != held.held_stream.n_visual:
                after, moves = evict_first(held.held_stream, counts)
                held.evict(after, moves)
                self.note(index, after.vis_ids)

    def note(self, layer: int, ids: Tensor) -> None:
        """Count an eviction, and record the raster numbers ``ids`` [B, N] of what is left."""
        self.prompt.events += 1
        if self.prompt.trace is not None:
            self.prompt.trace.evictions.setdefault(layer, []).append((self.prompt.step, ids))

    # ------------------------------------------------------------------ positions

    def hook_layers(self, position_ids: Tensor) -> None:
        """Under the renumber policy each stretch of layers continues from its own length."""
        made: dict[int, tuple[Tensor | None, tuple[Tensor, Tensor]]] = {}

        def make(shift: Tensor) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if id(shift) not in made:
                    hidden = args[0] if args else kwargs["hidden_states"]
                    ids = position_ids - shift.unsqueeze(1)
                    embeddings = self.context.layout.rotary(hidden, positions.of_rotary(ids))
                    made[id(shift)] = (positions.of_layers(ids), embeddings)
                ids, embeddings = made[id(shift)]
                return args, {**kwargs, "position_ids": ids, "position_embeddings": embeddings}

            return hook

        for layer, module in zip(self.layers, self.context.layout.layers, strict=True):
            if layer.shift is not None:
                self.handles.append(module.register_forward_pre_hook(make(layer.shift), with_kwargs=True, prepend=True))

    # ------------------------------------------------------------------ inside attention

    def attend(self, layer: int, call: AttentionCall) -> Attended:
        """Evict what has to go, then attend to the rest under this layer's own mask."""
        held = self.layers[layer]
        if layer in self.acting:
            with self.context.clock.timed("selection", call.query.device):
                weights = self._evict(layer, held, call)
            if held.keys is not None and held.values is not None:
                call = replace(call, key=held.keys, value=held.values)
            if weights is not None and self._may_reuse(call):
                mixed, weights = attention_rows.attend(weights, call.value, call.query)
                return mixed, weights if self.context.implementation == "eager" else None  # as the kernel would
        stream = held.held_stream
        kernel = self.context.around_attention(layer, call.kernel, stream, self.prompt)
        return replace(call, kernel=kernel, mask=self._mask(stream, call.key, call.query)).run()

    def _may_reuse(self, call: AttentionCall) -> bool:
        """Whether attention is nothing but the weights that were read times the values, at the kernel's precision."""
        query, options = call.query, call.options
        plain = self.context.implementation in _SOFTMAX and not self.context.edits_attention
        altered = options.get("dropout") or any(options.get(name) is not None for name in ("softcap", "s_aux"))
        # The weights were read without a gradient.
        learns = torch.is_grad_enabled() and (query.requires_grad or call.key.requires_grad)
        # In half precision the fused kernels keep more digits of the weights.
        return plain and not altered and not learns and self.queries == 1 and query.dtype == torch.float32

    def _evict(self, layer: int, held: TrimLayer, call: AttentionCall) -> Tensor | None:
        """Evict what has to go; returns the current row over the columns that are left, if it was read.

        The keys are the larger half of what a decode step reads of the cache: reading them once more for the kernel
        would cost more than the eviction saves.
        """
        part, stream = self.prompt.temporal, held.held_stream
        if part is None:
            return None
        read: list[Tensor] = []

        def current_row() -> Tensor:
            valid = self._valid(stream, call.key.shape[2])
            read.append(attention_rows.last_row(call.query, call.key, call.scaling, None, valid))
            return self.context.heads.whole(attention_rows.pick_visual(read[0], stream.vis_pos)[:, :, 0])

        site = self._site(part, layer, held, {Need.LAST_ROW: current_row})
        with torch.no_grad():
            selection = decide_step(part, self.acting[layer], site)
        if self.context.doubts.check_indices:
            selection.check_indices(stream.n_visual)
        if selection.counts == stream.n_visual:
            return read[0] if read else None
        after, moves = evict(stream, selection)
        held.evict(after, moves)
        if held.prompt_row is not None:
            slots = selection.kept[:, : max(selection.counts, default=0)].clamp(min=0)
            held.prompt_row = held.prompt_row.gather(2, slots[:, None].expand(-1, held.prompt_row.shape[1], -1))
        self.note(layer, after.vis_ids)
        if not read:
            return None
        weights = moves.of_weights(read[0])
        valid = self._valid(after, weights.shape[-1])
        return weights if valid is None else weights.masked_fill(~valid[:, None, None], 0.0)

    def _site(self, part: Temporal, layer: int, held: TrimLayer, brought: Providers) -> StepSite:
        """What a temporal part may see in one layer; ``brought`` provides what only this step knows."""
        prompt, stream, whole = self.prompt, held.held_stream, self.context.heads.whole
        return StepSite(
            shape=self.context.shape,
            n_visual=stream.n_visual,
            ids=stream.vis_ids,
            valid=stream.vis_valid,
            state=prompt.state_of(TEMPORAL),
            notes=recording.notes(),
            keys_of_rows=prompt.sample_keys,
            needs=part.needed(),
            providers={
                Need.PROMPT_ROW: lambda: held.prompt_row,
                Need.KEYS: lambda: whole(attention_rows.pick_rows(held.keys, stream.vis_pos)),  # type: ignore[arg-type]
                Need.VALUES: lambda: whole(attention_rows.pick_rows(held.values, stream.vis_pos)),  # type: ignore[arg-type]
                Need.RANDOM: lambda: None,
                **brought,
            },
            step=prompt.step,
            layer=layer,
        )

    def _valid(self, stream: Stream, keys: int) -> Tensor | None:
        """bool [B, keys]: this layer's columns that may be seen, appended ones included; None when all may."""
        appended, shown, front = self.prompt.appended_valid, self.prompt.shown, stream.valid
        if front is None and appended is None and shown is None:
            return None
        device, rows = stream.vis_pos.device, stream.rows
        if shown is not None:
            shown = shown.gather(1, stream.columns)
            front = shown if front is None else front & shown
        if front is None:
            front = torch.ones(rows, stream.length, dtype=torch.bool, device=device)
        behind = keys - stream.length
        if appended is None:
            appended = torch.ones(rows, behind, dtype=torch.bool, device=device)
        return torch.cat([front, appended[:, :behind]], dim=1)

    def _mask(self, stream: Stream, key: Tensor, query: Tensor) -> Any:
        where = (id(stream), key.shape[2])
        if where not in self.masks:
            self.masks[where] = causal_mask(
                self.context.implementation,
                self.context.layout.text_config,
                batch=query.shape[0],
                queries=query.shape[2],
                keys=key.shape[2],
                valid=self._valid(stream, key.shape[2]),
                dtype=query.dtype,
                device=query.device,
            )
        return self.masks[where]

    # ------------------------------------------------------------------ leaving

    def leave(self) -> None:
        """Record what each layer holds now."""
        self.prompt.held.append([layer.n_visual for layer in self.layers])
        if self.prompt.trace is not None:
            self.prompt.trace.steps = self.prompt.step

    def with_whole_length(self, output: Any) -> Any:
        """The forward's output with attention weights [B, H, T_new, K], where they are asked for, over the columns of
        the prompt and all that followed; zeros where an entry is gone.
        """

        def whole(layer: int, weights: Tensor) -> Tensor:
            held, length = self.layers[layer], self.prompt.length
            total = length + held.appended
            behind = torch.arange(length, total, device=weights.device).expand(weights.shape[0], -1)
            return spread(weights, torch.cat([held.held_stream.places(total), behind], dim=1), total, 3)

        return outputs.changed(output, len(self.layers), states=lambda layer, states: states, maps=whole)

    def close(self) -> None:
        """Remove the layer hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
