"""What the engine reads while images and videos are encoded: attention rows, sizes, and a content key of each."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import MODALITIES, Adapter, Encoding, Layout, Modality
from tokentrim.contracts.noise import content_key, mix, pixel_key
from tokentrim.contracts.sites import FROM_TOWER, Need
from tokentrim.contracts.strategy import Spatial
from tokentrim.engine.abilities.merging import Merging
from tokentrim.engine.ability import Ability, PromptOrigin
from tokentrim.engine.seams import attention
from tokentrim.engine.seams.attention_rows import tower_reading
from tokentrim.engine.seams.calls import bind
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.seams.undo import Undo, hook, patch
from tokentrim.engine.tokens.placement import Placement
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.errors import EngineError, UnsupportedError, complaint

Reading = tuple[Need, int]
"""What was read, and in which vision block (0 for what enters the projector)."""


@dataclass(eq=False)
class _Capture:
    """One encoding, and what was read meanwhile.

    It is recognised by the memory of its features, which is told apart for as long as it is there: an address alone may
    be that of another picture by now.
    """

    encoding: Encoding
    pixels: dict[str, Tensor]  # the call's floating-point arguments; empty unless they are wanted again
    items: list[tuple[ref[Any], int, torch.Size]]  # storage, offset and shape of the features of each picture
    features: list[Tensor]  # the same themselves, for as long as the output is there
    output: ref[Any]
    read: dict[Reading, Tensor]  # float [H, placeholders] each
    keys: Tensor | None  # int64 [items]

    @property
    def may_return(self) -> bool:
        """Whether the features are still there, so that a forward may bring them."""
        return self.output() is not None or any(storage() is not None for storage, _, _ in self.items)

    def is_of(self, output: Any) -> bool:
        """Whether an output that a forward is handed holds these very features, all of them, in order.

        ``generate`` changes the output that the model returned: for beams it repeats the features, for a prompt in
        chunks it hands copies on.
        """
        features = getattr(output, "pooler_output", None)
        if features is None or not len(features):
            return False
        places, mine = [_place(item) for item in features], list(range(len(self.items)))
        order = [next((n for n in mine if _same(self.items[n], place)), -1) for place in places]
        if -1 in order:
            if not self.features:
                return False
            whole, given = (torch.cat([item.flatten(0, -2) for item in items]) for items in (self.features, features))
            if len(given) == len(whole):
                return torch.equal(whole, given.to(whole.device))
            order = [_equal(item, self.features) for item in features]
        repeated = output is self.output() and all(order.count(n) == order.count(0) for n in mine)
        return order == mine or (repeated and list(dict.fromkeys(order)) == mine)


def _bounds(mask: Tensor) -> Tensor:
    """int64 [pieces + 1]: where the pieces begin that a mask [..., T, T] keeps apart, and where the last ends."""
    behind = mask.flatten(0, -3)[0].diagonal(1)  # whether a token sees the next
    apart = ~behind if mask.dtype == torch.bool else behind < 0
    starts = apart.nonzero()[:, 0] + 1
    return torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), len(behind) + 1)])


def _place(item: Tensor) -> tuple[Any, int, torch.Size]:
    return item.untyped_storage(), int(item.storage_offset()), item.shape


def _same(mine: tuple[ref[Any], int, torch.Size], place: tuple[Any, int, torch.Size]) -> bool:
    return mine[0]() is place[0] and mine[1:] == place[1:]


def _equal(item: Tensor, features: Sequence[Tensor]) -> int:
    """Which of the features are equal to ``item``; -1 for none."""
    return next((n for n, one in enumerate(features) if torch.equal(one, item.to(one.device))), -1)


class _Now(threading.local):
    """What one thread does; several may encode pictures at once.

    Attributes:
        encoded: the latest encoding of each modality.
        reading: what was read, in pieces, of the pictures that are being encoded; None while none are.
        suspended: whether what runs is a guide.
    """

    def __init__(self) -> None:
        self.encoded: dict[Modality, _Capture] = {}
        self.reading: dict[Reading, list[Tensor]] | None = None
        self.suspended = False


@dataclass
class VisionCapture(Ability):
    """Wraps the model's ``get_image_features`` and ``get_video_features`` while installed.

    ``generate`` calls them before the first forward, a direct call of the model inside it; either way the engine
    learns which pictures, of what sizes, the coming prompt is about.

    Attributes:
        adapter: knows the family's arguments.
        layout: the located modules.
        wanted: what is to be read, in which vision blocks (0-based, resolved).
        clock: receives the encoding's time under ``vision`` and the reading's under ``selection``.
        wants_keys: whether content keys are wanted.
        keeps_pixels: whether pixels are kept until the next pictures come (a guide must see them, too).
        merging: makes the tower merge tokens; None where it does not.
    """

    adapter: Adapter
    layout: Layout
    wanted: frozenset[Reading]
    clock: Clock
    wants_keys: bool
    keeps_pixels: bool = False
    merging: Merging | None = None
    _now: _Now = field(default_factory=_Now)
    _seen: dict[int, _Capture] = field(default_factory=dict[int, _Capture])
    _undo: Undo = field(default_factory=Undo)

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
        wanted: set[Reading] = {
            (need, layout.vision_block(block))
            for part in parts
            for need in part.needed() & FROM_TOWER
            for block in part.vision_blocks_of(layout.features_block, len(layout.vision_attentions))
        }
        if Need.VISION_HIDDEN in needs and layout.projector is not None:
            wanted.add((Need.VISION_HIDDEN, 0))
        merging = Merging.of(layout, parts, clock)
        return cls(adapter, layout, frozenset(wanted), clock, Need.RANDOM in needs, keeps_pixels, merging)

    @property
    def _blocks(self) -> dict[int, list[Need]]:
        """What is read in each block's attention."""
        found: dict[int, list[Need]] = {}
        for need, block in self.wanted:
            if need in FROM_TOWER:
                found.setdefault(block, []).append(need)
        return found

    @property
    def suspended(self) -> bool:
        """Whether what this thread runs is a guide, and not the trimmed model (though it may be the same)."""
        return self._now.suspended

    @suspended.setter
    def suspended(self, value: bool) -> None:
        self._now.suspended = value

    def attach(self) -> None:
        """Wrap the encoding methods, and observe the blocks that are wanted."""
        entry = self.layout.entry
        for modality in MODALITIES:
            name = f"get_{modality}_features"
            if hasattr(entry, name):
                patch(entry, name, functools.partial(self._wrapped, modality), self._undo)
        for block, needs in self._blocks.items():
            attention.observe(self.layout.vision_attentions[block], self._observer(block, needs), self._undo)
        if (Need.VISION_HIDDEN, 0) in self.wanted and self.layout.projector is not None:
            hook(self.layout.projector, self._entering, self._undo, before=True)
        if self.merging is not None:
            self.merging.attach(self._undo)

    def detach(self) -> None:
        """Put the methods back, and stop observing."""
        self._undo.run()
        self._now, self._seen = _Now(), {}

    # ------------------------------------------------------------------ while pictures are encoded

    def _wrapped(self, modality: Modality, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def encode(*args: Any, **kwargs: Any) -> Any:
            # Videos may be encoded by way of the images' method; compiled code cannot be looked at.
            if torch.compiler.is_compiling() or self.suspended or self._now.reading is not None:
                return function(*args, **kwargs)
            arguments = bind(function, args, kwargs)
            self._now.encoded.pop(modality, None)
            with self._capturing(arguments) as read:
                output = function(*args, **kwargs)
                self._note(modality, arguments, output, read)
            return output

        return encode

    @contextmanager
    def _capturing(self, arguments: Mapping[str, Any]) -> Generator[dict[Reading, list[Tensor]], None, None]:
        """Read inside the block, and time it."""
        pixels = next((value for value in arguments.values() if isinstance(value, Tensor)), None)
        mark = None if pixels is None else self.clock.start(pixels.device)
        undo, read = self._undo.part(), dict[Reading, list[Tensor]]()
        try:
            self._now.reading = read
            if self.merging is not None:
                self.merging.begin(undo)
            if self._blocks:
                attention.switch_on(self.layout.vision_config, undo)
            yield read
        finally:
            self._now.reading = None
            undo.run()
            if mark is not None:
                self.clock.stop("vision", mark)

    def _note(
        self, modality: Modality, arguments: Mapping[str, Any], output: Any, read: Mapping[Reading, list[Tensor]]
    ) -> None:
        features = getattr(output, "pooler_output", None)
        if features is None:
            return  # an output of another make: whoever needs to know more will say so
        lengths = tuple(int(item.shape[:-1].numel()) for item in features)
        encoding = Encoding(modality, arguments, lengths)
        # Sizes and grids are kept as long as the prompt lives; pixels are not.
        small = {k: v for k, v in arguments.items() if not (isinstance(v, Tensor) and v.is_floating_point())}
        keys = None
        with self.clock.timed("selection", features[0].device):
            if self.wants_keys:
                pictures = (self.adapter.pixels(self.layout, encoding, item) for item in range(len(lengths)))
                keys = torch.cat([pixel_key(pixels[None]) for pixels in pictures])
            arranged = {what: self.adapter.arrange(self.layout, encoding, pieces) for what, pieces in read.items()}
            if self.merging is not None:
                arrange = functools.partial(self.adapter.arrange, self.layout, encoding)
                arranged[Need.TOWER_GROUPS, 0] = self.merging.groups(arrange)
        kept = {k: v for k, v in arguments.items() if k not in small} if self.keeps_pixels else {}
        facts = self.adapter.facts(self.layout, encoding)
        about, mine = replace(encoding, arguments=small, facts=facts), list(features)
        items = [(ref(storage), offset, shape) for storage, offset, shape in map(_place, mine)]
        made = ref(output, lambda _: mine.clear())
        for number, seen in list(self._seen.items()):
            if not seen.may_return:
                self._seen.pop(number, None)
        capture = _Capture(about, kept, items, mine, made, arranged, keys)
        self._seen[id(capture)] = self._now.encoded[modality] = capture

    def _observer(self, block: int, needs: Sequence[Need]) -> attention.Observer:
        def look(call: attention.AttentionCall) -> attention.Attended:
            reading = self._now.reading
            if reading is not None:
                with self.clock.timed("selection", call.query.device), torch.no_grad():
                    pieces = self._pieces(call)
                    for need in needs:
                        read = [
                            tower_reading(need, query, key, call.scaling, has_cls=self.layout.has_cls)
                            for query, key in pieces
                        ]
                        reading.setdefault((need, block), []).extend(read)
            return call.run()

        return look

    def _entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See what enters the projector: [pieces, tokens, D]."""
        reading = self._now.reading
        if reading is not None:
            vectors: Tensor = (args or tuple(kwargs.values()))[0]
            reading.setdefault((Need.VISION_HIDDEN, 0), []).append(vectors.detach().transpose(1, 2))

    def _pieces(self, call: attention.AttentionCall) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys [pieces, H, tokens, head_dim] of what is attended to separately."""
        query, key, bounds = call.query, call.key, call.options.get("cu_seq_lens_q")
        if self.layout.packed and bounds is None and isinstance(call.mask, Tensor):
            bounds = _bounds(call.mask)
        if bounds is not None:  # packed: pieces lie end to end in one row
            lengths = (bounds[1:] - bounds[:-1]).tolist()
            return list(zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True))
        return [(query, key)]

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
            seen = self._now.encoded.get(modality) if output is None else self._recognised(modality, output)
            if seen is None:
                return None
            found.append(seen.encoding)
        return found

    def _recognised(self, modality: Modality, output: Any) -> _Capture | None:
        """The encoding, in whichever thread, that made what a forward is handed; None where none did."""
        known = [seen for seen in list(self._seen.values()) if seen.encoding.modality == modality]
        return next((seen for seen in reversed(known) if seen.is_of(output)), None)

    def _capture(self, encoding: Encoding) -> _Capture | None:
        """What was seen of an encoding; None where it was made elsewhere."""
        known = (*self._now.encoded.values(), *list(self._seen.values()))
        return next((seen for seen in known if seen.encoding is encoding), None)

    def _captures(self, placement: Placement | None) -> list[_Capture] | None:
        """What was seen of the pictures of a prompt; None where some were encoded elsewhere."""
        found = [self._capture(encoding) for encoding in (placement.encodings if placement else ())]
        seen = [one for one in found if one is not None]
        return seen if seen and len(seen) == len(found) else None

    def inputs(self, encodings: Sequence[Encoding]) -> dict[str, Any]:
        """The arguments from which these pictures were encoded, pixels included where they are kept."""
        found: dict[str, Any] = {}
        for encoding in encodings:
            seen = self._capture(encoding)
            given = {**encoding.arguments, **(seen.pixels if seen is not None else {})}
            found |= {name: value for name, value in given.items() if isinstance(value, Tensor)}
        return found

    def read_of(self, what: Reading, placement: Placement | None, vis_pos: Tensor) -> Tensor:
        """float [B, H, N]: what was read, at the visual tokens of columns ``vis_pos`` [B, N]."""
        pieces = [seen.read[what] for seen in self._captures(placement) or () if what in seen.read]
        if placement is None or len(pieces) != len(placement.encodings):
            raise EngineError(
                complaint(f"{what[0].value} of vision block {what[1]}", "be seen while the images are encoded", "none",
                          "please report this model")
            )  # fmt: skip
        rows = torch.cat(pieces, dim=1).to(vis_pos.device)  # the tower may have a device of its own
        number = placement.number.to(rows.device).gather(1, vis_pos).clamp(min=0)
        return rows[:, number].permute(1, 0, 2)

    def after_prompt(self, prompt: Prompt) -> None:
        """Note what merged in the tower."""
        if self.merging is not None:
            prompt.tower_pairs = self.merging.rounds

    def before_prompt(self, prompt: Prompt, origin: PromptOrigin) -> None:
        """Seed the prompt's noise by its content, where noise is wanted.

        Raises:
            UnsupportedError: when rows are wanted of pictures that were encoded elsewhere.
        """
        reads = bool(self.wanted) or self.merging is not None
        if reads and self._captures(prompt.placement) is None:
            raise UnsupportedError(
                complaint(
                    "what strategies want of the vision tower",
                    "be read while the images are encoded inside the context",
                    "features made elsewhere",
                    "pass pixel_values to generate() or to the model, and no mm_encoder_outputs",
                )
            )
        if self.wants_keys:
            ids = origin.arguments.get("input_ids")
            keys = self._sample_keys(prompt.placement, prompt.start.rows, ids, origin.mask)
            prompt.sample_keys = keys.to(prompt.start.vis_pos.device)

    def _sample_keys(
        self, placement: Placement | None, rows: int, input_ids: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """int64 [B]: a key of each row's content: its pictures, or its text where the pictures were not seen."""
        each = [seen.keys for seen in self._captures(placement) or () if seen.keys is not None]
        if placement is not None and each:
            return _row_keys(placement, torch.cat(each))
        if input_ids is None:
            return torch.zeros(rows, dtype=torch.int64)
        tokens = input_ids.long() + 1
        return content_key(tokens if valid is None else tokens * valid)


def _row_keys(placement: Placement, keys: Tensor) -> Tensor:
    """int64 [B]: keys of each row's pictures, summed with their places."""
    items = placement.items.to(placement.number.device)
    owner = items[placement.number.clamp(min=0)].masked_fill(placement.number < 0, len(keys))
    present = torch.zeros(owner.shape[0], len(keys) + 1, dtype=torch.bool, device=owner.device)
    present = present.scatter(1, owner, True)[:, :-1]
    return (mix(keys.to(owner.device)) * present.long().cumsum(1) * present).sum(1)
