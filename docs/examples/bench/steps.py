# python docs/examples/bench/steps.py
"""What a decode step costs where visual entries fade: nothing does, they may return, or they leave for good.

Random weights, eight layers of LLaVA-1.5 at a quarter of its width, pruned to 38 % of the visual tokens. CPU time of
one thread, which other work hardly changes; the arms in turn, medians and half the distance of the quartiles.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from tokentrim import trim
from tokentrim.bench.geometry import GEOMETRIES, build_model
from tokentrim.runs.spread import Spread

TEXT, STEPS, REPEATS = 35, 12, 2
CUT = {"start": 2, "stride": 3, "prune_ratio": 0.72}
ARMS: dict[str, dict[str, Any]] = {
    "pvtp": {"name": "pvtp", **CUT},
    "st3": {"name": "st3", **CUT},
    "st3, evict: true": {"name": "st3", "evict": True, **CUT},
}


def prompt(model: Any, n_visual: int, pixels: int) -> dict[str, Tensor]:
    """A picture and a question."""
    noise = torch.Generator().manual_seed(0)
    text = torch.randint(4, 8000, (TEXT,), generator=noise)
    image = torch.full((n_visual,), model.config.image_token_id)
    ids = torch.cat([text[:1], image, text[1:]]).unsqueeze(0)
    images = torch.randn(1, 3, pixels, pixels, generator=noise)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}


def seconds(model: Any, inputs: dict[str, Tensor], strategy: dict[str, Any], new_tokens: int) -> float:
    """CPU seconds of one answer."""
    with torch.inference_mode(), trim(model, strategy, record=False):
        before = time.process_time()
        model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        return time.process_time() - before


def main() -> None:
    """Time every arm, and print a table."""
    torch.set_num_threads(1)
    geometry = GEOMETRIES["scaled-8"]
    model = build_model(geometry, torch.device("cpu"), torch.float32, 0)
    print(f"| visual tokens | {' | '.join(f'{arm}: ms per step' for arm in ARMS)} |")
    print("| ---: | " + " | ".join("---:" for _ in ARMS) + " |")
    inputs = prompt(model, geometry.n_visual, geometry.image_size)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for repeat in range(REPEATS + 1):
        for arm, strategy in ARMS.items():
            step = (seconds(model, inputs, strategy, 1 + STEPS) - seconds(model, inputs, strategy, 1)) / STEPS
            if repeat:  # the first round is not counted
                found[arm].append(1000 * step)
    print(f"| {geometry.n_visual} | {' | '.join(Spread.of(found[arm]).text() for arm in ARMS)} |")


if __name__ == "__main__":
    main()
