"""The bridge: pictures that a served tower has just encoded, shown to a strategy, and what it decides applied.

A strategy decides on a :class:`~tokentrim.contracts.sites.LayerSite` as in the engine, by the same code, and the
adapter of the family says where every token lies. Only a picture is there, its prompt is not: each decides for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor

from tokentrim.contracts.adapter import PLACE, Encoding, Places
from tokentrim.contracts.extras import PromptInfo
from tokentrim.contracts.fits import Decision
from tokentrim.contracts.noise import mix, pixel_key
from tokentrim.contracts.selection import Selection
from tokentrim.contracts.sites import FROM_TOWER, Grid, LayerSite, Need
from tokentrim.engine.deciding import Doubts, decide
from tokentrim.engine.providers import projecting
from tokentrim.engine.tokens.stream import merge_features
from tokentrim.errors import StrategyError
from tokentrim.serve.vllm.asked import PrunedFamily, decisions

Reading = tuple[Need, int]
"""What is read, and in which vision block (0 for what enters the projector)."""

_LOG: Final = logging.getLogger("vllm.tokentrim")


def readings(texts: Sequence[str], family: PrunedFamily) -> frozenset[Reading]:
    """What the strategies of some pictures read of the tower."""
    layout, wanted = family.layout, set[Reading]()
    for text in dict.fromkeys(texts):
        for decision in decisions(text, family.shape, family.shape.usual_visual):
            needed = decision.part.needed()
            blocks = decision.part.vision_blocks_of(layout.features_block, len(layout.vision_attentions))
            wanted |= {(need, layout.vision_block(block)) for need in needed & FROM_TOWER for block in blocks}
            if Need.VISION_HIDDEN in needed and layout.projector is not None:
                wanted.add((Need.VISION_HIDDEN, 0))
    return frozenset(wanted)


@dataclass(frozen=True)
class PictureKept:
    """What goes on of one picture.

    Attributes:
        features: [n, D], in the order in which they enter the language model.
        places: int64 [n]: which of the picture's placeholders each one was.
    """

    features: Tensor
    places: Tensor


@dataclass(frozen=True)
class ServedPictures:
    """ServedPictures of one call of the tower.

    Attributes:
        family: of the model; its layout's projector is the served one.
        encoding: the call, and how many placeholders each picture became.
        features: [placeholders, D] of each picture.
        read: float [H, placeholders of all] of the tower.
        width: how much of each feature a strategy sees and changes; what lies behind goes along. None = all.
    """

    family: PrunedFamily
    encoding: Encoding
    features: Sequence[Tensor]
    read: Mapping[Reading, Tensor]
    width: int | None = None

    @cached_property
    def places(self) -> list[Places]:
        """Where the placeholders of each picture lie, on the host."""
        return self.family.adapter.pictures(self.family.layout, self.encoding, [])

    def pixels(self, item: int) -> Tensor:
        """Pixel values of one picture."""
        layout, adapter, encoding = self.family.layout, self.family.adapter, self.encoding
        if not isinstance(encoding.arguments.get("pixel_values"), list):
            return adapter.pixels(layout, encoding, item)
        # vLLM does not pad pictures of several sizes: to the adapter, this one was encoded alone.
        own = {name: values[item][None] for name, values in encoding.arguments.items()}
        return adapter.pixels(layout, replace(encoding, arguments=own, lengths=(encoding.lengths[item],)), 0)

    def kept(self, texts: Sequence[str]) -> list[PictureKept]:
        """What stays of each picture by its strategy.

        Raises:
            StrategyError: when a strategy breaks its contract.
        """
        doubts = Doubts()
        with torch.no_grad():
            found = [_ServedPicture(self, item, text, doubts).kept() for item, text in enumerate(texts)]
        try:
            doubts.settle()
        except StrategyError as error:
            # Numbers are kept all the same, as many as promised: one broken picture must not stop a server.
            _LOG.error("%s", error)
        return found


@dataclass
class _ServedPicture:
    """One of them, while its strategy decides."""

    pictures: ServedPictures
    item: int
    text: str
    doubts: Doubts

    def __post_init__(self) -> None:
        width, places = self.pictures.width, self.pictures.places[self.item]
        self.device = self.pictures.features[self.item].device
        self.whole = self.pictures.features[self.item]
        structure = places.structure
        marks = torch.zeros(len(places.row), dtype=torch.bool) if structure is None else structure
        self.structure = marks.nonzero()[:, 0].to(self.device)
        self.visual = (~marks).nonzero()[:, 0].to(self.device)  # raster number -> placeholder
        self.embeds = self.whole[self.visual, :width]
        self.ids = torch.arange(len(self.visual), device=self.device)
        self.hidden, self.behind = self.embeds, torch.zeros_like(self.ids, dtype=torch.bool)

    def kept(self) -> PictureKept:
        """Take all decisions, then put the tokens in their order."""
        for decision in decisions(self.text, self.pictures.family.shape, len(self.ids)):
            count = min(decision.counts[0], len(self.ids))
            if count < len(self.ids):
                self._apply(self._decided(decision, count))
        own = self.visual[self.ids]
        rest = self.whole[own, self.embeds.shape[1] :]  # features of deeper layers stay what they are
        places = torch.cat([own, self.structure])
        features = torch.cat([torch.cat([self.hidden, rest], dim=1), self.whole[self.structure]])
        order = self._order(places)
        return PictureKept(features[order], places[order])

    def _decided(self, decision: Decision, count: int) -> Selection:
        family, part, n = self.pictures.family, decision.part, len(self.ids)
        info = PromptInfo((len(self.visual),), family.shape)
        site = LayerSite(
            shape=family.shape,
            n_visual=(n,),
            ids=self.ids[None].clone(),
            valid=torch.ones(1, n, dtype=torch.bool, device=self.device),
            state=part.begin(info),
            keys_of_rows=self._key().to(self.device),
            needs=part.needed_at(0),
            providers=self._providers(decision),
            n_original=(len(self.visual),),
            projector=projecting(family.layout, self.device, self.embeds.dtype),
        )
        return decide(part, (count,), site, self.doubts)

    def _apply(self, selection: Selection) -> None:
        kept, behind = selection.kept[0, : selection.counts[0]], selection.behind
        if selection.features is not None:
            hidden = selection.features[0, : len(kept)].to(self.hidden.dtype)
        elif selection.merges:
            hidden = merge_features(self.hidden[None], selection)[0]
        else:
            hidden = self.hidden[kept]
        self.hidden, self.ids, self.behind = hidden, self.ids[kept], self.behind[kept]
        if behind is not None:
            self.behind[len(kept) - behind[0] :] = True

    def _order(self, places: Tensor) -> Tensor:
        """Raster order, but for what goes behind the last visual token."""
        slots = len(places) + 1
        line = places * slots
        moved = self.behind.nonzero()[:, 0]
        if len(moved):
            line[moved] = self.visual[-1] * slots + 1 + torch.arange(len(moved), device=line.device)
        return line.argsort(stable=True)

    def _key(self) -> Tensor:
        """int64 [1]: what seeds noise in the engine where a prompt shows this picture alone."""
        return mix(pixel_key(self.pictures.pixels(self.item)[None]))

    # ------------------------------------------------------------------ what a site may ask for

    def _providers(self, decision: Decision) -> dict[Need, Callable[[], Any]]:
        return {
            Need.FEATURES: lambda: self.embeds[self.ids][None],
            Need.HIDDEN: lambda: self.hidden[None],
            Need.RANDOM: lambda: None,
            Need.GRID: self._grid,
            Need.VISION_HIDDEN: self._vision_hidden,
            **{need: partial(self._of_tower, need, decision) for need in FROM_TOWER},
        }

    def _columns(self, what: Reading) -> Tensor:
        """float [H, N]: what was read, at the current tokens."""
        before = sum(self.pictures.encoding.lengths[: self.item])
        return self.pictures.read[what].to(self.device)[:, before + self.visual[self.ids]]

    def _of_tower(self, need: Need, decision: Decision) -> Tensor:
        layout = self.pictures.family.layout
        blocks = decision.part.vision_blocks_of(layout.features_block, len(layout.vision_attentions))
        stacked = torch.stack([self._columns((need, layout.vision_block(block))) for block in blocks])[None]
        return stacked.transpose(2, 3) if need == Need.VISION_KEYS else stacked

    def _vision_hidden(self) -> Tensor:
        if self.pictures.family.layout.projector is None:
            return self.embeds[self.ids][None]
        return self._columns((Need.VISION_HIDDEN, 0)).transpose(0, 1)[None]

    def _grid(self) -> Grid:
        places, own = self.pictures.places[self.item], self.visual[self.ids].cpu()
        where = {name: getattr(places, name)[own].to(self.device)[None] for name in PLACE}
        return Grid(image=torch.zeros_like(self.ids)[None], **where)
