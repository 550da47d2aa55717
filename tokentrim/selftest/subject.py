"""The subject of a self-test: a small copy, its located modules, and how to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from tokentrim.adapter import Adapter, Encoding, Layout, Places
from tokentrim.selftest.pictures import Maker, noise
from tokentrim.session import Session
from tokentrim.strategy import Strategy

STEPS: Final = 4
TOLERANCE: Final = 1e-4
"""Largest difference that counts as rounding, in units of the largest logit."""

ROWS: Final = ((3, 5), (9, 4))
"""Text tokens before and behind the picture of each row of a batch."""


@dataclass(frozen=True)
class Subject:
    """What is tested.

    Attributes:
        build: makes the copy anew, with the same weights: (attention implementation, window) -> model.
        model: the copy.
        adapter: on trial.
        layout: where it found things in the copy.
        maker: makes prompts.
    """

    build: Callable[[str | None, int | None], Any]
    model: Any
    adapter: Adapter
    layout: Layout
    maker: Maker

    def prompt(self, *rows: int) -> dict[str, Any]:
        """A batch of the numbered rows of ``ROWS``."""
        return self.maker.prompt(*(ROWS[row] for row in rows), seeds=rows)

    def visual(self, inputs: dict[str, Any]) -> Tensor:
        """bool [T]: the visual tokens of a prompt's first row; structure among the placeholders is none."""
        found = self.adapter.modalities(self.layout, inputs)[0] > 0
        if self.layout.structured:
            marks = self.structure()
            found[found.clone()] = ~marks
        return found

    def encoding(self) -> Encoding:
        """One picture, as the adapter is shown it."""
        return Encoding("image", noise(self.maker.form, 0), self.maker.lengths)

    def structure(self) -> Tensor:
        """bool [placeholders]: which placeholders of a picture are structure."""
        encoding = self.encoding()
        items = range(len(encoding.lengths))
        marks = Places.joined([self.adapter.places(self.layout, encoding, item) for item in items]).structure
        return torch.zeros(self.maker.length, dtype=torch.bool) if marks is None else marks

    def trimmed(self, strategy: Strategy, model: Any = None) -> Session:
        """A session on the copy."""
        host = self.model if model is None else model
        layout = self.layout if model is None else self.adapter.locate(model)
        return Session(host, strategy, found=(self.adapter, layout))


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = STEPS) -> tuple[Tensor, Tensor]:
    """(new ids [B, n], their logits [B, n, V]) of a greedy generation."""
    out = model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the expected logits' largest magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model that a context could change: hooks, attributes, attention settings."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
        config: Any = getattr(module, "config", None)
        settings = {key: value for key, value in vars(config).items() if key.startswith("_attn")} if config else {}
        found[name] = ([list(getattr(module, hook)) for hook in hooks], sorted(vars(module)), settings)
    return found
