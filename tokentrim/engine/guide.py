"""A guide: a model, usually a smaller one, that answers each prompt first; what it attends to ranks the tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokentrim import loading
from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.extras import GuideRequest
from tokentrim.contracts.strategy import Strategy
from tokentrim.counting.costs import Usage, head_flops
from tokentrim.counting.rounding import keep_count
from tokentrim.engine.abilities.exits import Answers, Attended, Chances, Exited, Exits, lengths_to_end, likelihood
from tokentrim.engine.ability import Ability, PromptOrigin
from tokentrim.engine.generate import answer_lengths
from tokentrim.engine.seams import attention, attention_rows
from tokentrim.engine.seams.calls import GenerateOptions
from tokentrim.engine.seams.masks import window_in
from tokentrim.engine.session import Session
from tokentrim.engine.tokens.placement import encoded_elsewhere
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream, moved
from tokentrim.errors import UnsupportedError, complaint

_TEXTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
_KEPT_LOADED = 2
_LOADED: dict[tuple[str, str, str], Any] = {}


class _Exiting(threading.local):
    """The call of each thread that may exit early."""

    exits: Exits | None = None


@dataclass
class Guide(Ability):
    """A model that answers a prompt before the trimmed one does.

    Attributes:
        model: answers with the caller's own ``generate`` machinery, greedily.
        adapter: of its family.
        layout: where the adapter found things.
        request: what is read of it.
    """

    model: Any
    adapter: Adapter
    layout: Layout
    request: GuideRequest
    _asked: _Exiting = field(default_factory=_Exiting)

    def around_call(self, host: nn.Module, options: GenerateOptions, run: Callable[[], Any]) -> Any:
        """Put the guide's answers in the place of the model's, where the request lets it and it is sure enough.

        Raises:
            UnsupportedError: when the call asks for more than one greedy answer per row.
        """
        if self.request.exit_threshold is None:
            return run()
        outer = self._asked.exits
        self._asked.exits = exits = Exits.of(host, options, self.request.exit_threshold)
        try:
            output = run()
        except Exited:
            output = None
        finally:
            self._asked.exits = outer
        return exits.joined(output)

    def before_prompt(self, prompt: Prompt, origin: PromptOrigin) -> None:
        """Answer a prompt as the trimmed model got it, and note there what was attended to; that time is selection.

        Neighbouring rows may be one sample (beams); each sample is answered once.

        Raises:
            UnsupportedError: when the prompt's pictures were encoded elsewhere, or the guide cannot take it.
        """
        sources, device = origin.pictures(), prompt.start.vis_pos.device
        if not sources:
            raise encoded_elsewhere("the prompt of a guide")
        with origin.clock.timed("selection", device), origin.clock.timed("prefill", device):
            self._answer(prompt, origin.arguments, sources, origin.mask)

    def _answer(
        self, prompt: Prompt, arguments: Mapping[str, Any], sources: Mapping[str, Any], mask: Tensor | None
    ) -> None:
        exits, start, repeats = self._asked.exits, prompt.start, prompt.placement.repeats if prompt.placement else 1
        texts = {name: value[::repeats] for name in _TEXTS if (value := arguments.get(name)) is not None}
        visual = start.visual_mask()[::repeats]
        if mask is not None:
            mask = mask[::repeats]
            # A prompt to continue ends where its answer begins: whatever was padded behind goes in front.
            order = torch.argsort(mask.bool().to(torch.uint8), dim=1, stable=True)
            texts = {name: value.gather(1, order) for name, value in texts.items()}
            visual, mask = visual.gather(1, order), mask.gather(1, order)
        with torch.no_grad():
            said = self.say({**texts, **sources}, visual, mask, exits)
        prompt.guided = said.scores.repeat_interleave(repeats, dim=0).to(start.vis_pos.device)
        prompt.guide_flops = tuple(flops for flops in said.flops for _ in range(repeats))
        if exits is not None and said.answers is not None:
            all_exit = exits.decide(said.answers, start.n_visual)
            prompt.exit(exits.rows, said.answers.scores.tolist(), skipped=all_exit)

    def _require_within_window(self, length: int) -> None:
        window = window_in(self.layout.text_config)
        if window is not None and length > window:
            raise UnsupportedError(
                complaint(
                    f"prompt and answer of the guide {self.request.model!r}",
                    f"be at most its window, {window} tokens long: what it looked at is read from all of them",
                    length,
                    "shorten them, or choose a guide without a sliding window",
                )
            )

    def say(self, inputs: Mapping[str, Any], visual: Tensor, valid: Tensor | None, exits: Exits | None = None) -> Said:
        """Answer a prompt.

        Args:
            inputs: of ``generate``: ids, mask, and pixels as the processor made them.
            visual: bool [B, T], the visual tokens.
            valid: bool or int [B, T], 0 in padding; None when nothing is padded.
            exits: where the answer may stand in for the model's; it then is as long as the caller asked for.

        Raises:
            UnsupportedError: when the guide cannot run the prompt: it must see the same visual tokens, and all of them.
        """
        stream = Stream.of_prompt(visual, valid)
        watch, chances = _Watch(self.layout, stream, self.request), Chances()
        short = {"max_new_tokens": max(1, self.request.new_tokens), "do_sample": False}
        how: dict[str, Any] = short if exits is None else {**exits.settings, "logits_processor": [chances]}
        answers = None
        self._require_within_window(visual.shape[1] + int(how.get("max_new_tokens") or 0))
        try:
            with attention.observing(watch.observers(), self.layout.text_config):
                output = self.model.generate(**inputs, **how)
            tokens = output[:, visual.shape[1] :]
            lengths = answer_lengths(self.model, tokens) if exits is None else lengths_to_end(tokens, exits.ends)
            scores = watch.total(lengths)
            if exits is not None:
                consistency = self._consistency(inputs, scores, stream.n_visual, tokens, lengths)
                answers = Answers(tokens, tuple(lengths), chances.confidence(lengths), consistency)
        except (ValueError, RuntimeError, IndexError, TypeError, KeyError) as cause:
            raise UnsupportedError(
                complaint(
                    f"the guide {self.request.model!r}",
                    "take the same prompt, with as many visual tokens, as the model that it guides",
                    f"{type(cause).__name__}: {cause}",
                    "choose a guide of the same family, with the same tower, tiling and tokenizer",
                )
            ) from cause
        return Said(scores, tuple(map(self._flops, stream.n_visual, stream.real, lengths)), answers)

    def _consistency(
        self, inputs: Mapping[str, Any], scores: Tensor, n_visual: Sequence[int], tokens: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """float [B]: how likely the guide finds its own answer when it sees few of the visual tokens."""
        grown, given = dict(inputs), tokens[:, :-1]
        for name in _TEXTS:
            if (before := grown.get(name)) is not None:
                # What stands behind a row's end changes nothing before it, so it need not be masked.
                more = {"input_ids": given, "attention_mask": torch.ones_like(given)}.get(name, torch.zeros_like(given))
                grown[name] = torch.cat([before, more.to(before)], dim=1)
        few = Attended(keep_ratio=self.request.consistency_ratio)
        with Session(self.model, few, adapter=self.adapter, layout=self.layout, record=False) as session:
            session.annotate(evidence=[row[:n] for row, n in zip(scores.cpu(), n_visual, strict=True)])
            logits = self.model(**grown, use_cache=False, logits_to_keep=tokens.shape[1]).logits
        return likelihood(logits, tokens, lengths)

    def _flops(self, n_visual: int, real: int, n_new: int) -> int:
        """FLOPs of all that the guide does for one row: tower, prompt, answer, and its second look if any."""
        shape = self.layout.shape
        full = (n_visual,) * shape.n_layers
        asked = Usage(shape, n_visual, real - n_visual, full, (full,) * (n_new - 1))
        total = asked.prefill_flops_whole + asked.decode_flops
        if self.request.exit_threshold is not None:
            few = (keep_count(self.request.consistency_ratio, n_visual),) * shape.n_layers
            again = Usage(shape, n_visual, real - n_visual + n_new - 1, few)
            total += again.prefill_flops_whole + head_flops(shape, n_new - 1)
        return total


@dataclass(frozen=True)
class Said:
    """What a guide makes of a prompt.

    Attributes:
        scores: float32 [B, N]: attention to each visual token, summed over layers, heads and the rows asked for.
        flops: of each row, physical convention.
        answers: what it answered, where that may stand in for the model's answer.
    """

    scores: Tensor
    flops: tuple[int, ...]
    answers: Answers | None


@dataclass
class _Watch:
    """Sums of attention rows while the guide runs; no map is kept."""

    layout: Layout
    stream: Stream
    request: GuideRequest
    prompt: Tensor | None = None
    steps: list[Tensor] = field(default_factory=list[Tensor])

    def __post_init__(self) -> None:
        layers = range(len(self.layout.attentions))
        chosen = layers if self.request.layers is None else self.request.layers
        self.chosen = [layer % len(layers) for layer in chosen]
        wanted = self.request.rows
        self.reads_prompt = wanted in ("prompt", "both", "last")
        self.reads_steps = wanted in ("generated", "both")
        self.columns, real = self.stream.text()
        self.behind = real & (self.columns > self.stream.last_visual())

    def observers(self) -> dict[nn.Module, attention.Observer]:
        """Who looks at the chosen layers, by attention module."""
        modules = self.layout.attentions
        return {modules[layer]: self._observer(first=order == 0) for order, layer in enumerate(self.chosen)}

    def _observer(self, *, first: bool) -> attention.Observer:
        def look(call: attention.AttentionCall) -> attention.Attended:
            query, key, scaling = call.query, call.key, call.scaling
            with torch.no_grad():
                if query.shape[2] > 1:
                    if self.reads_prompt:
                        read = self._prompt_rows(query, key, scaling)
                        self.prompt = read if self.prompt is None else self.prompt.to(read.device) + read
                elif self.reads_steps:
                    read = self._step_row(query, key, scaling)
                    if first:
                        self.steps.append(read)
                    else:
                        self.steps[-1] = self.steps[-1].to(read.device) + read
            return call.run()

        return look

    def _prompt_rows(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        stream = self.stream.on(query.device)
        if self.request.rows == "last":
            row = attention_rows.last_row(query, key, scaling, stream.last_columns(), stream.valid)
            return attention_rows.pick_visual(row, stream.vis_pos)[:, :, 0].sum(1)
        columns, behind = moved((self.columns, self.behind), query.device)
        visible = attention_rows.causal_visible(columns, key.shape[2], stream.valid, behind)
        rows = attention_rows.attention_rows(attention_rows.pick_rows(query, columns), key, scaling, visible)
        return attention_rows.pick_visual(rows, stream.vis_pos).sum((1, 2))

    def _step_row(self, query: Tensor, key: Tensor, scaling: float) -> Tensor:
        stream, valid = self.stream.on(query.device), None
        if stream.valid is not None:
            new = stream.valid.new_ones(stream.rows, key.shape[2] - stream.length)
            valid = torch.cat([stream.valid, new], dim=1)
        row = attention_rows.last_row(query, key, scaling, None, valid)
        return attention_rows.pick_visual(row, stream.vis_pos)[:, :, 0].sum(1)

    def total(self, lengths: list[int]) -> Tensor:
        """The sums; of generated tokens only those up to each row's own end."""
        stream, total = self.stream, self.prompt
        if total is None:
            total = torch.zeros(stream.vis_ids.shape, dtype=torch.float32, device=stream.device)
        total = total.to(stream.device)
        ends = torch.tensor(lengths, device=total.device)
        for step, read in enumerate(self.steps, start=1):
            total = total + read.to(stream.device) * (step < ends).unsqueeze(1)
        return total.masked_fill(~stream.vis_valid, 0.0)


def request_of(strategy: Strategy) -> GuideRequest | None:
    """What a strategy's parts ask of a guide.

    Raises:
        UnsupportedError: when they ask for different things: a prompt is answered by one guide, once.
    """
    found = {request for part in strategy.spatial_parts if (request := part.wants_guide()) is not None}
    if len(found) > 1:
        raise UnsupportedError(
            complaint("parts of one strategy", "share one guide", sorted(request.model for request in found),
                      "give every part the same guide and the same rows")
        )  # fmt: skip
    return next(iter(found), None)


def load(request: GuideRequest, beside: Any) -> Any:
    """The guide's model on the device of ``beside`` and in its number format; the last two used stay loaded.

    Raises:
        UnknownNameError, UnsupportedError, DataError: as :func:`tokentrim.loading.load_model`.
    """
    folder: Path = loading.resolve_folder(request.model)
    key = (str(folder.resolve()), str(beside.device), str(beside.dtype))
    if key not in _LOADED:
        while len(_LOADED) >= _KEPT_LOADED:
            _LOADED.pop(next(iter(_LOADED)))
        _LOADED[key] = loading.load_model(request.model, "cpu").model.to(beside.device, beside.dtype)
    return _LOADED[key]
