"""Compiled decoding: steps of one token under ``torch.compile``, with buffers whose sizes stay the same.

After prefill every layer's entries go into a buffer of bucketed size, and a step of one new token runs the language
model's own ``forward`` compiled. What changes from step to step are numbers in one tensor: where the new entry goes,
and which columns in front are given up. Compiled code is kept by the sizes of the buffers, so that later prompts
use it again. A step that cannot run so runs as without compiling, and the reason is noted for the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokentrim.contracts.adapter import Layout
from tokentrim.contracts.strategy import TemporalScorer
from tokentrim.engine.ability import Ability
from tokentrim.engine.deciding import SCORES, Place
from tokentrim.engine.decode import Decode
from tokentrim.engine.masked_eviction import MaskedEviction, attend_and_evict, chooses_under_mask, in_use
from tokentrim.engine.passes import Passes
from tokentrim.engine.seams import fixed_cache
from tokentrim.engine.seams.attention import attention_set
from tokentrim.engine.seams.outputs import asked_for
from tokentrim.engine.seams.private import compiler, register_attention
from tokentrim.engine.seams.undo import Undo, patch
from tokentrim.engine.tokens import cache
from tokentrim.engine.tokens.prompt import Prompt

_NAME: Final = "tokentrim_compiled"
_NAME_EVICTING: Final = "tokentrim_compiled_evicting"
_STATE: Final = "tokentrim_state"
_EVICTION: Final = "tokentrim_masked_eviction"
_KERNELS: Final = ("sdpa", "eager")
_UNUSABLE: Final = ("hidden_states", "attentions")
_GRAPHS: Final = 64
"""Sets of buffer sizes for which compiled code is kept, per model."""
_AHEAD: Final = 256
"""New tokens that buffers have room for, where ``generate`` does not say how many there will be."""


def bucket(columns: int) -> int:
    """Columns of the smallest buffer that holds ``columns``: four sizes per octave, at least 64."""
    if columns <= 64:
        return 64
    octave = 1 << (columns - 1).bit_length() - 1  # the power of two below
    step = octave // 4
    return octave + -(-(columns - octave) // step) * step


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """One query per row over the columns in use. ``state`` [L, 1 + B] says which: the newest, and each row's first."""
    layer: Any = module.layer_idx
    seen = in_use(options[_STATE], layer, key, options[_EVICTION])
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    mixed = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen[:, None, None], scale=options.get("scaling")
    )
    return mixed.transpose(1, 2).contiguous(), None


def _evicting_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """The same, where the step lets entries go."""
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    return attend_and_evict(module, query, key, value, options[_STATE], options[_EVICTION], scaling), None


