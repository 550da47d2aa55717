"""Placement: which placeholder of a prompt stands for which token of which encoded image or video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokentrim.contracts.adapter import MODALITIES, PLACE, Adapter, Encoding, Layout, Modality, Places
from tokentrim.contracts.sites import Grid
from tokentrim.errors import AdapterError, EngineError, UnsupportedError, complaint


@dataclass(frozen=True)
class Placement:
    """The placeholders of a prompt, numbered through all encoded images, then all encoded videos.

    Attributes:
        adapter: knows the family's grids.
        layout: the located modules.
        encodings: of the prompt, images before videos.
        number: int64 [B, T]: number of each placeholder in the encodings laid end to end; -1 at text.
        repeats: how many neighbouring rows share their pictures (beams); 1 where none do.
        tokens: int64 [B, T], the prompt's numbers in the vocabulary; None where they are not known.
    """

    adapter: Adapter
    layout: Layout
    encodings: tuple[Encoding, ...]
    number: Tensor
    repeats: int = 1
    tokens: Tensor | None = None

    @classmethod
    def of(
        cls,
        adapter: Adapter,
        layout: Layout,
        encodings: Sequence[Encoding],
        modalities: Tensor,
        tokens: Tensor | None = None,
    ) -> Placement:
        """Number the placeholders.

        Rows may be repeated (beams): every row of a run of equal rows shares the images of the first.

        Args:
            adapter: knows the family's grids.
            layout: the located modules.
            encodings: of the prompt, images before videos.
            modalities: uint8 [B, T], as :meth:`Adapter.modalities` gives it.
            tokens: int64 [B, T], the prompt's numbers in the vocabulary.

        Raises:
            EngineError: when the placeholders are not as many as the encoded tokens, or a multiple.
        """
        number = torch.full(modalities.shape, -1, dtype=torch.long, device=modalities.device)
        base, repeats = 0, 1
        for encoding in encodings:
            here = modalities == MODALITIES.index(encoding.modality) + 1
            starts, repeats = _starts(here.sum(1).tolist(), sum(encoding.lengths), encoding.modality)
            first = torch.tensor(starts, device=modalities.device).unsqueeze(1) + base
            number = torch.where(here, first + here.long().cumsum(1) - 1, number)
            base += sum(encoding.lengths)
        return cls(adapter, layout, tuple(encodings), number, repeats, tokens)

    @cached_property
    def items(self) -> Tensor:
        """int64 [placeholders of all encodings]: number of the encoded item that each belongs to, on the host."""
        return _numbered([n for encoding in self.encodings for n in encoding.lengths])

    @cached_property
    def _pictures(self) -> list[Places]:
        """Places of each image and video, on the host.

        Raises:
            AdapterError: when they are not as many as the encoded tokens.
        """
        found: list[Places] = []
        base = 0
        for encoding in self.encodings:
            end, prompts = base + sum(encoding.lengths), list[Tensor]()
            if self.tokens is not None and self.adapter.reads_prompts:
                tokens, number = self.tokens[:: self.repeats], self.number[:: self.repeats]
                serves = ((number >= base) & (number < end)).any(1)
                prompts = list(tokens[serves.to(tokens.device)].cpu())
            own = self.adapter.pictures(self.layout, encoding, prompts)
            placed = sum(len(places.row) for places in own)
            if placed != end - base:
                raise AdapterError(
                    complaint(f"the places of a prompt's {encoding.modality}s", f"be {end - base}, as the tokens are",
                              placed, "the family has drifted from what this adapter knows; please report the version")
                )  # fmt: skip
            found += own
            base = end
        return found

    @cached_property
    def places(self) -> Places:
        """Places of the placeholders of all encodings, end to end, on the host."""
        return Places.joined(self._pictures)

    def structure(self) -> Tensor:
        """bool [B, T]: the placeholders that are not visual tokens."""
        marks = self.places.structure
        if marks is None:
            return torch.zeros_like(self.number, dtype=torch.bool)
        marks = torch.cat([marks, marks.new_zeros(1)]).to(self.number.device)  # the last entry serves text
        return marks[self.number]

    def grid(self, vis_pos: Tensor, valid: Tensor) -> Grid:
        """The grid of the visual tokens at columns ``vis_pos`` [B, N]; ``valid`` bool [B, N] is False in padding."""
        places, device = self.places, vis_pos.device
        number = self.number.to(device).gather(1, vis_pos).clamp(min=0)

        def pick(values: Tensor) -> Tensor:
            return values.to(device)[number].masked_fill(~valid, -1)

        image = pick(_numbered([len(picture.row) for picture in self._pictures]))
        # Numbered from 0 in each row, whatever other rows hold.
        first = image.masked_fill(~valid, torch.iinfo(torch.int64).max).amin(dim=1, keepdim=True)
        where = {name: pick(getattr(places, name)) for name in PLACE}
        return Grid(image=(image - first).masked_fill(~valid, -1), **where)


def _numbered(lengths: Sequence[int]) -> Tensor:
    """int64 [sum(lengths)]: 0 ``lengths[0]`` times, then 1 ``lengths[1]`` times, and so on."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.long))


def fixed_encodings(adapter: Adapter, layout: Layout, modalities: Tensor) -> list[Encoding] | None:
    """Stand-ins for encodings that were made outside the context; None where sizes differ from image to image."""
    found: list[Encoding] = []
    for index, modality in enumerate(MODALITIES):
        total = int((modalities == index + 1).sum())
        length = adapter.fixed_length(layout, modality) if total else None
        if total and (length is None or total % length):
            return None
        if total and length is not None:
            found.append(Encoding(modality, {}, (length,) * (total // length)))
    return found


def encoded_elsewhere(what: str) -> UnsupportedError:
    """The error for pictures that were encoded where the engine could not see it."""
    return UnsupportedError(
        complaint(
            f"{what} of a prompt whose pictures differ in size",
            "be known from encoding them inside the context",
            "features made elsewhere",
            "pass the processor's output to generate() or to the model, and no mm_encoder_outputs",
        )
    )


def _starts(wanted: list[int], total: int, modality: Modality) -> tuple[list[int], int]:
    """First encoded token of each row, and how many equal neighbours share their images."""
    whole = sum(wanted)
    if total == 0 or whole % total or len(wanted) % (whole // total or 1):
        raise EngineError(
            complaint(
                f"{modality} tokens of the prompt",
                f"be the {total} that the vision tower just encoded (or a multiple, with beams)",
                whole,
                "encode the images inside the context",
            )
        )
    repeats, starts, position = max(1, whole // total), list[int](), 0
    for first in range(0, len(wanted), repeats):
        starts += [position] * repeats
        position += wanted[first]
    return starts, repeats
