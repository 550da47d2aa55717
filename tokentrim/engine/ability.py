"""Ability: what acts on a model beside deciding which tokens stay, in verbs that the engine knows instead of names.

Reading the vision tower, editing attention, asking a guide, packing ragged batches, compiling decode steps: each is an
object with the verbs below. An ability overrides those that it needs; the others do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from tokentrim.engine.seams.attention import Kernel
from tokentrim.engine.seams.calls import GenerateOptions
from tokentrim.engine.seams.clock import Clock
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream


@dataclass(frozen=True)
class PromptOrigin:
    """What a prompt was made of.

    Attributes:
        arguments: of the entry module's forward, by name.
        mask: [B, T], 0 in padding; None where the caller gave none.
        pictures: the arguments from which the pictures were encoded; empty where they were encoded elsewhere.
        clock: what takes the time.
    """

    arguments: Mapping[str, Any]
    mask: Tensor | None
    pictures: Callable[[], dict[str, Any]]
    clock: Clock


class Ability:
    """What acts on a model while the engine is installed."""

    edits_attention: ClassVar[bool] = False
    """Whether :meth:`around_attention` changes anything; attention is then seen in every prompt."""

    @property
    def edits_steps(self) -> bool:
        """Whether it changes the attention of decode steps, too."""
        return False

    def attach(self) -> None:
        """Hook the model, when the engine is installed."""

    def detach(self) -> None:
        """Put back what :meth:`attach` changed; also when it failed half-way, or was never called."""

    def around_call(self, host: nn.Module, options: GenerateOptions, run: Callable[[], Any]) -> Any:
        """Run a call of ``generate`` of ``host``; returns what the caller gets."""
        return run()

    def before_prompt(self, prompt: Prompt, origin: PromptOrigin) -> None:
        """See a prompt with pictures before any of it runs."""

    def before_layer(self, layer: int, stream: Stream) -> None:
        """Follow a cut: from decoder layer ``layer`` on, a prompt's tokens stand as ``stream`` says."""

    def around_attention(self, layer: int, kernel: Kernel, stream: Stream, prompt: Prompt) -> Kernel:
        """The attention function of ``layer``, whose first columns are those of ``stream``."""
        return kernel

    def after_prompt(self, prompt: Prompt) -> None:
        """See a prompt's forward end, well or with an exception."""

    def notes(self) -> list[str]:
        """What a reader of the report must know."""
        return []
