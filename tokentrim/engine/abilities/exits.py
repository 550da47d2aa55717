"""Early exit: a guide that is sure enough of its answer gives it, and the trimmed model does not run.

A batch runs in the trimmed model as soon as one of its rows does not exit; the rows that do exit keep the guide's
answer all the same, so that a row's answer never depends on its neighbours.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from tokentrim.contracts.sites import LayerSite, Need
from tokentrim.contracts.strategy import SpatialScorer, Stage
from tokentrim.contracts.toolkit.clustering import within
from tokentrim.counting.rounding import keep_count
from tokentrim.counting.schedule import Schedule
from tokentrim.counting.shape import ModelShape
from tokentrim.engine.seams.calls import GenerateOptions
from tokentrim.errors import DataError, UnsupportedError, complaint, reason_of
from tokentrim.reading import utf8

# What one greedy answer per row rules out; the values that change nothing.
_PLAIN: Final[dict[str, tuple[Any, ...]]] = {
    "do_sample": (False,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "return_dict_in_generate": (False,),
    "guidance_scale": (1, 1.0),
}
_ABSENT: Final = (
    "streamer", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "stop_strings", "penalty_alpha",
    "dola_layers", "custom_generate", "constraints", "force_words_ids", "negative_prompt_ids",
)  # fmt: skip
_MOST_BYTES: Final = 1 << 28  # of a tokenizer.json
_WITHOUT: Final = "drop it for this call, or leave 'exit_threshold' out"


@dataclass(frozen=True)
class Answers:
    """What a guide answered.

    Attributes:
        tokens: int64 [B, A], columns past a row's end are padding.
        lengths: tokens of each row, its end token included.
        confidence: float [B]: geometric mean of the probabilities with which the guide chose these tokens.
        consistency: float [B]: product of their probabilities when the guide sees few visual tokens.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    confidence: Tensor
    consistency: Tensor

    @property
    def scores(self) -> Tensor:
        """float [B]: mean of both."""
        return (self.confidence + self.consistency) / 2


class Exited(Exception):
    """Leaves a forward that need not run: every row has its answer."""


@dataclass
class Exits:
    """Early exit in one call of ``generate``.

    Attributes:
        threshold: a row exits when its score is above this.
        settings: keyword arguments with which the guide generates what the caller asked for.
        ids: int64 [B, T], the caller's prompt.
        ends: end tokens.
        pad: what fills rows that have ended.
        answers: the guide's, as soon as it was asked.
        rows: rows that exit.
    """

    threshold: float
    settings: dict[str, Any]
    ids: Tensor
    ends: frozenset[int]
    pad: int
    answers: Answers | None = None
    rows: tuple[int, ...] = ()

    @classmethod
    def of(cls, host: Any, options: GenerateOptions, threshold: float) -> Exits:
        """For a call that may exit early.

        Raises:
            UnsupportedError: when the call asks for more than one greedy answer per row.
        """
        ids = _ids_of(options)
        config: Any = copy.deepcopy(options.arguments.get("generation_config") or host.generation_config)
        given = {k: v for k, v in options.arguments.items() if hasattr(config, k) and k != "generation_config"}
        config.update(**{**given, "do_sample": False, "num_beams": 1})  # one object: both ways at once are deprecated
        ends: Any = options.get("eos_token_id")
        known = frozenset[int]() if ends is None else frozenset([ends] if isinstance(ends, int) else map(int, ends))
        pad = options.get("pad_token_id")
        pad = int(min(known, default=0) if pad is None else pad)
        return cls(threshold, {"generation_config": config}, ids, known, pad)

    def decide(self, answers: Answers, n_visual: Sequence[int]) -> bool:
        """Note which rows exit; whether all do. A row without a picture has nothing to save."""
        sure: list[bool] = (answers.scores > self.threshold).tolist()
        self.answers = answers
        self.rows = tuple(row for row, (yes, n) in enumerate(zip(sure, n_visual, strict=True)) if yes and n)
        return len(self.rows) == len(n_visual)

    def joined(self, output: Any) -> Any:
        """What ``generate`` returns: the prompt, and each row's answer from whoever gave it.

        Args:
            output: int64 [B, T + A] of the trimmed model; None where it did not run.
        """
        if self.answers is None or not self.rows:
            return output
        tokens, lengths = self.answers.tokens.to(self.ids.device), list(self.answers.lengths)
        if output is not None:
            own = output[:, self.ids.shape[1] :]
            width = max(own.shape[1], tokens.shape[1])
            tokens, own = (nn.functional.pad(t, (0, width - t.shape[1]), value=self.pad) for t in (tokens, own))
            exits = torch.zeros(len(lengths), dtype=torch.bool, device=tokens.device)
            exits[list(self.rows)] = True
            tokens = torch.where(exits.unsqueeze(1), tokens, own)
            own_lengths = lengths_to_end(own, self.ends)
            lengths = [n if row in self.rows else own_lengths[row] for row, n in enumerate(lengths)]
        tokens = tokens[:, : max(lengths)]
        past = ~within(lengths, tokens.shape[1], tokens.device)
        return torch.cat([self.ids, tokens.masked_fill(past, self.pad)], dim=1)


