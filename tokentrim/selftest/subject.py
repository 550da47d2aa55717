"""The subject of a self-test: a small copy, its located modules, and how to run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import Adapter, Encoding, Layout
from tokentrim.contracts.strategy import Strategy
from tokentrim.engine.seams.attention import is_observed
from tokentrim.engine.seams.private import HOOKS, attention_settings
from tokentrim.engine.session import Session
from tokentrim.selftest.pictures import Maker, noise
from tokentrim.selftest.probes import Scatter
from tokentrim.selftest.verdict import Skipped

STEPS: Final = 4
TOLERANCE: Final = 1e-4
"""Largest difference that counts as rounding, in units of the largest logit."""

ROWS: Final = ((3, 5), (9, 4))
"""Text tokens before and behind the picture of each row of a batch."""

_HOOKS: Final = (*HOOKS, *(name for options in HOOKS.values() for name in options), "_backward_hooks")


Rows = tuple[tuple[int, ...], ...]


class Prompts(Protocol):
    """Prompts by number, for a model that comes with its own."""

    def prompt(self, *rows: int) -> dict[str, Any]:
        """The numbered prompts as one left-padded batch."""
        ...

    def __len__(self) -> int:
        """Prompts that there are."""
        ...


@dataclass(frozen=True)
class Made:
    """Prompts that are made up: text and pictures of noise, functions of the row's number."""

    maker: Maker
    rows: Rows = ROWS

    def prompt(self, *rows: int) -> dict[str, Any]:
        """The numbered rows."""
        return self.maker.prompt(*(self.rows[row] for row in rows), seeds=rows)

    def __len__(self) -> int:
        """Rows that there are."""
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is tested.

    Attributes:
        build: makes the copy anew, with the same weights: (attention implementation, window) -> model.
        model: the copy.
        adapter: on trial.
        layout: where it found things in the copy.
        prompts: for the copy.
    """

    build: Callable[[str | None, int | None], Any]
    model: Any
    adapter: Adapter
    layout: Layout
    prompts: Prompts

    @property
    def maker(self) -> Maker:
        """What makes the prompts up.

        Raises:
            Skipped: when they came with the model.
        """
        if not isinstance(self.prompts, Made):
            raise Skipped("its pictures are given, and are not changed")
        return self.prompts.maker

    def prompt(self, *rows: int) -> dict[str, Any]:
        """A left-padded batch of numbered rows.

        Raises:
            Skipped: when there are not so many.
        """
        if max(rows) >= len(self.prompts):
            raise Skipped(f"{max(rows) + 1} prompts are needed, and {len(self.prompts)} are given")
        return self.prompts.prompt(*rows)

    def mutual(self, inputs: dict[str, Any]) -> Tensor | None:
        """int64 [T]: runs of tokens of a prompt's first row that see each other, as the adapter says; None without."""
        found = self.adapter.mutual(self.layout, inputs)
        return None if found is None else found[0]

    def visual(self, inputs: dict[str, Any]) -> Tensor:
        """bool [T]: the visual tokens of a prompt's first row; structure among the placeholders is none."""
        return self.visuals(inputs)[0]

    def visuals(self, inputs: dict[str, Any]) -> Tensor:
        """bool [B, T]: the visual tokens of a prompt."""
        if not self.layout.structured:
            return self.adapter.modalities(self.layout, inputs) > 0
        with self.trimmed(Scatter(shares={0: 1.0})) as session, torch.no_grad():
            self.model(**inputs)
            return session.visual

    def encoding(self) -> Encoding:
        """One picture, as the adapter is shown it."""
        return Encoding("image", noise(self.maker.form, 0), self.maker.lengths)

    def on(self, model: Any) -> tuple[Any, Layout]:
        """A model and its layout: the copy, unless another is given."""
        return (self.model, self.layout) if model is None else (model, self.adapter.locate(model))

    def trimmed(self, strategy: Strategy, model: Any = None) -> Session:
        """A session on the copy."""
        host, layout = self.on(model)
        return Session(host, strategy, adapter=self.adapter, layout=layout)


def answered(model: Any, inputs: dict[str, Any], new_tokens: int) -> tuple[Tensor, Tensor, Any]:
    """(new ids [B, n], their logits [B, n, V], the cache) of a greedy generation."""
    out = model.generate(
        **inputs, max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1), out.past_key_values


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = STEPS) -> tuple[Tensor, Tensor]:
    """The same without the cache."""
    return answered(model, inputs, new_tokens)[:2]


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference, in units of the expected logits' largest magnitude."""
    return float((found - expected).abs().max() / expected.abs().max())


def changes(model: nn.Module, before: dict[str, Any]) -> list[str]:
    """Names of what is no longer as :func:`state` said before."""
    now = state(model)
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model that a context could change: hooks, attributes, settings of every config."""
    found: dict[str, Any] = {}
    seen: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}  # of configs, which many modules share
    for name, module in model.named_modules():
        found[name] = {
            **{hooks: list(getattr(module, hooks)) for hooks in _HOOKS},
            "attributes": sorted(vars(module)),
            "forward": getattr(module.forward, "__func__", None),
            "class": type(module),
            "training": module.training,
            "observed": is_observed(module),
        }
        config: Any = getattr(module, "config", None)
        if config is not None:
            if id(config) not in seen:
                seen[id(config)] = config.to_dict(), attention_settings(config)
            found[f"config of {name}"], found[f"settings of {name}"] = seen[id(config)]
    return found
