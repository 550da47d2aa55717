"""Prefill: run the prompt, and at each boundary take the tokens out that the strategy let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim.contracts.fits import Decision
from tokentrim.contracts.sites import FROM_LAST_ROW, FROM_LAYER_BEFORE, LayerSite, Need
from tokentrim.engine import layer_reads, recording
from tokentrim.engine.context import Context
from tokentrim.engine.deciding import decide
from tokentrim.engine.providers import Providers, projecting
from tokentrim.engine.seams import outputs, positions
from tokentrim.engine.seams.attention import Attended, AttentionCall
from tokentrim.engine.seams.masks import causal_mask
from tokentrim.engine.seams.private import device_of
from tokentrim.engine.seams.undo import Undo, hook
from tokentrim.engine.tokens.cache import TrimLayer
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Sight, Stream, gather_columns, merge_features, moved, place, spread
from tokentrim.errors import AdapterError, EngineError, UnsupportedError, complaint

_FOR_STEPS = {Need.LAST_ROW: FROM_LAST_ROW, Need.COLUMN_MEAN: frozenset({Need.PROMPT_COLUMNS})}
"""What is read in every layer, for needs of its decode steps."""


@dataclass
class Prefill:
    """One pass over a prompt. Whatever is kept from one layer to another is used on the device of the layer that runs.

    Attributes:
        handed: what every layer after a boundary is handed instead of what the model's loop hands it, by name.
        masks: those of these layers, by their windows, since the last cut.
        tables: what these layers' position embeddings are made by; None as long as the model's own fit.
        deeper: what adds the features that belong in front of a layer, by its number.
    """

    context: Context
    prompt: Prompt
    decisions: list[Decision]
    cache: Any
    embeds: Tensor
    position_ids: Tensor
    stream: Stream = field(init=False)
    handed: dict[str, Any] | None = None
    masks: dict[int | None, Any] = field(default_factory=dict[int | None, Any])
    tables: positions.Tables | None = None
    deeper: dict[int, Callable[[Any], Any]] = field(default_factory=dict[int, Callable[[Any], Any]])
    surplus: Tensor | None = None
    read: dict[Need, Any] = field(default_factory=dict[Need, Any])
    undo: Undo = field(default_factory=Undo)

    def __post_init__(self) -> None:
        self.stream = self.prompt.start
        self.at: dict[int, list[Decision]] = {}
        for decision in self.decisions:
            self.at.setdefault(decision.boundary, []).append(decision)
        self.wanted: dict[int, frozenset[Need]] = {}
        for boundary, here in self.at.items():
            needs = frozenset().union(*(d.part.needed_at(boundary) for d in here)) & FROM_LAYER_BEFORE
            if boundary > 0 and needs:
                self.wanted[boundary - 1] = needs

    # ------------------------------------------------------------------ entering the language model

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Act at boundary 0, install what later ones need; returns the language model's arguments."""
        if self.context.renumbers:
            self.surplus = positions.surplus(self.position_ids, self.stream)
        kwargs = self._take_deepstack(kwargs)
        hidden = self._prune(0, self.embeds) if 0 in self.at else self.embeds
        if hidden is not self.embeds:
            mask = self._mask_for_model()
            kwargs = {**kwargs, "inputs_embeds": hidden, "position_ids": self.position_ids, "attention_mask": mask}
        before = [layer for layer, needs in self.wanted.items() if Need.HIDDEN_BEFORE in needs]
        inside = [*(b for b in (*self.at, *self.deeper) if b > 0), *before, *([] if self.handed is None else [0])]
        if inside:
            for index in range(min(inside), self.context.shape.n_layers):
                layer = self.context.layout.layers[index]
                hook(layer, self._layer_hook(index), self.undo, before=True, first=True)
        self._record(0)
        return kwargs

    def _take_deepstack(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Add the features for deeper layers ourselves where the model would look for tokens that are gone."""
        without, features = self.context.adapter.take_deepstack(kwargs)
        if not features or min(self.at, default=len(features)) >= len(features):
            return kwargs
        start = self.prompt.start
        n_visual = torch.tensor(start.n_visual, device=start.vis_ids.device)
        number = ((n_visual.cumsum(0) - n_visual).unsqueeze(1) + start.vis_ids).clamp(min=0, max=len(features[0]) - 1)
        for layer, flat in enumerate(features):
            self.deeper[layer + 1] = partial(self._with_features, flat, number)
        if self.context.shape.n_layers in self.deeper:
            hook(self.context.layout.layers[-1], self._add_last, self.undo, before=False)
        return without

    def _add_last(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.deeper[self.context.shape.n_layers](output)

    def _with_features(self, flat: Tensor, number: Tensor, hidden: Any) -> Any:
        """What a layer returned, with the features ``flat[number]`` that follow it at the tokens that it saw.

        Added in front of the next layer: whoever records this one's output (``output_hidden_states``) wants it without.
        """
        if isinstance(hidden, tuple):
            return (self._with_features(flat, number, hidden[0]), *hidden[1:])
        stream = self.stream.on(hidden.device)
        where = number.to(hidden.device).gather(1, stream.vis_ids.clamp(min=0))
        chosen = flat.to(hidden.device, hidden.dtype)[where]
        chosen = chosen.masked_fill(~stream.vis_valid.unsqueeze(-1), 0.0)
        return hidden.scatter_add(1, stream.vis_pos.unsqueeze(-1).expand_as(chosen), chosen)

    def _mask_for_model(self) -> Tensor | None:
        if self.stream.valid is not None:
            return self.stream.valid
        if self.cache is not None:
            return None
        # Without cache and mask, gapped position ids would be read as packed sequences.
        return torch.ones(self.stream.rows, self.stream.length, dtype=torch.bool, device=self.embeds.device)

    # ------------------------------------------------------------------ between the layers

    def _layer_hook(self, index: int) -> Callable[..., Any]:
        def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            hidden = before.to(device_of(module))  # accelerate, whose hooks come later, moves what is left
            if index in self.deeper:
                hidden = self.deeper[index](hidden)
            if index in self.at and index > 0:  # what leaves at the input has left before the first layer
                hidden = self._prune(index, hidden, kwargs)
                self._record(index)
            if Need.HIDDEN_BEFORE in self.wanted.get(index, ()):
                self.read[Need.HIDDEN_BEFORE] = gather_columns(hidden, self.stream.on(hidden.device).vis_pos).detach()
            if hidden is before and self.handed is None:
                return None
            kwargs = {**kwargs, **self._handed_to(index, hidden, kwargs)}
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return before_layer

    def _handed_to(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What ``layer`` is handed instead of what the model's loop hands it, on the device of its hidden states."""
        if self.handed is None:
            return {}
        tables = {} if self.tables is None else {"position_embeddings": self.tables.of(layer, hidden, kwargs)}
        handed = {**self.handed, **tables, "attention_mask": self._mask(layer, hidden)}
        return {name: moved(what, hidden.device) for name, what in handed.items()}

    def _prune(self, boundary: int, hidden: Tensor, kwargs: dict[str, Any] | None = None) -> Tensor:
        """Take every decision of ``boundary``; returns the hidden states that go on."""
        clock = self.context.clock
        before = self.stream
        self.read = {need: moved(what, hidden.device) for need, what in self.read.items()}
        with clock.timed("selection", hidden.device):
            wanted = frozenset().union(*(d.part.needed_at(boundary) for d in self.at[boundary] if self._drops(d)))
            given = {**(kwargs or {}), **self._handed_to(boundary, hidden, kwargs or {})}
            here = before.on(hidden.device)
            for need, rotary in ((Need.NEXT_ROW, True), (Need.NEXT_ROW_PLAIN, False)):
                if need in wanted:
                    sight = self._sight(boundary, before, hidden.device)
                    row = layer_reads.next_row(
                        self.context.layout, boundary, hidden, given, here, rotary=rotary, sight=sight
                    )
                    self.read[need] = self.context.heads.whole(row)
            for decision in self.at[boundary]:
                hidden = self._apply(decision, hidden)
            self.read.clear()
            if self.stream is not before:
                self._rebuild(boundary, hidden, before, kwargs)
        if self.stream is not before:
            for ability in self.context.abilities:
                ability.before_layer(boundary, self.stream)
        return hidden

    def _apply(self, decision: Decision, hidden: Tensor) -> Tensor:
        stream, part = self.stream.on(hidden.device), decision.part
        if not self._drops(decision):
            return hidden  # everything stays: nothing to decide
        counts = tuple(min(c, n) for c, n in zip(decision.counts, stream.n_visual, strict=True))
        site = LayerSite(
            shape=self.context.shape,
            n_visual=stream.n_visual,
            ids=stream.vis_ids.clone(),  # whoever writes there changes nothing but what he sees himself
            valid=stream.vis_valid,
            state=self.prompt.state_of(decision.place),
            keys_of_rows=self.prompt.sample_keys.to(hidden.device, copy=True),
            needs=part.needed_at(decision.boundary),
            providers=Providers(
                decision,
                hidden,
                context=self.context,
                prompt=self.prompt,
                stream=stream,
                embeds=self.embeds,
                read=self.read,
                shared=len(self.at[decision.boundary]) > 1 or bool(self.context.prompt_rows),
            ).by_need(),
            boundary=decision.boundary,
            n_original=self.prompt.start.n_visual,
            projector=projecting(self.context.layout, hidden.device, self.embeds.dtype),
            notes=recording.notes(),
        )
        selection = decide(part, counts, site, self.context.doubts)
        if any(selection.behind or ()):
            self._require_one_picture()
        self.prompt.events += 1
        if selection.counts == stream.n_visual and not selection.merges:
            return hidden
        merged = None
        if selection.features is not None:
            merged = selection.features[:, : max(selection.counts, default=0)].to(hidden.dtype)
        elif selection.merges:
            merged = merge_features(gather_columns(hidden, stream.vis_pos), selection)
        self.stream, order = stream.take(selection)
        # A later part at this boundary sees what was read in layer b-1 of the tokens that are left.
        self.read = {need: layer_reads.pick(need, what, selection) for need, what in self.read.items()}
        hidden = gather_columns(hidden, order)
        self._orders.append(order)
        if merged is not None:
            hidden = place(hidden, merged, self.stream)
        return hidden

    def _drops(self, decision: Decision) -> bool:
        """Whether a token may go by a decision."""
        exceeds = any(n > count for n, count in zip(self.stream.n_visual, decision.counts, strict=True))
        return exceeds or not decision.part.count_is_static

    def _require_one_picture(self) -> None:
        """Refuse tokens that go behind the last visual column, which is not behind their own picture where more follow.

        Raises:
            UnsupportedError: for a row with several pictures, and for a video, between whose frames text may stand.
        """
        placement, start = self.prompt.placement, self.prompt.start
        if placement is None:
            return
        videos = any(encoding.modality == "video" for encoding in placement.encodings)
        item = placement.items.to(start.vis_pos.device)[placement.number.gather(1, start.vis_pos).clamp(min=0)]
        first = item[:, :1]
        if videos or bool(((item != first) & start.vis_valid).any()):
            raise UnsupportedError(
                complaint(
                    "a prompt whose tokens are put behind the image",
                    "hold one image in each row",
                    "a video" if videos else "several images",
                    "leave merged tokens in their places, as the strategy's default does",
                )
            )

    _orders: list[Tensor] = field(default_factory=list[Tensor])

    def _rebuild(self, boundary: int, hidden: Tensor, before: Stream, kwargs: dict[str, Any] | None) -> None:
        """Positions and mask for the shorter sequence."""
        renumber = self.at[boundary][0].part.positions == "renumber"
        device, self.masks = hidden.device, {}
        self.position_ids = original = self.position_ids.to(device)
        orders, self._orders = self._orders, []
        for order in orders:
            self.position_ids = positions.take_columns(self.position_ids, order)
        if renumber:
            self.position_ids = positions.renumbered(self.position_ids, original, before.on(device), self.stream)
        if kwargs is None:  # boundary 0: the language model makes embeddings and mask itself, if it sees but backwards
            if any(self._sight(layer, self.stream, device) for layer in range(self.context.shape.n_layers)):
                self.handed = {}
            return
        if "position_embeddings" not in kwargs:
            raise AdapterError(
                complaint("decoder layers of this model", "receive position_embeddings by keyword", sorted(kwargs),
                          "this family needs an adapter of its own")
            )  # fmt: skip
        tables = positions.Tables(self.context.layout) if self.tables is None else self.tables
        self.tables = tables.made_for(self.position_ids) if renumber else tables.taken(orders, self.position_ids)
        position_ids = positions.of_layers(self.position_ids)
        self.handed = {"position_ids": position_ids}

    def _sight(self, layer: int, stream: Stream, device: torch.device) -> Sight | None:
        """Whom the columns of ``stream`` see in ``layer``, where not simply all that is before them."""
        return stream.on(device).sight(self.context.layout.window_of(layer, self.prompt.length))

    def _mask(self, layer: int, hidden: Tensor) -> Any:
        """For the columns that are left, in ``layer``; layers with the same window share one."""
        key = self.context.layout.window_of(layer, self.prompt.length)
        if key not in self.masks:
            self.masks[key] = self._made_mask(self._sight(layer, self.stream, hidden.device), hidden)
        return self.masks[key]

    def _made_mask(self, sight: Sight | None, hidden: Tensor) -> Any:
        stream = self.stream.on(hidden.device)
        return causal_mask(
            self.context.implementation,
            self.context.layout.text_config,
            batch=stream.rows,
            queries=stream.length,
            keys=stream.length,
            valid=stream.valid,
            dtype=hidden.dtype,
            device=hidden.device,
            sight=sight,
        )

    def _record(self, first: int) -> None:
        """Note the stream that layers from ``first`` on run with."""
        trace = self.prompt.trace
        if trace is not None and (not trace.prefill or trace.prefill[-1][1] is not self.stream.vis_ids):
            trace.prefill.append((first, self.stream.vis_ids))
        self._streams[first] = self.stream

    _streams: dict[int, Stream] = field(default_factory=dict[int, Stream])

    def stream_of(self, layer: int) -> Stream:
        """The columns that ``layer`` ran with."""
        return self._streams[max(first for first in self._streams if first <= layer)]

    # ------------------------------------------------------------------ inside attention

    @property
    def observes(self) -> bool:
        """Whether any layer's attention has to be read."""
        reads = any(needs - {Need.HIDDEN_BEFORE} for needs in self.wanted.values())
        return reads or bool(self.context.prompt_rows) or self.context.edits_attention

    def attend(self, layer: int, call: AttentionCall) -> Attended:
        """Read the rows that were asked for, then let the kernel run."""
        wanted = self.wanted.get(layer, frozenset())
        if wanted or self.context.prompt_rows:
            with self.context.clock.timed("selection", call.query.device), torch.no_grad():
                self._read(layer, wanted, call)
        stream = self.stream.on(call.query.device)
        return replace(call, kernel=self.context.around_attention(layer, call.kernel, stream, self.prompt)).run()

    def _read(self, layer: int, wanted: frozenset[Need], call: AttentionCall) -> None:
        rows, device = self.context.prompt_rows, call.query.device
        stream, start, window = self.stream.on(device), self.prompt.start.on(device), 0
        if Need.WINDOW_ROWS in wanted:
            here = [d.part for d in self.at[layer + 1] if Need.WINDOW_ROWS in d.part.needed_at(layer + 1)]
            window = max(part.wants_window() for part in here)
        needs = wanted | {need for need, kin in _FOR_STEPS.items() if rows & kin}
        sight = self._sight(layer, stream, device)
        found = layer_reads.read(needs, call, stream, start, self.context.heads, window, sight)
        if rows and self.cache is not None:
            held: TrimLayer = self.cache.layers[layer]
            held.rows = dict.fromkeys(rows & FROM_LAST_ROW, found.get(Need.LAST_ROW))
            if self.context.temporal is not None and Need.PROMPT_WINDOW in rows:
                mean = layer_reads.window_mean(call, stream, self.context.temporal.wants_window(), sight)
                held.rows[Need.PROMPT_WINDOW] = self.context.heads.whole(mean)
            if Need.PROMPT_COLUMNS in rows:
                held.rows[Need.PROMPT_COLUMNS] = found[Need.COLUMN_MEAN]
        self.read.update(found)

    # ------------------------------------------------------------------ leaving the language model

    def leave(self) -> None:
        """Hand the final streams to the cache and the counts to the prompt."""
        layers = range(self.context.shape.n_layers)
        self.prompt.layer_counts = [self.stream_of(layer).n_visual for layer in layers]
        if self.cache is not None:
            for layer in layers:
                held: TrimLayer = self.cache.layers[layer]
                ran = self.stream_of(layer)
                held.stream = ran.on(held.device) if held.is_initialized else ran
                held.prefill_counts = held.stream.n_visual
                held.shift = self._shift(held.stream)

    def require_pruned(self) -> None:
        """No silent fallback: raise EngineError unless every decision that was due has been taken."""
        promised = list(self.prompt.start.n_visual)
        for decision in self.decisions:
            if decision.part.count_is_static:
                promised = [min(n, count) for n, count in zip(promised, decision.counts, strict=True)]
                ran = self.stream_of(decision.boundary).n_visual
                if any(n > limit for n, limit in zip(ran, promised, strict=True)):
                    raise EngineError(
                        complaint(
                            f"layer {decision.boundary}",
                            f"run with {promised} visual tokens",
                            ran,
                            "pruning did not happen: please report this model and call",
                        )
                    )

    def _shift(self, stream: Stream) -> Tensor | None:
        """int64 [B]: what the renumber policy takes off a new token's id in layers that ran with ``stream``."""
        gone = stream.dropped if self.context.renumbers else None
        if gone is None or self.surplus is None:
            return gone
        key = id(stream)
        if key not in self._shifts:  # layers that share a stream share a shift
            # A row that lost nothing counts on as it did.
            self._shifts[key] = gone + self.surplus.to(gone.device) * (gone > 0)
        return self._shifts[key]

    _shifts: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def with_whole_length(self, output: Any) -> Any:
        """The forward's output with hidden states [B, T_prompt, D], and attention weights [B, H, T_prompt, T_prompt]
        where they are asked for, at the columns of the prompt; zeros where a token was dropped.

        So ``labels``, ``logits_to_keep`` and whoever reads logits by position find every column where it was.
        """

        def whole(axes: tuple[int, ...], layer: int, tensor: Tensor) -> Tensor:
            stream, length = self.stream_of(max(layer, 0)), self.prompt.length
            if stream is self.prompt.start:
                return tensor
            return spread(tensor, stream.on(tensor.device).places(length), length, *axes)

        return outputs.changed(
            output,
            self.context.shape.n_layers,
            states=partial(whole, (1,)),
            maps=partial(whole, (2, 3)),
        )

    def close(self) -> None:
        """Remove the layer hooks."""
        for ability in self.context.abilities:
            self.undo.note(partial(ability.after_prompt, self.prompt))
        self.undo.run()
