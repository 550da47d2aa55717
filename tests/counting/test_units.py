"""Units of amounts."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tokentrim.cli import app
from tokentrim.counting.units import in_bytes, in_operations


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (in_bytes(0), ["0.00 B"]),
        (in_bytes(1023.0, 12), ["1,023.00 B", "12.00 B"]),
        (in_bytes(512, 1024), ["0.50 KiB", "1.00 KiB"]),
        (in_bytes(3 * 2**30), ["3.00 GiB"]),
        (in_operations(999, 5), ["999.00", "5.00"]),
        (in_operations(120.4e6, 240.8e6), ["120.40 M", "240.80 M"]),
        (in_operations(3.82e12), ["3.82 T"]),
        (in_operations(5e18), ["5,000.00 P"]),
        (in_operations(), []),
    ],
)
def test_the_largest_amount_chooses_the_unit(said: list[str], expected: list[str]) -> None:
    assert said == expected


def test_a_small_model_is_planned_in_units_that_fit_it() -> None:
    result = CliRunner().invoke(app, ["plan", "--strategy", "fastv", "--model", "testbed"])
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if "prefill FLOPs" in line)
    assert " M " in line
    assert "0.00" not in line
