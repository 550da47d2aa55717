"""What a strategy without parts does: nothing. The model runs as it is, whatever it is asked; the account is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from tokentrim.engine.prompting import Prompting
from tokentrim.engine.seams.calls import cached_length
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream


@dataclass
class _Account:
    """What one cache holds: its prompt, and which of the prompt's columns are visual and real."""

    prompt: Prompt
    visual: Tensor
    valid: Tensor | None


@dataclass
class Untouched:
    """Looks on at every forward and replaces nothing: no cache, no mask, no argument.

    So every cache, mask and way of decoding that the model knows is allowed. A prompt that comes in several forwards
    (chunks, another picture in a later turn) is counted as one.
    """

    prompting: Prompting
    _accounts: WeakKeyDictionary[Any, _Account] = field(default_factory=WeakKeyDictionary[Any, _Account])
    unseen: int = 0
    _running: tuple[_Account, bool, Any, str, Any] | None = None

    def enter(self, arguments: dict[str, Any], modalities: Tensor | None) -> None:
        """See a forward of the language model; ``modalities`` uint8 [B, T], None where its input is text alone."""
        self._running = None
        past, embeds = arguments.get("past_key_values"), arguments["inputs_embeds"]
        begun = cached_length(past)
        account = self._accounts.get(past) if begun else None
        call = self.prompting.generating.call
        if begun and account is None:
            self.unseen += 1
            return  # a copy, or filled before the context was entered: its prompt was never seen
        mark = self.prompting.context.clock.start(embeds.device)
        if account is not None:
            inside = call is not None and call.chunked and begun < call.columns
            if modalities is None or not (inside or bool(modalities.any())):
                self._running = (account, False, past, "decode", mark)
                return
        if modalities is None:
            return  # embeddings of the caller's own, which do not tell where pictures are
        if call is not None and account is None:
            modalities = modalities[:, : call.columns]  # what follows are guesses of an assistant
        valid = _valid(arguments.get("attention_mask"), begun, modalities.shape[1])
        is_new = account is None
        if account is None:
            account = _Account(self.prompting.begin(modalities, valid), modalities > 0, valid)
        else:
            account = self._longer(account, modalities, valid)
        self._running = (account, is_new, past, "prefill", mark)

    def notes(self) -> list[str]:
        """For the report: what is not in it."""
        what = "forwards continued a cache that was copied, or filled elsewhere: they are in no figure but this"
        return [f"{self.unseen} {what}"] if self.unseen else []

    def _longer(self, account: _Account, modalities: Tensor, valid: Tensor | None) -> _Account:
        """The same prompt with more columns; the answer between two turns is no part of it."""
        visual = torch.cat([account.visual, modalities > 0], dim=1)
        if valid is not None or account.valid is not None:
            before = torch.ones_like(account.visual) if account.valid is None else account.valid
            after = torch.ones_like(modalities, dtype=torch.bool) if valid is None else valid
            valid = torch.cat([before, after], dim=1)
        prompt = account.prompt
        prompt.start, prompt.length = Stream.of_prompt(visual, valid), visual.shape[1]
        prompt.forget_placement()
        if prompt.trace is not None:
            prompt.trace.n_visual = prompt.start.n_visual
            prompt.trace.prefill.clear()
        return _Account(prompt, visual, valid)

    def leave(self, output: Any) -> None:
        """Count the forward that has ended; None for one that raised."""
        running, self._running = self._running, None
        if running is None or output is None:
            return
        account, is_new, past, phase, mark = running
        self.prompting.context.clock.stop(phase, mark)
        prompt, layers = account.prompt, self.prompting.context.shape.n_layers
        counts = [prompt.start.n_visual] * layers
        if phase == "decode":
            prompt.step += 1
            prompt.held.append(counts)
            if prompt.trace is not None:
                prompt.trace.steps = prompt.step
            return
        prompt.layer_counts = counts
        if prompt.trace is not None:
            prompt.trace.prefill.append((0, prompt.start.vis_ids))
        past = getattr(output, "past_key_values", None) if past is None else past
        if past is not None:
            self._accounts[past] = account
            prompt.kin.caches.add(past)
        if is_new:
            self.prompting.on_prompt(prompt)


def _valid(mask: Any, begun: int, columns: int) -> Tensor | None:
    """bool [B, columns]: which of the new columns are real, from a 2-D mask, or from the last row of a 4-D one."""
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        return None
    line = mask if mask.dim() == 2 else mask[:, 0, -1]
    if mask.dim() == 4 and mask.is_floating_point():
        line = line == 0
    return line[:, begun : begun + columns].bool()