def lengths_to_end(new: Tensor, ends: Container[int]) -> list[int]:
    """Tokens of every row of ``new`` [B, A] up to the first one among ``ends``."""
    rows: list[list[int]] = new.tolist()
    return [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]


def _ids_of(options: GenerateOptions) -> Tensor:
    """The prompt of a call that one greedy answer per row serves; raises UnsupportedError for any other."""
    for name, plain in _PLAIN.items():
        value = options.get(name)
        if value is not None and value not in plain:
            raise UnsupportedError(
                complaint(f"{name} under early exit", f"be {plain[0]}: a guide gives one greedy answer per row", value,
                          _WITHOUT)
            )  # fmt: skip
    for name in _ABSENT:
        value = options.get(name)
        if value is not None and not (isinstance(value, list) and not value):
            raise UnsupportedError(
                complaint(f"{name} under early exit", "be absent: it would see two models answer", type(value).__name__,
                          _WITHOUT)
            )  # fmt: skip
    past = options.arguments.get("past_key_values")
    continued = past is not None and past.get_seq_length() > 0
    ids = options.ids
    if options.assisted or continued or ids is None:
        got = "an assistant" if options.assisted else "a continued cache" if continued else "no input_ids"
        raise UnsupportedError(
            complaint("a call of generate under early exit", "be a new prompt of input_ids, decoded plainly", got,
                      _WITHOUT)
        )  # fmt: skip
    return ids


@dataclass
class Chances:
    """A logits processor that changes nothing and remembers how likely each greedily chosen token was."""

    log: list[Tensor] = field(default_factory=list[Tensor])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        self.log.append(scores.float().log_softmax(dim=-1).amax(dim=-1))
        return scores

    def confidence(self, lengths: Sequence[int]) -> Tensor:
        """float [B]: geometric mean over each row's own tokens."""
        log = torch.stack(self.log, dim=1)  # [B, A]
        return (_total(log, lengths) / torch.tensor(lengths, device=log.device)).exp()


def likelihood(logits: Tensor, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """float [B]: product of the probabilities of each row's tokens.

    Args:
        logits: [B, A, V], each predicting the token of its column.
        tokens: int64 [B, A].
        lengths: tokens of each row.
    """
    log = logits.float().log_softmax(dim=-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    return _total(log, lengths).exp()


def _total(log: Tensor, lengths: Sequence[int]) -> Tensor:
    """float [B]: sum of ``log`` [B, A] over each row's own tokens."""
    return log.masked_fill(~within(lengths, log.shape[1], log.device), 0.0).sum(dim=1)


class Attended(SpatialScorer):
    """Keep the visual tokens that were attended to most, at the input: the guide's second look at a prompt."""

    name: ClassVar[str] = "attended"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EVIDENCE})

    keep_ratio: float

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """One cut at the input."""
        return Schedule.of({0: keep_count(self.keep_ratio, n_visual)})

    def score(self, site: LayerSite) -> Tensor:
        """What the session was given."""
        return site.evidence


def require_other(model: Any, guide: Any) -> None:
    """Check that a guide may answer in a model's place: another model, with the same tokenizer.

    The vocabularies of both folders' ``tokenizer.json`` are compared; where a model has none beside it, sizes of the
    vocabularies and the placeholder's id.

    Raises:
        UnsupportedError: when it may not.
        DataError: when one of these files is broken.
    """
    if guide is model:
        raise UnsupportedError(
            complaint("a guide that may answer in the model's place (exit_threshold)", "be another model", "the model",
                      "name a smaller one as 'guide', or leave exit_threshold out")
        )  # fmt: skip
    words = [_vocabulary(one) for one in (model, guide)]
    if None in words:
        words = [_numbers(one) for one in (model, guide)]
    if words[0] != words[1]:
        raise UnsupportedError(
            complaint(
                "a guide that may answer in the model's place (exit_threshold)",
                "share its tokenizer",
                f"{len(words[1] or ())} entries against {len(words[0] or ())}, or others",
                "choose a guide of the same family, or leave exit_threshold out",
            )
        )


def _vocabulary(model: Any) -> Mapping[str, Any] | None:
    """Tokens by id of a model's folder; None where there is none to read."""
    file = Path(str(getattr(model.config, "name_or_path", "") or "")) / "tokenizer.json"
    if file.parent == Path() or not file.is_file():
        return None
    try:
        about = json.loads(utf8(file, _MOST_BYTES))
        added = {str(one["id"]): one["content"] for one in about.get("added_tokens") or ()}
        vocabulary: Any = about["model"].get("vocab") or {}
        listed = not isinstance(vocabulary, dict)
        pairs = ((str(w[0]), i) for i, w in enumerate(vocabulary)) if listed else vocabulary.items()
        return {**{str(number): word for word, number in pairs}, **added}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as cause:
        raise DataError(complaint(f"{file}", "list a tokenizer's words", hint=reason_of(cause))) from cause


def _numbers(model: Any) -> Mapping[str, Any]:
    """What two models with one tokenizer have in common."""
    text = model.config.get_text_config()
    return {"vocabulary": text.vocab_size, "placeholder": getattr(model.config, "image_token_id", None)}
