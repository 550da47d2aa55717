"""Trace: which visual tokens each layer kept at prefill, and which its cache still held at every decode step."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokentrim.counting.shape import MOST_LAYERS
from tokentrim.errors import DataError, complaint
from tokentrim.reading import regular

_FORMAT = "tokentrim-trace-1"
_SAVE = "save it with Trace.save(path)"
_MOST = 1 << 24  # visual tokens of a row, and decode forwards: codes of places stay below 64 bits


def _require_in(what: str, number: int, last: int, hint: str) -> None:
    if not 0 <= number <= last:
        raise DataError(complaint(f"{what} of a trace", f"lie in 0..{last}", number, hint))


@dataclass(eq=False)  # two traces are compared by rows_equal: tensors have no truth value
class Trace:
    """One prompt's record. Indices are raster numbers of the prompt's visual tokens.

    For merging strategies a kept index is the representative. With beam search a row is a beam: row
    ``sample * num_beams`` is the first beam of a sample.

    Attributes:
        n_visual: visual tokens of each row before pruning.
        n_layers: decoder layers.
        steps: decode forwards recorded.
        prefill: per change of the kept set, (first layer, ids [B, N] in any order, -1 in padding).
        evictions: per layer, (step, ids [B, N] in any order, -1 in padding) whenever the set that it sees changed.
        evicts: whether what a layer does not see has left its cache; otherwise it may return.
        edits: whether attention was edited besides, which no set of tokens says.
        exited: rows whose answer is a guide's (early exit). Where all rows are, no layer ran, and none kept anything.
        exit_scores: of every row, how sure the guide is of its answer; empty where no early exit is asked for.
    """

    n_visual: tuple[int, ...]
    n_layers: int
    steps: int = 0
    prefill: list[tuple[int, Tensor]] = field(default_factory=list[tuple[int, Tensor]])
    evictions: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict[int, list[tuple[int, Tensor]]])
    exited: tuple[int, ...] = ()
    exit_scores: tuple[float, ...] = ()
    evicts: bool = True
    edits: bool = False

    def _ids(self, layer: int) -> Tensor:
        _require_in("layer", layer, self.n_layers - 1, "count decoder layers from 0")
        return [ids for first, ids in self.prefill if first <= layer][-1]

    def kept(self, layer: int, sample: int = 0) -> Tensor:
        """int64 [n]: visual tokens of row ``sample`` that layer ``layer`` processed at prefill."""
        return self._row(self._ids(layer), sample)

    def cached(self, layer: int, step: int, sample: int = 0) -> Tensor:
        """int64 [n]: visual tokens whose keys the attention of ``layer`` could see in decode forward ``step``.

        Step 1 is the first forward after prefill, which produces the second new token; step 0 is prefill's end.
        """
        _require_in("step", step, self.steps, "ask only for steps that were run")
        seen = [ids for at, ids in self.evictions.get(layer, []) if at <= step]
        return self._row(seen[-1] if seen else self._ids(layer), sample)

    def _row(self, ids: Tensor, sample: int) -> Tensor:
        _require_in("sample", sample, ids.shape[0] - 1, "count rows from 0")
        row = ids[sample].cpu()
        return row[row >= 0].sort().values  # tokens may stand behind others, and entries in the order of their leaving

    @property
    def _outline(self) -> tuple[Any, ...]:
        return self.n_visual, self.n_layers, self.steps, self.exited

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        # A set that comes back is the same tensor, and safetensors wants one for each.
        tensors = {f"prefill.{first}": ids.cpu().clone() for first, ids in self.prefill}
        for layer, changes in self.evictions.items():
            for step, ids in changes:
                tensors[f"evicted.{layer}.{step}"] = ids.cpu().clone()
        about: dict[str, Any] = {"n_visual": list(self.n_visual), "n_layers": self.n_layers, "steps": self.steps}
        if not self.evicts:
            about["evicts"] = False
        if self.edits:
            about["edits"] = True
        if self.exit_scores:
            about |= {"exited": list(self.exited), "exit_scores": list(self.exit_scores)}
        save_file(tensors, str(path), metadata={"format": _FORMAT, "about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: when the file is missing, is not a trace, or is one that no run records.
        """
        whom = f"trace file {path}"
        try:
            with safe_open(str(regular(path)), framework="pt") as file:  # type: ignore[no-untyped-call]
                metadata: dict[str, str] = file.metadata() or {}
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as cause:
            raise DataError(complaint(whom, "be readable safetensors", cause, _SAVE)) from cause
        if metadata.get("format") != _FORMAT:
            raise DataError(complaint(whom, f"have the format {_FORMAT}", metadata.get("format"), _SAVE))
        try:
            about: dict[str, Any] = json.loads(metadata["about"])
            trace = cls(
                tuple(about["n_visual"]),
                about["n_layers"],
                about["steps"],
                exited=tuple(about.get("exited", ())),
                exit_scores=tuple(about.get("exit_scores", ())),
                evicts=bool(about.get("evicts", True)),
                edits=bool(about.get("edits", False)),
            )
            for key in sorted(tensors, key=lambda key: [int(number) for number in key.split(".")[1:]]):
                kind, first, *step = key.split(".")
                if kind == "prefill" and not step:
                    trace.prefill.append((int(first), tensors[key]))
                else:
                    {"evicted": trace.evictions}[kind].setdefault(int(first), []).append((int(*step), tensors[key]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as cause:
            raise DataError(complaint(whom, "say what it records", hint=f"{cause!r}; {_SAVE}")) from cause
        trace.check(whom)
        return trace

    def check(self, whom: str = "a trace") -> None:
        """Check that this is what a run can record: sets that exist, each of tokens that were still there.

        Args:
            whom: what the trace is, for messages.

        Raises:
            DataError: when it is not.
        """

        def require(holds: bool, must: str, got: object) -> None:
            if not holds:
                raise DataError(complaint(whom, must, got, "record it anew: it is damaged, or was made by hand"))

        rows, counts = len(self.n_visual), [*self.n_visual, self.steps]
        require(rows > 0 and _whole(counts, 0, _MOST), f"count its visual tokens and steps in 0..{_MOST}", counts)
        require(_whole([self.n_layers], 1, MOST_LAYERS), f"have 1..{MOST_LAYERS} layers", self.n_layers)
        exited = list(self.exited)
        require(_whole(exited, 0, rows - 1), f"name rows in 0..{rows - 1} that a guide answers", exited)
        scores = all(isinstance(score, float | int) for score in self.exit_scores)
        require(scores and len(self.exit_scores) in (0, rows), "have one exit score per row", self.exit_scores)
        tensors = [ids for _, ids in (*self.prefill, *(pair for one in self.evictions.values() for pair in one))]
        forms = {(str(ids.dtype), ids.dim(), len(ids) if ids.dim() else 0) for ids in tensors}
        require(forms <= {("torch.int64", 2, rows)}, f"hold its sets as int64 [{rows}, N]", sorted(forms))
        firsts = [first for first, _ in self.prefill]
        ascending = firsts == sorted(set(firsts)) and _whole(firsts, 0, self.n_layers - 1)
        require(ascending and firsts[:1] == [0], "say what layers keep, from layer 0 on, once each", firsts)
        kept = _Sets([ids for _, ids in self.prefill], self.n_visual)
        require(kept.exist(), "keep tokens that the prompt has, each once", "others")
        require(kept.within(kept, -1), "keep tokens that the layers before kept", "others")
        require(
            _whole([*self.evictions], 0, self.n_layers - 1), f"evict in its {self.n_layers} layers", [*self.evictions]
        )
        for layer, changes in self.evictions.items():
            steps = [step for step, _ in changes]  # a reordering of beams behind the last forward is one step more
            require(steps == sorted(steps) and _whole(steps, 1, self.steps + 1), "evict at its own steps", steps)
            held = _Sets([ids for _, ids in changes], self.n_visual)
            layers = _Sets([self._ids(layer)], self.n_visual)
            require(
                held.exist() and held.within(layers, 0), f"hold tokens in layer {layer} that it processed", "others"
            )

    def _repr_html_(self) -> str:
        """In a notebook: what each sample kept where. A session shows the places, too."""
        from tokentrim.engine.tokens.shown import trace_html  # it draws

        return trace_html(self)

    def rows_equal(self, other: Trace) -> bool:
        """Whether both traces kept and cached the same tokens everywhere."""
        if self._outline != other._outline:
            return False
        rows = range(len(self.n_visual))
        return all(
            torch.equal(self.kept(layer, row), other.kept(layer, row))
            and all(
                torch.equal(self.cached(layer, step, row), other.cached(layer, step, row))
                for step in range(1, self.steps + 1)
            )
            for layer in range(self.n_layers)
            for row in rows
        )


def _whole(numbers: Sequence[Any], least: int, most: int) -> bool:
    """Whether all are whole numbers in ``least..most``."""
    return all(type(number) is int and least <= number <= most for number in numbers)


class _Sets:
    """Sets of visual tokens, one per change and row, looked at all at once."""

    def __init__(self, changes: Sequence[Tensor], n_visual: Sequence[int]) -> None:
        """``changes``: int64 [B, N] each, -1 in padding."""
        rows = len(n_visual)
        widths = torch.tensor([ids.shape[1] for ids in changes], dtype=torch.long)
        row = torch.arange(rows).repeat(len(changes)).repeat_interleave(widths.repeat_interleave(rows))
        change = torch.arange(len(changes)).repeat_interleave(widths * rows)
        self.ids = torch.cat([ids.detach().cpu().flatten() for ids in changes])
        self.limits = torch.tensor(n_visual)[row]
        self.place = change * rows + row  # which set
        self.rows, self.real = rows, self.ids >= 0
        self.stride = max(n_visual) + 1

    def codes(self, shift: int = 0) -> Tensor:
        """A number for every member: which set (``shift`` changes away), and which token."""
        return ((self.place + shift * self.rows) * self.stride + self.ids)[self.real]

    def exist(self) -> bool:
        """Whether all members are tokens of their row, each once in its set."""
        inside = bool(((self.ids >= -1) & (self.ids < self.limits)).all())
        return inside and len(self.codes().unique()) == int(self.real.sum())

    def within(self, others: _Sets, shift: int) -> bool:
        """Whether every set lies within the one ``shift`` changes away in ``others`` (0: its row's only one)."""
        if shift == 0:
            return bool(torch.isin(self.ids[self.real] + self.place[self.real] % self.rows * self.stride,
                                   others.codes()).all())  # fmt: skip
        codes = self.codes(shift)
        return bool(torch.isin(codes[codes >= 0], others.codes()).all())
