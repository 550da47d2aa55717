"""Decode: one forward after prefill. Does nothing per layer unless a temporal part acts or a row is padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.answers import blamed, name_of
from tokentrim.contracts.extras import CacheMerger
from tokentrim.contracts.selection import Selection, require_tensor
from tokentrim.contracts.sites import Need, StepSite
from tokentrim.contracts.strategy import Temporal, TemporalScorer
from tokentrim.engine import recording
from tokentrim.engine.context import Context
from tokentrim.engine.deciding import Providers, decide, decide_order
from tokentrim.engine.seams import attention_rows, outputs, positions
from tokentrim.engine.seams.attention import Attended, AttentionCall
from tokentrim.engine.seams.masks import causal_mask
from tokentrim.engine.seams.undo import Undo, hook
from tokentrim.engine.tokens.cache import TrimLayer
from tokentrim.engine.tokens.eviction import evict, evict_first, fronted
from tokentrim.engine.tokens.prompt import TEMPORAL, Prompt
from tokentrim.engine.tokens.stream import Sight, Stream, moved, spread

_MASKLESS = ("sdpa", "flash")
"""Kernels that take no mask for one query over unpadded keys, whatever the length of each layer."""
_SOFTMAX = ("sdpa", "eager")
"""Kernels that compute a plain softmax where nothing else is asked of them."""


@dataclass
class Decode:
    """One pass over new tokens.

    Attributes:
        acting: per layer in which the temporal part decides at this step, entries that each row may see.
        read: layers whose row of the current token others rank by, or that add it up.
        lenders: of these, those that others rank by.
        lent: float [B, H, N + 1] by raster number, the rows that were read so, by layer; the last column is padding.
        seen: per layer that holds more than it sees, how many entries each row saw.
    """

    context: Context
    prompt: Prompt
    layers: list[TrimLayer]
    queries: int
    acting: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    read: frozenset[int] = frozenset()
    lenders: frozenset[int] = frozenset()
    lent: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    seen: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    masks: dict[tuple[int, int, int | None], Any] = field(default_factory=dict[tuple[int, int, int | None], Any])
    undo: Undo = field(default_factory=Undo)

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
        return bool(self.acting or self.read) or not plain or self.context.edits_steps

    def plan_evictions(self) -> None:
        """Which layers hold more visual entries than the temporal part allows at this step, and whose rows it reads."""
        part, prompt, shape = self.prompt.temporal, self.prompt, self.context.shape
        if part is None:
            return
        for index, layer in enumerate(self.layers):
            allowed = {n: part.count(prompt.step, index, n, shape) for n in set(layer.prefill_counts)}
            counts = tuple(min(held, allowed[n]) for held, n in zip(layer.n_visual, layer.prefill_counts, strict=True))
            # Where the count depends on the data, only asking tells whether this step evicts.
            if counts != layer.n_visual or not part.count_is_static:
                self.acting[index] = counts
            elif not part.evicts():
                self.note(index, layer.held_stream.vis_ids, events=0)
        needs = part.needed()
        if Need.LAST_ROW in needs:
            self.lenders = frozenset(source for i in self.acting if (source := part.row_layer(i, shape)) != i)
        self.read = frozenset(range(len(self.layers))) if Need.ACCUMULATED in needs else self.lenders

    def _arrange(self) -> None:
        """Before a layer's first eviction: rows end flush right, and who leaves in a known order stands in it."""
        part = self.prompt.temporal
        if part is None or not part.evicts():
            return
        made: dict[int, tuple[Stream, Tensor]] = {}  # layers that share a stream share its order
        for index in self.acting:
            held, stream = self.layers[index], self.layers[index].held_stream
            if isinstance(part, TemporalScorer) and part.ranks_once():
                if not held.ranked:
                    with torch.no_grad():
                        order = decide_order(part, self._site(part, index, held, {}), self.context.doubts)
                    held.rearrange(*fronted(stream, order))
                    held.ranked, held.rows = True, {}  # the row has said all that it will be asked
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
                if isinstance(self.prompt.temporal, CacheMerger):
                    self._merge(self.prompt.temporal, held, after)
                held.evict(after, moves)
                self.note(index, after.vis_ids)

    def _merge(self, part: CacheMerger, held: TrimLayer, after: Stream) -> None:
        """Before an eviction that leaves ``after``, put what the part makes of it in the place of what stays."""
        stream, keys, values = held.held_stream, held.keys, held.values
        if keys is None or values is None or not max(after.n_visual):
            return
        # In raster order, padding behind, whatever order they leave in.
        last = torch.iinfo(stream.vis_ids.dtype).max
        order = stream.vis_ids.masked_fill(~stream.vis_valid, last).argsort(dim=1)
        columns, valid = stream.vis_pos.gather(1, order), stream.vis_valid.gather(1, order)
        leaving = order.shape[1] - torch.tensor(after.n_visual, device=order.device).unsqueeze(1)
        kept = Selection.from_mask(valid & (order >= leaving), after.n_visual).kept
        whole_keys, whole_values = (attention_rows.pick_rows(one, columns) for one in (keys, values))
        with torch.no_grad(), blamed(lambda: f"merged() of {name_of(part)!r}"):
            found = part.merged(whole_keys, whole_values, kept, valid)
            for what, like in zip(found, (keys, values), strict=True):
                shape = (*like.shape[:2], kept.shape[1], like.shape[3])
                require_tensor("merged keys and values", what, shape, device=like.device, hint="give the kept ones")
        held.overwrite(columns.gather(1, kept.clamp(min=0)), kept >= 0, *found)

    def note(self, layer: int, ids: Tensor, events: int = 1) -> None:
        """Count a selection, and record the raster numbers ``ids`` [B, N] of what it leaves to be seen."""
        self.prompt.events += events
        trace = self.prompt.trace
        if trace is not None and (events or layer in trace.evictions):
            trace.evictions.setdefault(layer, []).append((self.prompt.step, ids))

    # ------------------------------------------------------------------ positions

    def hook_layers(self, position_ids: Tensor) -> None:
        """Under the renumber policy each stretch of layers continues from its own length."""
        made: dict[tuple[int, str], tuple[Tensor | None, tuple[Tensor, Tensor]]] = {}
        layout = self.context.layout

        def make(number: int, shift: Tensor) -> Callable[..., Any]:
            def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                key = id(shift), layout.rotary_kind(number)
                if key not in made:
                    hidden = (args[0] if args else kwargs["hidden_states"]).to(shift.device)
                    ids = position_ids.to(shift.device) - shift.unsqueeze(1)
                    embeddings = layout.position_embeddings(number, hidden, positions.of_rotary(ids))
                    made[key] = (positions.of_layers(ids), moved(embeddings, shift.device))
                ids, embeddings = made[key]
                return args, {**kwargs, "position_ids": ids, "position_embeddings": embeddings}

            return before

        for number, (layer, module) in enumerate(zip(self.layers, layout.layers, strict=True)):
            if layer.shift is not None:
                hook(module, make(number, layer.shift), self.undo, before=True, first=True)

    # ------------------------------------------------------------------ inside attention

    def attend(self, layer: int, call: AttentionCall) -> Attended:
        """Let go what has to, then attend to the rest under this layer's own mask."""
        held, unseen = self.layers[layer], None
        if layer in self.acting or layer in self.read:
            with self.context.clock.timed("selection", call.query.device):
                weights, unseen = self._decide(layer, held, call)
            if held.keys is not None and held.values is not None:
                call = replace(call, key=held.keys, value=held.values)
            if weights is not None and self._may_reuse(call):
                mixed, weights = attention_rows.attend(weights, call.value, call.query)
                return mixed, weights if self.context.implementation == "eager" else None  # as the kernel would
        stream = held.held_stream
        kernel = self.context.around_attention(layer, call.kernel, stream, self.prompt)
        return replace(call, kernel=kernel, mask=self._mask(layer, stream, call.key, call.query, unseen)).run()

    def _may_reuse(self, call: AttentionCall) -> bool:
        """Whether attention is nothing but the weights that were read times the values, at the kernel's precision."""
        query, options = call.query, call.options
        plain = self.context.implementation in _SOFTMAX and not self.context.edits_attention
        altered = options.get("dropout") or any(options.get(name) is not None for name in ("softcap", "s_aux"))
        # The weights were read without a gradient.
        learns = torch.is_grad_enabled() and (query.requires_grad or call.key.requires_grad)
        # In half precision the fused kernels keep more digits of the weights.
        return plain and not altered and not learns and self.queries == 1 and query.dtype == torch.float32

    def _decide(self, layer: int, held: TrimLayer, call: AttentionCall) -> tuple[Tensor | None, Tensor | None]:
        """Choose what this layer sees at this step, and read the row that this or a later layer chooses by.

        The keys are the larger half of what a decode step reads of the cache: reading them once more for the kernel
        would cost more than the rest of an eviction.

        Returns:
            The current row [B, H, 1, K] over the columns that are left, if it was read, and bool [B, K] of columns
            that stay in the cache unseen, if any do.
        """
        part, stream = self.prompt.temporal, held.held_stream
        if part is None:
            return None, None
        weights: list[Tensor] = []

        def own_row() -> Tensor:
            if not weights:
                keys = call.key.shape[2]
                valid, sight = self._valid(stream, keys), self._sight(layer, stream, keys)
                weights.append(attention_rows.last_row(call.query, call.key, call.scaling, None, valid, sight))
            return self.context.heads.whole(attention_rows.pick_visual(weights[0], stream.vis_pos)[:, :, 0])

        if layer in self.read:
            with torch.no_grad():
                self._lend(layer, held, own_row())
        if layer not in self.acting:
            return None, None  # nothing is hidden: the kernel answers, to the bit
        source = part.row_layer(layer, self.context.shape)
        row = own_row if source == layer else lambda: self._borrowed(source, stream)
        site = self._site(part, layer, held, {Need.LAST_ROW: row})
        with torch.no_grad():
            selection = decide(part, self.acting[layer], site, self.context.doubts)
        if not part.evicts():
            return self._hide(layer, stream, selection, weights, call.key.shape[2])
        return self._evict(layer, held, selection, weights), None

    def _lend(self, layer: int, held: TrimLayer, row: Tensor) -> None:
        """Keep a layer's row [B, H, N] of the current token for who ranks by it: later layers, or later steps."""
        if Need.ACCUMULATED in held.rows:
            held.rows[Need.ACCUMULATED] = held.rows[Need.ACCUMULATED] + row
        if layer not in self.lenders:
            return
        width = max(self.prompt.start.n_visual)
        ids = held.held_stream.vis_ids
        places = ids.masked_fill(ids < 0, width).unsqueeze(1).expand_as(row)
        self.lent[layer] = row.new_zeros(*row.shape[:2], width + 1).scatter(2, places, row)
        self.lent[layer][:, :, width] = 0

    def _borrowed(self, source: int, stream: Stream) -> Tensor:
        """The row of layer ``source`` at the entries of ``stream``; 0 where that layer does not have them."""
        ids = stream.vis_ids
        lent = self.lent[source].to(ids.device)  # the layer that lends may run elsewhere
        places = ids.masked_fill(ids < 0, lent.shape[2] - 1)
        return lent.gather(2, places.unsqueeze(1).expand(-1, lent.shape[1], -1))

    def _hide(
        self, layer: int, stream: Stream, selection: Selection, weights: list[Tensor], keys: int
    ) -> tuple[Tensor | None, Tensor]:
        """Leave in the cache what is not chosen, unseen: the row, and bool [B, K] of the columns that are hidden."""
        kept = selection.kept[:, : max(selection.counts, default=0)]
        real, safe = kept >= 0, kept.clamp(min=0)
        # A column that does not exist takes what is written for padding.
        unseen = torch.zeros(stream.rows, keys + 1, dtype=torch.bool, device=kept.device)
        unseen.scatter_(1, stream.vis_pos.masked_fill(~stream.vis_valid, keys), True)
        unseen.scatter_(1, stream.vis_pos.gather(1, safe).masked_fill(~real, keys), False)
        unseen = unseen[:, :keys]
        self.seen[layer] = selection.counts
        self.note(layer, stream.vis_ids.gather(1, safe).masked_fill(~real, -1))
        return (weights[0].masked_fill(unseen[:, None, None], 0.0) if weights else None), unseen

    def _evict(self, layer: int, held: TrimLayer, selection: Selection, weights: list[Tensor]) -> Tensor | None:
        """Evict what was not chosen; returns the current row over the columns that are left, if it was read."""
        stream = held.held_stream
        if selection.counts == stream.n_visual:
            return weights[0] if weights else None
        after, moves = evict(stream, selection)
        held.evict(after, moves)
        held.keep_rows(selection)
        self.note(layer, after.vis_ids)
        if not weights:
            return None
        left = moves.of_weights(weights[0])
        valid = self._valid(after, left.shape[-1])
        return left if valid is None else left.masked_fill(~valid[:, None, None], 0.0)

    def _site(self, part: Temporal, layer: int, held: TrimLayer, brought: Providers) -> StepSite:
        """What a temporal part may see in one layer; ``brought`` provides what only this step knows."""
        prompt, stream, whole = self.prompt, held.held_stream, self.context.heads.whole
        return StepSite(
            shape=self.context.shape,
            n_visual=stream.n_visual,
            ids=stream.vis_ids.clone(),  # whoever writes there changes nothing but what he sees himself
            valid=stream.vis_valid,
            state=prompt.state_of(TEMPORAL),
            notes=recording.notes(),
            keys_of_rows=prompt.sample_keys.to(stream.device, copy=True),
            needs=part.needed(),
            providers={
                Need.PROMPT_ROW: lambda: held.rows[Need.PROMPT_ROW].clone(),
                Need.PROMPT_WINDOW: lambda: held.rows[Need.PROMPT_WINDOW].clone(),
                Need.PROMPT_COLUMNS: lambda: held.rows[Need.PROMPT_COLUMNS].clone(),
                Need.ACCUMULATED: lambda: held.rows[Need.ACCUMULATED].clone(),
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
        device, rows, front = stream.device, stream.rows, stream.valid
        appended, shown = moved((self.prompt.appended_valid, self.prompt.shown), device)
        if front is None and appended is None and shown is None:
            return None
        if shown is not None:
            shown = shown.gather(1, stream.columns)
            front = shown if front is None else front & shown
        if front is None:
            front = torch.ones(rows, stream.length, dtype=torch.bool, device=device)
        behind = keys - stream.length
        if appended is None:
            appended = torch.ones(rows, behind, dtype=torch.bool, device=device)
        return torch.cat([front, appended[:, :behind]], dim=1)

    def _window(self, layer: int, stream: Stream, keys: int) -> int | None:
        return self.context.layout.window_of(layer, self.prompt.length + keys - stream.length)

    def _sight(self, layer: int, stream: Stream, keys: int) -> Sight | None:
        """Whom new tokens see in ``layer`` of all its ``keys`` columns; None where simply all that is before them."""
        window, start, behind = self._window(layer, stream, keys), self.prompt.length, keys - stream.length
        if window is None:
            return None
        appended = torch.arange(start, start + behind, device=stream.device).expand(stream.rows, -1)
        return Sight(None, window, torch.cat([stream.columns, appended], dim=1))

    def _mask(self, layer: int, stream: Stream, key: Tensor, query: Tensor, unseen: Tensor | None) -> Any:
        """This layer's mask, without the columns ``unseen`` [B, K]."""
        where = (id(stream), key.shape[2], self._window(layer, stream, key.shape[2]))
        if unseen is not None or where not in self.masks:
            valid = self._valid(stream, key.shape[2])
            if unseen is not None:
                valid = ~unseen if valid is None else valid & ~unseen
            mask = causal_mask(
                self.context.implementation,
                self.context.layout.text_config,
                batch=query.shape[0],
                queries=query.shape[2],
                keys=key.shape[2],
                valid=valid,
                dtype=query.dtype,
                device=query.device,
                sight=self._sight(layer, stream, key.shape[2]),
            )
            if unseen is not None:
                return mask
            self.masks[where] = mask
        return self.masks[where]

    # ------------------------------------------------------------------ leaving

    def leave(self) -> None:
        """Record what each layer holds now."""
        held = [layer.n_visual for layer in self.layers]
        self.prompt.cut_short = False
        self.prompt.held.append(held)
        if self.prompt.temporal is not None and not self.prompt.temporal.evicts():
            self.prompt.seen.append([self.seen.get(index, counts) for index, counts in enumerate(held)])
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
        self.undo.run()
