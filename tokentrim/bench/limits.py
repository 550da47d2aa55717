"""Limits: what this machine's matrix rate and memory bandwidth allow, measured on the model's own matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokentrim.contracts.adapter import Layout
from tokentrim.counting.costs import Usage
from tokentrim.runs.stopwatch import timed

BUFFER_BYTES: Final = 2**29
"""Bytes that a pass over memory covers: many times any cache."""
_TRIES: Final = 5
_LAYERS: Final = 8  # whose matrices are multiplied: together larger than the caches, as in a real prefill


@dataclass(frozen=True)
class Limits:
    """Rates that were measured; the best of each kind bounds what a run can reach.

    Attributes:
        matrix_rates: FLOPs per second of the decoder's matrix products, by the number of rows that they ran on.
        bandwidths: bytes per second of one pass over memory, by what passed: ``copy`` (reading and writing
            counted), ``sum``, and ``product`` (one row times a large matrix, which is how a decode step reads).
        weight_bytes: bytes of the weights that a decode step reads: decoder layers, final norm, head.
    """

    matrix_rates: Mapping[int, float]
    bandwidths: Mapping[str, float]
    weight_bytes: int

    @property
    def matrix_rate(self) -> float:
        """The best FLOPs per second."""
        return max(self.matrix_rates.values())

    @property
    def bandwidth(self) -> float:
        """The best bytes per second."""
        return max(self.bandwidths.values())

    def prefill_seconds(self, usage: Usage, batch: int) -> float:
        """Floor of a prefill of ``batch`` equal rows: its FLOPs at the best matrix rate, wherever they arise."""
        return batch * least_prefill_flops(usage) / self.matrix_rate

    def decode_seconds(self, usage: Usage, batch: int) -> float:
        """Floor of a decode step, mean over the steps: the weights once and every row's cache at full bandwidth."""
        return (self.weight_bytes + batch * usage.kv_bytes_mean) / self.bandwidth

    def best(self, other: Limits) -> Limits:
        """The better of two measurements, figure by figure."""
        return Limits(
            _better(self.matrix_rates, other.matrix_rates),
            _better(self.bandwidths, other.bandwidths),
            self.weight_bytes,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: FLOPs and bytes per second, bytes."""
        return {"matrix_rate": self.matrix_rate, "bandwidth": self.bandwidth, **asdict(self)}


def least_prefill_flops(usage: Usage) -> int:
    """FLOPs of one row's prefill that no kernel can leave out.

    ``Usage.prefill_flops_whole`` counts attention over the full n x n square. A causal kernel may skip the half above
    the diagonal, ``2 n (n - 1) H h`` FLOPs per layer, so they are taken off here.
    """
    square = zip(usage.layer_totals, usage.skipped_pairs, strict=True)
    halves = sum(n * (n - 1) - skipped for n, skipped in square)
    return usage.prefill_flops_whole - 2 * halves * usage.shape.attention_width


def measure_limits(
    model: Any, layout: Layout, rows: Iterable[int], *, buffer_bytes: int = BUFFER_BYTES, seed: int = 0
) -> Limits:
    """Measure both rates on the model's device, in its dtype.

    Args:
        model: the model whose matrices are multiplied.
        layout: where its decoder is.
        rows: row counts (tokens times batch) at which the matrix rate is wanted.
        buffer_bytes: size of the memory that the bandwidth is measured on; two of it are taken.
        seed: of the rows.
    """
    linears = [one for layer in layout.layers[:_LAYERS] for one in layer.modules() if isinstance(one, nn.Linear)]
    return Limits(
        {n: _matrix_rate(linears, n, seed) for n in sorted(set(rows))},
        _bandwidths(model, layout.shape.hidden_size, buffer_bytes),
        decode_weight_bytes(model, layout),
    )


def _matrix_rate(linears: list[nn.Linear], rows: int, seed: int) -> float:
    """Best FLOPs per second of the layers' products over ``rows`` rows."""
    generator = torch.Generator().manual_seed(seed)
    weights: list[Tensor] = [one.weight for one in linears]
    like = weights[0]
    inputs = {
        width: torch.randn(rows, width, generator=generator).to(like.device, like.dtype)
        for width in {weight.shape[1] for weight in weights}
    }

    def multiply() -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    return 2 * rows * sum(weight.numel() for weight in weights) / _least_seconds(like.device, multiply)


def _bandwidths(model: Any, width: int, buffer_bytes: int) -> dict[str, float]:
    """Best bytes per second of three passes over memory."""
    device: torch.device = model.device
    # Written to, because fresh pages of zeros may all be one page.
    source = torch.empty(buffer_bytes // 4, device=device).fill_(1.0)
    target = torch.empty_like(source).fill_(0.0)
    matrix = source.view(model.dtype)
    matrix = matrix[: len(matrix) // width * width].view(-1, width)
    row = torch.ones(1, width, device=device, dtype=model.dtype)
    size, product = source.nbytes, matrix.nbytes
    return {
        "copy": 2 * size / _least_seconds(device, lambda: target.copy_(source)),
        "sum": size / _least_seconds(device, source.sum),
        "product": product / _least_seconds(device, lambda: functional.linear(row, matrix)),
    }


def decode_weight_bytes(model: Any, layout: Layout) -> int:
    """Bytes of the language model and the head, without the embedding table: a step reads one row of it per token."""
    head: Tensor = model.lm_head.weight
    embedding: Tensor = model.get_input_embeddings().weight
    read = [weight for weight in layout.language_model.parameters() if weight is not embedding]
    return head.nbytes + sum(weight.nbytes for weight in read)


def _least_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Least seconds of several runs, after one that is not timed."""
    work()
    return min(timed(device, work) for _ in range(_TRIES))


def _better(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[Any, float]:
    return {key: max(value, other.get(key, value)) for key, value in one.items()}
