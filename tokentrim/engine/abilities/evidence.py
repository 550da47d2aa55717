"""Evidence: relevance of every visual token, supplied by a task that knows where its answer lies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tokentrim.engine.ability import Ability, PromptOrigin
from tokentrim.engine.tokens.prompt import Prompt
from tokentrim.engine.tokens.stream import Stream
from tokentrim.errors import DataError, complaint


class GivenEvidence(Ability):
    """Takes evidence for the next prompt.

    Attributes:
        given: float [B, N], a list of rows, or a function of the prompt's grid; None while there is none.
    """

    def __init__(self) -> None:
        self.given: Any = None

    def before_prompt(self, prompt: Prompt, origin: PromptOrigin) -> None:
        """Give the prompt its rows.

        Raises:
            DataError: when they do not fit the prompt.
        """
        given, self.given = self.given, None
        if given is not None:
            rows: Any = given(prompt.grid()) if callable(given) else given
            prompt.evidence = _aligned(rows, prompt.start)


def _aligned(given: Iterable[Any], stream: Stream) -> Tensor:
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
    full = torch.zeros(stream.rows, max(stream.n_visual), dtype=torch.float32)
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
