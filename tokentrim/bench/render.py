"""A bench as Markdown: the command, a table, and what the figures consist of."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from tokentrim.bench.limits import Limits
from tokentrim.bench.options import BenchOptions
from tokentrim.bench.result import BenchResult, BenchRow
from tokentrim.runs.spread import Spread

_COLUMNS = (
    "strategy", "tokens kept, layer mean", "prefill, s", "speed-up", "implied by FLOPs", "reached", "kernels alone",
    "of kernel floor", "selection", "decode, ms per token", "speed-up of decoding", "implied by bytes",
    "visual KV while decoding", "peak memory, MiB",
)  # fmt: skip
_LIMIT_COLUMNS = ("of prefill limit", "of decode limit")


def markdown(result: BenchResult) -> str:
    """The result for a page of documentation; ends in a line break."""
    notes = "\n".join(_wrapped(f"- {note}", "  ") for note in _notes(result))
    return f"{_wrapped(_setting(result))}\n\n{_table(result)}\n\n{notes}\n"


def _setting(result: BenchResult) -> str:
    options, where = result.options, result.environment
    sizes = where.get("sizes") or _sizes(options)
    threads = f", {where['threads']} threads" if where["device"].startswith("CPU") else ""
    return (
        f"Random weights: {sizes}, "
        f"{where['dtype']}, batch {options['batch']}, "
        f"{'compiled decoding, ' if options['compile'] else ''}{where['device']}"
        f"{threads}, torch {where['versions']['torch']}, transformers {where['versions']['transformers']}; "
        f"{options['repeats']} interleaved repeats against the untouched model, medians with quartiles. Measured with "
        f"`{result.command}`."
    )


def _sizes(options: Mapping[str, Any]) -> str:
    """What results of earlier versions do not say themselves."""
    asked = BenchOptions(geometry=options["geometry"], images=options["images"], prompt_tokens=options["prompt_tokens"])
    return f"{asked.sizes.n_layers} layers, hidden {asked.sizes.hidden_size}, {asked.tokens()}"


def _table(result: BenchResult) -> str:
    names = (*_COLUMNS, *(_LIMIT_COLUMNS if result.limits else ()))
    lines = [names, ("---", *("---:",) * (len(names) - 1))]
    lines += [_cells(row, row is result.untouched, result.limits) for row in (result.untouched, *result.rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: BenchRow, untouched: bool, limits: Limits | None) -> tuple[str, ...]:
    ratios = ("",) * 4
    if not untouched:
        implied, kernels = f"{row.implied_speed_up:.2f}", _spread(row.kernel_speed_up)
        ratios = (_spread(row.speed_up), implied, f"{row.attained:.2f}", kernels)
    return (
        row.strategy,
        f"{row.layer_mean_ratio:.1%}",
        _spread(row.prefill_seconds),
        *ratios,
        f"{row.of_kernel_floor.median:.2f}",
        "" if untouched else f"{row.selection_share:.2%}",
        _spread(row.decode_seconds_per_token, 1000),
        "" if untouched else f"{1 / row.decode_ratio.median:.2f}",
        "" if untouched else f"{row.implied_decode_speed_up:.2f}",
        f"{row.kv_mean_ratio:.1%}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
        *((f"{row.of_prefill_limit:.2f}", f"{row.of_decode_limit:.2f}") if limits else ()),
    )


def _notes(result: BenchResult) -> list[str]:
    """Targets that are missed, the limits, and all parameters: what a default does is not left to be guessed."""
    notes = result.missed() or ["Every target is met."]
    limits = result.limits
    if limits is not None:
        rates = ", ".join(f"{rate / 1e9:.0f} at {rows}" for rows, rate in sorted(limits.matrix_rates.items()))
        widths = ", ".join(f"{name} {rate / 1e9:.1f}" for name, rate in limits.bandwidths.items())
        notes.append(f"Matrix rate in GFLOP/s by rows: {rates}. Memory bandwidth in GB/s: {widths}.")
        notes.append(f"A decode step reads {limits.weight_bytes / 2**20:.0f} MiB of weights, and the cache.")
    ran = [f"`{_flow(row.spec)}`" for row in result.rows if row.spec and row.spec != {"name": "none"}]
    notes += result.uncounted()
    return [*notes, f"All parameters: {'; '.join(ran)}."] if ran else notes


def _flow(spec: Any) -> str:
    """YAML on one line."""
    import yaml

    return yaml.safe_dump(spec, default_flow_style=True, sort_keys=False, width=math.inf).strip()


def _spread(spread: Spread, scale: float = 1.0) -> str:
    """``median [lower quartile, upper quartile]``; the median alone where there is one value."""
    middle = _figures(spread.median * scale)
    return middle if spread.n == 1 else f"{middle} [{_figures(spread.low * scale)}, {_figures(spread.high * scale)}]"


def _figures(value: float) -> str:
    """Three significant figures, never an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else f"{value:.2f}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