class Compiled(Ability):
    """Compiled decode steps of one model. It stands in front of a whole step, which no verb between layers could say.

    Attributes:
        steps: decode forwards that ran compiled.
        reasons: why others did not, with how many.
    """

    def __init__(self, layout: Layout, passes: Passes) -> None:
        register_attention(_NAME, _attention)
        register_attention(_NAME_EVICTING, _evicting_attention)
        self._passes, self._config, self._model = passes, layout.text_config, layout.language_model
        self._forward: Callable[..., Any] = self._model.forward
        cuda = next(self._model.parameters()).device.type == "cuda"
        self._run = torch.compile(self._forward, dynamic=False, mode="reduce-overhead" if cuda else None)
        self._compiler = compiler()
        self._undo = Undo()
        self._cache: Any = None
        self._held: list[tuple[Tensor, Tensor]] = []
        self._numbers: list[list[int]] = []
        self._state: Tensor | None = None
        self._eviction: MaskedEviction | None = None
        self.steps = 0
        self.reasons: dict[str, int] = {}

    def attach(self) -> None:
        """Stand in front of the language model's ``forward``."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            run = self._passes.decoding
            if run is None or torch.compiler.is_compiling():
                return self._forward(*args, **kwargs)
            reason = self._unfit(run, args, kwargs)
            if reason is not None:
                self.reasons[reason] = self.reasons.get(reason, 0) + 1
                self._passes.catch_up(run)
                return self._forward(*args, **kwargs)
            return self._step(run, kwargs)

        patch(self._model, "forward", lambda _: forward, self._undo)

    def detach(self) -> None:
        """Put the language model's ``forward`` back."""
        self._undo.run()

    def notes(self) -> list[str]:
        """For the report: what ran compiled, and why the rest did not."""
        total = self.steps + sum(self.reasons.values())
        if not total:
            return []
        why = "; ".join(f"{count} not: {reason}" for reason, count in self.reasons.items())
        return [f"{self.steps} of {total} decode forwards ran compiled" + (f" ({why})" if why else "")]

    def _unfit(self, run: Decode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Why a step cannot run compiled; None where it can."""
        context, prompt = run.context, run.prompt
        if run.queries != 1:
            return "several new tokens at once"
        if (run.acting or run.read) and not chooses_under_mask(prompt.temporal, context.shape):
            return "a temporal part that counts by data, or reads more than its layer's own rows"
        if context.edits_attention:
            return "edited attention"
        if context.window is not None and prompt.length + sum(prompt.appended) > context.window:
            return "a sequence longer than a sliding window"
        if any(layer.shift is not None for layer in run.layers):
            return "renumbered positions"
        if prompt.appended_valid is not None or prompt.shown is not None:
            return "padding behind the prompt, or columns that a mask hides"
        if context.implementation not in _KERNELS or context.heads.shared:
            return "an attention implementation other than sdpa and eager on one device"
        if torch.is_grad_enabled():
            return "gradients"
        if any(layer.reordered for layer in run.layers):
            return "rows that change places (beams)"
        if args or any(asked_for(name, kwargs, self._config) for name in _UNUSABLE):
            return "outputs of every layer"
        return None

    def _step(self, run: Decode, kwargs: dict[str, Any]) -> Any:
        past = kwargs["past_key_values"]
        self._prepare(run)
        options = {name: value for name, value in kwargs.items() if value is not None}
        options["past_key_values"], options[_STATE], options[_EVICTION] = self._cache, self._state, self._eviction
        limits = self._compiler.config.patch(recompile_limit=_GRAPHS, fail_on_recompile_limit_hit=True)
        with attention_set(self._config, _NAME_EVICTING if run.acting or run.read else _NAME, self._undo), limits:
            torch.compiler.cudagraph_mark_step_begin()
            output = self._run(**options)
        for layer in run.layers:
            layer.written(1)
        if run.acting and self._eviction is not None:
            now, wrong = self._eviction.now.clone(), self._eviction.wrong.clone()
            for index, counts in run.acting.items():
                if self._eviction.part.evicts():
                    self._eviction.note(index, run.layers[index], counts)
                else:
                    run.seen[index] = counts
                run.note(index, now[index])
                place = Place(self._eviction.part, step=run.prompt.step, layer=index)
                run.context.doubts.note(SCORES, place, wrong[index])
        self.steps += 1
        if isinstance(output, tuple):
            return tuple(past if part is self._cache else part for part in output)
        output.past_key_values = past
        return output

    def _prepare(self, run: Decode) -> None:
        """Buffers of bucketed size, and where each layer's new entry goes."""
        layers, prompt = run.layers, run.prompt
        left = self._left(prompt)
        fit = all(layer.keeps_size and layer.writable and layer.columns_left for layer in layers)
        if not fit or self._wasteful(layers):
            for layer in layers:
                layer.settle()
                layer.resize(bucket(layer.stored_columns + left))
        buffers = [layer.buffers for layer in layers]
        known = len(self._held) == len(buffers) and all(a is b for a, b in zip(self._held, buffers, strict=True))
        if self._state is None or not known:
            device = layers[0].device
            self._state = torch.zeros(len(layers), 1 + run.streams[0].rows, dtype=torch.int64, device=device)
            self._held, self._numbers, self._eviction = buffers, [], None
            slots = (self._state[index, :1] for index in range(len(buffers)))
            self._cache = fixed_cache.fixed(
                [fixed_cache.FixedLayer(*pair, slot) for pair, slot in zip(buffers, slots, strict=True)]
            )
            if device.type == "cuda":
                for one in (self._state, *(tensor for pair in buffers for tensor in pair)):
                    self._compiler.mark_static_address(one)
        if self._eviction is not None and not self._eviction.describes(layers):
            self._eviction = None
        if (run.acting or run.read) and isinstance(prompt.temporal, TemporalScorer):
            self._let_go(run, prompt.temporal)
        numbers = [layer.places() for layer in layers]
        if numbers == [[line[0] + 1, *line[1:]] for line in self._numbers]:
            self._state[:, 0].add_(1)  # the usual step: nothing but the place of the new entry has changed
        else:
            self._state.copy_(torch.tensor(numbers))
        self._numbers = numbers

    def _let_go(self, run: Decode, part: TemporalScorer) -> None:
        """How many entries of each layer may stay."""
        if self._eviction is None:
            self._eviction = MaskedEviction(part, run.layers)
            if run.layers[0].device.type == "cuda":
                for one in self._eviction.tensors:
                    self._compiler.mark_static_address(one)
        held = [run.acting.get(index, layer.n_visual) for index, layer in enumerate(run.layers)]
        self._eviction.allowed.copy_(torch.tensor(held))

    @staticmethod
    def _left(prompt: Prompt) -> int:
        """New tokens that buffers should have room for; past the limit (another turn) as many as without one."""
        limit, appended = prompt.new_tokens, sum(prompt.appended)
        return _AHEAD if limit is None or limit < appended else limit - appended + 1

    @staticmethod
    def _wasteful(layers: list[cache.TrimLayer]) -> bool:
        """Whether most of the buffers' columns were given up or are masked."""
        held = sum(layer.buffers[0].shape[2] for layer in layers)
        return sum(layer.given_up + layer.masked for layer in layers) > held / 2
