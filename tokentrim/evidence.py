"""Evidence: relevance of every visual token, supplied by a task that knows where its answer lies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tokentrim.errors import DataError, StrategyError, complaint
from tokentrim.stream import Stream


def aligned(given: Iterable[Any], stream: Stream) -> Tensor:
    """float [B, N] of a prompt's rows, from one vector per sample (rows may be repeats of samples, as for beams).

    Raises:
        DataError: when the vectors do not fit the prompt.
    """
    lines = [torch.as_tensor(row, dtype=torch.float32) for row in given]
    if not lines or stream.rows % len(lines):
        raise DataError(
            complaint(
                "evidence",
                f"have one row per sample ({stream.rows} rows in the prompt)",
                len(lines),
                "pass a list with one relevance vector per sample",
            )
        )
    repeats = stream.rows // len(lines)
    lines = [line for line in lines for _ in range(repeats)]
    full = torch.zeros(stream.rows, max(stream.n_visual))
    for row, (line, n) in enumerate(zip(lines, stream.n_visual, strict=True)):
        if line.shape != (n,):
            raise DataError(
                complaint(
                    f"evidence of row {row}",
                    f"score its {n} visual tokens",
                    tuple(line.shape),
                    "compute it for this model's visual grid",
                )
            )
        full[row, :n] = line
    return full.to(stream.vis_pos.device)


def of_tokens(evidence: Tensor | None, ids: Tensor) -> Tensor:
    """Relevance of the current tokens ``ids`` [B, N].

    Raises:
        StrategyError: when the prompt came without evidence.
    """
    if evidence is None:
        raise StrategyError(
            complaint(
                "a strategy that reads evidence",
                "be given it before each prompt",
                None,
                "call session.annotate(evidence=...); only tasks that know the answer's place can",
            )
        )
    return evidence.gather(1, ids)
