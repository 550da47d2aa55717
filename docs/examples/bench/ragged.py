# python docs/examples/bench/ragged.py
"""Prefill of ragged batches: rows of few and of many pictures, padded to the longest or with real tokens alone.

Random weights, eight layers of LLaVA-1.5 at a quarter of its width, pruned at boundary 0. The same batch runs without
packing and with it, in turn; medians, and half the distance of the quartiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tokentrim import trim
from tokentrim.bench.geometry import GEOMETRIES, build_model
from tokentrim.engine.abilities import packing
from tokentrim.runs.spread import Spread
from tokentrim.runs.stopwatch import timed_generate

BATCHES = ((1, 1, 1, 4), (1, 2, 3, 4), (3, 4, 4, 4), (4, 4, 4, 4))  # pictures of each row
TEXT, REPEATS = 35, 5
STRATEGY = {"name": "random", "boundary": 0, "keep_ratio": 0.25}
ARMS = ("padded", "packed")


def prompt(model: Any, n_visual: int, pixels: int, pictures: Sequence[int]) -> dict[str, Tensor]:
    """Left-padded rows of so many pictures each, and a question."""
    noise, length = torch.Generator().manual_seed(0), TEXT + max(pictures) * n_visual
    ids = torch.zeros(len(pictures), length, dtype=torch.long)
    for row, count in enumerate(pictures):
        text = torch.randint(4, 8000, (TEXT,), generator=noise)
        image = torch.full((count * n_visual,), model.config.image_token_id)
        real = torch.cat([text[:1], image, text[1:]])
        ids[row, length - len(real) :] = real
    images = torch.randn(sum(pictures), 3, pixels, pixels, generator=noise)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": images}


def context(arm: str, model: Any) -> AbstractContextManager[Any]:
    """What an arm runs in."""
    stack = ExitStack()
    if arm == "padded":
        stack.enter_context(mock.patch.object(packing, "LEAST_PADDING", 1.0))
    stack.enter_context(trim(model, STRATEGY))
    return stack


def main() -> None:
    """Time every batch, and print a table."""
    torch.set_num_threads(2)
    geometry = GEOMETRIES["scaled-8"]
    model = build_model(geometry, torch.device("cpu"), torch.float32, 0)
    print("| pictures of each row | padding | padded, s | packed, s | packed against padded |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for pictures in BATCHES:
        inputs = prompt(model, geometry.n_visual, geometry.image_size, pictures)
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for repeat in range(REPEATS + 1):
            for arm in ARMS:
                with torch.inference_mode(), context(arm, model):
                    found = timed_generate(model, inputs, 1).prefill_seconds
                if repeat:  # the first round is not counted
                    seconds[arm].append(found)
        kept = [TEXT + int(0.25 * count * geometry.n_visual) for count in pictures]
        padding = 1 - sum(kept) / (len(kept) * max(kept))
        ratios = [one / other for one, other in zip(seconds["packed"], seconds["padded"], strict=True)]
        cells = [
            ", ".join(map(str, pictures)), f"{padding:.0%}", *(Spread.of(seconds[arm]).text() for arm in ARMS),
            Spread.of(ratios).text(),
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
