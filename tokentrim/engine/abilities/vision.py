"""What the engine reads while images and videos are encoded: attention rows, sizes, and a content key of each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from tokentrim.contracts.adapter import MODALITIES, Adapter, Encoding, Layout, Modality
from tokentrim.contracts.noise import content_key, mix, pixel_key
from tokentrim.contracts.sites import Need
from tokentrim.contracts.strategy import Spatial
from tokentrim.engine.ability import Ability, PromptOrigin
from tokentrim.engine.seams import attention
from tokentrim.engine.seams.attention_rows import attention_rows, received
from tokentrim.engine.seams.calls import bind
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.seams.undo import replaced
from tokentrim.engine.tokens.placement import Placement
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.errors import EngineError, complaint


@dataclass
class _Capture:
    """The latest encoding of one modality, and what was read meanwhile."""

    encoding: Encoding
    pixels: dict[str, Tensor]  # the call's floating-point arguments; empty unless they are wanted again
    output: ref[Any]  # by which a later forward recognises them; or by
    storages: frozenset[int]  # of the features, where the output was made anew
    rows: dict[int, Tensor]  # block -> float [H, placeholders]
    keys: Tensor | None  # int64 [items]


@dataclass
class VisionCapture(Ability):
    """Wraps the model's ``get_image_features`` and ``get_video_features`` while installed.

    ``generate`` calls them before the first forward, a direct call of the model inside it; either way the engine
    learns which pictures, of what sizes, the coming prompt is about.

    Attributes:
        adapter: knows the family's arguments.
        layout: the located modules.
        blocks: vision blocks (0-based, resolved) whose rows are wanted.
        clock: receives the encoding's time under ``vision`` and the rows' under ``selection``.
        wants_keys: whether content keys are wanted.
        keeps_pixels: whether pixels are kept until the next pictures come (a guide must see them, too).
        suspended: whether what runs is a guide, and not the trimmed model (though it may be the same).
    """

    adapter: Adapter
    layout: Layout
    blocks: frozenset[int]
    clock: Clock
    wants_keys: bool
    keeps_pixels: bool = False
    _seen: dict[Modality, _Capture] = field(default_factory=dict[Modality, _Capture])
    suspended: bool = False
    _reading: dict[int, list[Tensor]] | None = None
    _undo: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        layout: Layout,
        clock: Clock,
        parts: Sequence[Spatial],
        needs: frozenset[Need],
        *,
        keeps_pixels: bool,
    ) -> VisionCapture:
        """What ``parts``, which together have ``needs``, want of the tower."""
        wanting = [part for part in parts if Need.VISION_ROWS in part.needed()]
        blocks = frozenset(layout.vision_block(block) for part in wanting for block in part.wants_vision_blocks())
        return cls(adapter, layout, blocks, clock, wants_keys=Need.RANDOM in needs, keeps_pixels=keeps_pixels)

    def attach(self) -> None:
        """Wrap the encoding methods, and observe the blocks that are wanted."""
        entry = self.layout.entry
        for modality in MODALITIES:
            name = f"get_{modality}_features"
            function = getattr(entry, name, None)
            if function is None:
                continue
            self._undo.append(replaced(entry, name, self._wrapped(modality, function)))
        for index, module in enumerate(self.layout.vision_attentions):
            if index in self.blocks:
                attention.observe(module, self._observer(index))
                self._undo.append(functools.partial(attention.ignore, module))

    def detach(self) -> None:
        """Put the methods back, and stop observing."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()

    # ------------------------------------------------------------------ while pictures are encoded

    def _wrapped(self, modality: Modality, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def encode(*args: Any, **kwargs: Any) -> Any:
            # Videos may be encoded by way of the images' method; compiled code cannot be looked at.
            if self.suspended or self._reading is not None or torch.compiler.is_compiling():
                return function(*args, **kwargs)
            arguments = bind(function, args, kwargs)
            self._seen.pop(modality, None)
            with self._capturing(arguments) as rows:
                output = function(*args, **kwargs)
                self._note(modality, arguments, output, rows)
            return output

        return encode

    @contextmanager
    def _capturing(self, arguments: Mapping[str, Any]) -> Generator[dict[int, list[Tensor]], None, None]:
        """Read attention inside the block, and time it."""
        pixels = next((value for value in arguments.values() if isinstance(value, Tensor)), None)
        mark = None if pixels is None else self.clock.start(pixels.device)
        switch_off = None
        self._reading = {}
        if self.blocks:
            switch_off = attention.switch_on(self.layout.vision_config)
        try:
            yield self._reading
        finally:
            self._reading = None
            if switch_off is not None:
                switch_off()
            if mark is not None:
                self.clock.stop("vision", mark)

    def _note(
        self, modality: Modality, arguments: Mapping[str, Any], output: Any, rows: Mapping[int, list[Tensor]]
    ) -> None:
        features = getattr(output, "pooler_output", None)
        if features is None:
            return  # an output of another make: whoever needs to know more will say so
        lengths = tuple(int(item.shape[:-1].numel()) for item in features)
        encoding = Encoding(modality, arguments, lengths)
        # Sizes and grids are kept as long as the prompt lives; pixels are not.
        small = {k: v for k, v in arguments.items() if not (isinstance(v, Tensor) and v.is_floating_point())}
        storages = frozenset(item.untyped_storage().data_ptr() for item in features)
        keys = None
        with self.clock.timed("selection", features[0].device):
            if self.wants_keys:
                pictures = (self.adapter.pixels(self.layout, encoding, item) for item in range(len(lengths)))
                keys = torch.cat([pixel_key(pixels[None]) for pixels in pictures])
            arranged = {block: self.adapter.arrange(self.layout, encoding, pieces) for block, pieces in rows.items()}
        kept = {k: v for k, v in arguments.items() if k not in small} if self.keeps_pixels else {}
        about = replace(encoding, arguments=small)
        self._seen[modality] = _Capture(about, kept, ref(output), storages, arranged, keys)

    def _observer(self, index: int) -> attention.Observer:
        def look(call: attention.AttentionCall) -> attention.Attended:
            if self._reading is not None:
                with self.clock.timed("selection", call.query.device), torch.no_grad():
                    self._reading.setdefault(index, []).extend(self._read(call))
            return call.run()

        return look

    def _read(self, call: attention.AttentionCall) -> list[Tensor]:
        """Per separately attended piece float [pieces, H, tokens]: the [CLS] row, or the mean over all queries."""
        query, key, bounds = call.query, call.key, call.options.get("cu_seq_lens_q")
        if bounds is not None:  # packed: pieces lie end to end in one row
            lengths = (bounds[1:] - bounds[:-1]).tolist()
            pairs = list(zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True))
        else:
            pairs = [(query, key)]
        return [self._received(one, other, call.scaling) for one, other in pairs]

    def _received(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        if self.layout.has_cls:
            return attention_rows(query[:, :, :1], key, scaling, None)[:, :, 0]
        return received(query, key, scaling, None, causal=False) / query.shape[2]

    # ------------------------------------------------------------------ when the prompt runs

    def encodings(self, arguments: Mapping[str, Any]) -> list[Encoding] | None:
        """What the prompt of a forward with these entry arguments is about, images first; None where unknown."""
        given: Mapping[str, Any] = arguments.get("mm_encoder_outputs") or {}
        found: list[Encoding] = []
        for modality in MODALITIES:
            pixels = arguments.get("pixel_values" if modality == "image" else "pixel_values_videos")
            output = given.get(modality)
            if output is None and pixels is None:
                continue
            seen = self._seen.get(modality)
            if seen is None or not _are(seen, output):
                self._seen.pop(modality, None)  # what was captured is of other pictures
                return None
            found.append(seen.encoding)
        return found

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Any]:
        """The arguments from which these pictures were encoded, pixels included where they are kept."""
        found: dict[str, Any] = {}
        for encoding in encodings:
            seen = self._seen.get(encoding.modality)
            given = {**encoding.arguments, **(seen.pixels if seen is not None else {})}
            found |= {name: value for name, value in given.items() if isinstance(value, Tensor)}
        return found

    def rows_of(self, block: int, placement: Placement | None, vis_pos: Tensor) -> Tensor:
        """float [B, H, N]: the rows of ``block`` at the visual tokens of columns ``vis_pos`` [B, N]."""
        pieces = [seen.rows[block] for seen in self._captures(placement) if block in seen.rows]
        if placement is None or len(pieces) != len(placement.encodings):
            raise EngineError(
                complaint(
                    "vision-tower attention",
                    "have been seen while the images were encoded",
                    "none captured",
                    "pass pixel_values inside the context instead of features encoded before it",
                )
            )
        rows = torch.cat(pieces, dim=1).to(vis_pos.device)  # the tower may have a device of its own
        number = placement.number.gather(1, vis_pos).clamp(min=0).to(rows.device)
        return rows[:, number].permute(1, 0, 2)

    def _captures(self, placement: Placement | None) -> list[_Capture]:
        """What was seen of the pictures of a prompt, where it was."""
        found = [self._seen.get(encoding.modality) for encoding in (placement.encodings if placement else ())]
        return [seen for seen in found if seen is not None]

    def before_prompt(self, prompt: Prompt, origin: PromptOrigin) -> None:
        """Seed the prompt's noise by its content, where noise is wanted."""
        if self.wants_keys:
            ids = origin.arguments.get("input_ids")
            keys = self._sample_keys(prompt.placement, prompt.start.rows, ids, origin.mask)
            prompt.sample_keys = keys.to(prompt.start.vis_pos.device)

    def _sample_keys(
        self, placement: Placement | None, rows: int, input_ids: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """int64 [B]: a key of each row's content: its pictures, or its text where the pictures were not seen."""
        each = [seen.keys for seen in self._captures(placement) if seen.keys is not None]
        if placement is not None and each and len(each) == len(placement.encodings):
            return _row_keys(placement, torch.cat(each))
        if input_ids is None:
            return torch.zeros(rows, dtype=torch.int64)
        tokens = input_ids.long() + 1
        return content_key(tokens if valid is None else tokens * valid)


def _are(seen: _Capture, output: Any) -> bool:
    """Whether features handed to a forward (None: it encodes its own) are the ones that were seen."""
    if output is None or seen.output() is output:
        return True
    features = getattr(output, "pooler_output", None)
    if features is None or not len(features):
        return False
    if features[0].untyped_storage().data_ptr() in seen.storages:
        return True
    # A prompt fed in chunks brings copies of the features; all of them at once are the ones that were seen.
    whole = getattr(seen.output(), "pooler_output", None)
    if whole is None or sum(map(len, whole)) != sum(map(len, features)):
        return False
    flat = [torch.cat([item.flatten(0, -2) for item in items]) for items in (whole, features)]
    return torch.equal(flat[0], flat[1].to(flat[0].device))


def _row_keys(placement: Placement, keys: Tensor) -> Tensor:
    """int64 [B]: keys of each row's pictures, summed with their places."""
    items = placement.items.to(placement.number.device)
    owner = items[placement.number.clamp(min=0)].masked_fill(placement.number < 0, len(keys))
    present = torch.zeros(owner.shape[0], len(keys) + 1, dtype=torch.bool, device=owner.device)
    present = present.scatter(1, owner, True)[:, :-1]
    return (mix(keys.to(owner.device)) * present.long().cumsum(1) * present).sum(1)
