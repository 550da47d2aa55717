"""Report: what a session kept, saved and spent, aggregated over its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tokentrim.counting.costs import Usage
from tokentrim.counting.shape import ModelShape
from tokentrim.counting.units import in_bytes
from tokentrim.drawing.notebook import table
from tokentrim.engine.seams.attention import implementation_of
from tokentrim.engine.tokens.prompt import Prompt


@dataclass(frozen=True)
class Report:
    """Means over samples with visual tokens; the definitions stand in :mod:`tokentrim.counting.costs`.

    Attributes:
        strategy: label of the strategy.
        prompts: prompts run (batches).
        rows: samples run, samples without an image included.
        n_visual: mean visual tokens per sample before pruning.
        tokens_per_layer: mean visual tokens that each decoder layer processed in prefill.
        layer_mean_tokens: their mean over layers.
        layer_mean_ratio: the same against unpruned.
        flops_ratio: prefill FLOPs of the language model against unpruned, physical convention.
        flops_ratio_field: the same in the field's convention.
        kv_peak_bytes: bytes of all cached entries of a sample at the end of prefill.
        kv_mean_bytes: mean of the same over decode forwards.
        kv_end_bytes: the same at the last decode forward.
        kv_peak_ratio: visual cache entries at the end of prefill against unpruned.
        kv_mean_ratio: the same, mean over decode forwards.
        kv_end_ratio: the same at the last decode forward.
        kv_read_ratio: like ``kv_mean_ratio``, of the entries that attention saw; what may return is held unseen.
        kv_total_mean_ratio: all entries, text and generated ones included, mean over decode forwards.
        selection_seconds: time spent scoring, selecting and gathering, all prompts together.
        prefill_seconds: time of the language model's prefill forwards plus the vision tower, all prompts together.
        decode_seconds: time of the language model's decode forwards, all prompts together.
        decode_steps: decode forwards run.
        pruning_events: selections applied.
        guide_flops_ratio: FLOPs of a guide (its tower, prompt and answer) against the trimmed model's unpruned prefill;
            in no other figure, and 0 where none is asked.
        early_exits: samples whose answer is the guide's; where a whole batch is, the model spent nothing on it.
        notes: what a reader must know, such as samples that had nothing to prune.
    """

    strategy: str
    prompts: int
    rows: int
    n_visual: float
    tokens_per_layer: list[float]
    layer_mean_tokens: float
    layer_mean_ratio: float
    flops_ratio: float
    flops_ratio_field: float
    kv_peak_bytes: float
    kv_mean_bytes: float
    kv_end_bytes: float
    kv_peak_ratio: float
    kv_mean_ratio: float
    kv_end_ratio: float
    kv_read_ratio: float
    kv_total_mean_ratio: float
    selection_seconds: float
    prefill_seconds: float
    decode_seconds: float
    decode_steps: int
    pruning_events: int
    guide_flops_ratio: float
    early_exits: int
    notes: list[str]

    @property
    def early_exit_ratio(self) -> float:
        """``early_exits`` as a share of the samples."""
        return self.early_exits / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """What it says to people, by what of."""
        first, last = (self.tokens_per_layer[0], self.tokens_per_layer[-1]) if self.tokens_per_layer else (0, 0)
        cache = (
            f"{self.kv_peak_ratio:.1%} after prefill, {self.kv_mean_ratio:.1%} mean, {self.kv_end_ratio:.1%} at the "
            f"end; {in_bytes(self.kv_mean_bytes)[0]} mean with text"
        )
        lines = [
            ("strategy", self.strategy),
            ("samples", f"{self.rows} in {self.prompts} prompts, {self.pruning_events} selections applied"),
            (
                "visual tokens",
                f"{self.n_visual:g} -> {self.layer_mean_tokens:.1f} per layer on average ({self.layer_mean_ratio:.1%}; "
                f"first layer {first:g}, last {last:g})",
            ),
            (
                "prefill FLOPs",
                f"{self.flops_ratio:.1%} of unpruned ({self.flops_ratio_field:.1%} by the field's formula)",
            ),
            (
                "visual KV",
                cache + (f"; {self.kv_read_ratio:.1%} seen" if self.kv_read_ratio != self.kv_mean_ratio else ""),
            ),
            (
                "time",
                f"prefill {self.prefill_seconds:.3f} s; decode {self.decode_seconds:.3f} s in "
                f"{self.decode_steps} forwards; of both, selecting {self.selection_seconds:.4f} s",
            ),
        ]
        if self.guide_flops_ratio:
            lines.append(
                (
                    "guide",
                    f"{self.guide_flops_ratio:.1%} of the unpruned prefill's FLOPs, on top; its answer is "
                    f"returned for {self.early_exits} of {self.rows} samples",
                )
            )
        return [*lines, *(("note", note) for note in self.notes)]

    def __str__(self) -> str:
        """A few lines for people."""
        return "\n".join(f"{name:<14} {said}" for name, said in self.lines())

    def _repr_html_(self) -> str:
        """The same lines in a notebook."""
        return table((), self.lines())


def usages(prompt: Prompt, shape: ModelShape, new_tokens: Sequence[int] | None = None) -> list[Usage]:
    """What each row with visual tokens used, up to its own number of new tokens where that is given."""
    found: list[Usage] = []
    start, counts = prompt.start.n_visual, prompt.layer_counts
    for row, n_visual in enumerate(start):
        if not n_visual or not counts:
            continue
        layer_tokens = tuple(layer[row] for layer in counts)
        last = None if new_tokens is None else max(0, new_tokens[row] - 1)
        cached, seen = (
            tuple(tuple(layer[row] for layer in step) for step in steps[:last]) for steps in (prompt.held, prompt.seen)
        )
        pairs = tuple(layer[row] for layer in prompt.visual_pairs)
        found.append(Usage(shape, n_visual, prompt.n_text[row], layer_tokens, cached, pairs, seen, prompt.tower_pairs))
    return found


@dataclass
class Tally:
    """Running sums, so that a long session does not grow."""

    shape: ModelShape
    prompts: int = 0
    rows: int = 0
    empty_rows: int = 0
    emptied: int = 0
    events: int = 0
    steps: int = 0
    samples: int = 0
    exits: int = 0
    exits_run: int = 0
    copies: int = 0
    sums: dict[str, float] = field(default_factory=dict[str, float])
    layers: list[float] = field(default_factory=list[float])

    def add(self, prompt: Prompt) -> None:
        """Count one finished prompt; not one that did nothing but be copied, whose copies were continued."""
        if prompt.kin.continued and not prompt.own_steps:
            return
        self.copies += prompt.start.rows if prompt.inherited else 0
        self.prompts += 1
        self.rows += prompt.start.rows
        self.empty_rows += sum(n == 0 for n in prompt.start.n_visual)
        self.events += prompt.own_events
        self.steps += prompt.own_steps
        self.exits += len(prompt.exited)
        self.exits_run += 0 if prompt.skipped else len(prompt.exited)
        found = usages(prompt, self.shape, prompt.new_lengths)
        guided = [flops for flops, n in zip(prompt.guide_flops, prompt.start.n_visual, strict=False) if n]
        for usage, spent in zip(found, guided or [0] * len(found), strict=True):
            self.samples += 1
            self.emptied += not prompt.skipped and 0 in usage.layer_tokens
            figures = {
                **usage.ratios(),
                "kv_peak_bytes": usage.kv_bytes(0),
                "kv_mean_bytes": usage.kv_bytes_mean,
                "kv_end_bytes": usage.kv_bytes(usage.n_steps),
            }
            if prompt.skipped:  # not even the text was run
                figures = dict.fromkeys(figures, 0.0)
            figures |= {
                "n_visual": usage.n_visual,
                "guide_flops_ratio": spent / usage.unpruned().prefill_flops,
            }
            for name, value in figures.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.layers = [
                a + b for a, b in zip(self.layers or [0.0] * len(usage.layer_tokens), usage.layer_tokens, strict=True)
            ]

    def mean(self, name: str, default: float = 0.0) -> float:
        """Mean of a figure over samples."""
        return self.sums[name] / self.samples if self.samples else default


_MEANS = ("n_visual", "layer_mean_tokens", "kv_peak_bytes", "kv_mean_bytes", "kv_end_bytes", "guide_flops_ratio")
_RATIOS = (
    "layer_mean_ratio",
    "flops_ratio",
    "flops_ratio_field",
    "kv_peak_ratio",
    "kv_mean_ratio",
    "kv_end_ratio",
    "kv_read_ratio",
    "kv_total_mean_ratio",
)


def make_report(label: str, tally: Tally, seconds: dict[str, float], notes: list[str]) -> Report:
    """The report of a tally."""
    if tally.empty_rows:
        notes = [*notes, f"{tally.empty_rows} of {tally.rows} samples have no image: nothing to prune in them"]
    if tally.emptied:
        notes = [
            *notes,
            f"{tally.emptied} of {tally.samples} samples had no visual token left in some layers: shares of few tokens "
            "are rounded down",
        ]
    if tally.copies:
        what = "samples continued a copy of a cache: each counts in full, and its prompt was computed once for all"
        notes = [*notes, f"{tally.copies} of {tally.rows} {what}"]
    if tally.exits_run:
        notes = [
            *notes,
            f"{tally.exits_run} of {tally.exits} early exits were in a batch with a sample that did not exit: the "
            "model ran them all the same",
        ]
    return Report(
        strategy=label,
        prompts=tally.prompts,
        rows=tally.rows,
        tokens_per_layer=[total / tally.samples for total in tally.layers],
        **{name: tally.mean(name) for name in _MEANS},
        **{name: tally.mean(name, 1.0) for name in _RATIOS},
        selection_seconds=seconds["selection"],
        prefill_seconds=seconds["prefill"] + seconds["vision"],
        decode_seconds=seconds["decode"],
        decode_steps=tally.steps,
        pruning_events=tally.events,
        early_exits=tally.exits,
        notes=notes,
    )


def describe(model: Any) -> Mapping[str, str]:
    """Where and how a model runs, for reports."""
    return {
        "class": type(model).__name__,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": implementation_of(model.config.get_text_config()),
    }
