"""Trace: which visual tokens each layer kept at prefill, and which its cache still held at every decode step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokentrim.errors import DataError, complaint

_FORMAT = "tokentrim-trace-1"


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
        prefill: per change of the kept set, (first layer, ids [B, N] padded with -1).
        evictions: per layer, (step, ids [B, N] in any order, -1 in padding) whenever its cached set changed.
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
        return row[row >= 0].sort().values  # caches may hold entries in the order in which they will leave

    @property
    def _outline(self) -> tuple[Any, ...]:
        return self.n_visual, self.n_layers, self.steps, self.exited

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        tensors = {f"prefill.{first}": ids.cpu().contiguous() for first, ids in self.prefill}
        for layer, changes in self.evictions.items():
            for step, ids in changes:
                tensors[f"evicted.{layer}.{step}"] = ids.cpu().contiguous()
        about = {"n_visual": list(self.n_visual), "n_layers": self.n_layers, "steps": self.steps}
        if self.exit_scores:
            about |= {"exited": list(self.exited), "exit_scores": list(self.exit_scores)}
        save_file(tensors, str(path), metadata={"format": _FORMAT, "about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: when the file is missing or is not a trace.
        """
        try:
            with safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
                metadata: dict[str, str] = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise DataError(
                        complaint(
                            f"trace file {path}",
                            f"have the format {_FORMAT}",
                            metadata.get("format"),
                            "save it with Trace.save(path)",
                        )
                    )
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as cause:
            raise DataError(
                complaint(f"trace file {path}", "be readable safetensors", cause, "save it with Trace.save(path)")
            ) from cause
        about = json.loads(metadata["about"])
        trace = cls(
            tuple(about["n_visual"]),
            about["n_layers"],
            about["steps"],
            exited=tuple(about.get("exited", ())),
            exit_scores=tuple(about.get("exit_scores", ())),
        )
        for key, ids in tensors.items():
            kind, *numbers = key.split(".")
            if kind == "prefill":
                trace.prefill.append((int(numbers[0]), ids))
            else:
                trace.evictions.setdefault(int(numbers[0]), []).append((int(numbers[1]), ids))
        trace.prefill.sort(key=lambda pair: pair[0])
        for changes in trace.evictions.values():
            changes.sort(key=lambda pair: pair[0])
        return trace

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
