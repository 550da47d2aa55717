"""Where the time goes: phases and kinds of one real answer, and the sums."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tests.bench.small import SMALL
from tokentrim.bench.profile import KINDS, REST, _kind
from tokentrim.cli import app

WORDS = "bench --strategies st3 --new-tokens 4 --prompt-tokens 6 --device cpu --profile"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mm", "matrix products"), ("addmm", "matrix products"), ("mkldnn_convolution", "matrix products"),
        ("_scaled_dot_product_flash_attention_for_cpu", "attention"), ("_softmax", "attention"),
        ("copy_", "copies"), ("cat", "copies"), ("index_select", "copies"), ("scatter_", "copies"),
        ("mul", REST), ("silu", REST), ("rsqrt", REST), ("comm", REST),
    ],
)  # fmt: skip
def test_kinds_of_operations(name: str, kind: str) -> None:
    assert _kind(name) == kind


@pytest.mark.parametrize("name", SMALL)
def test_phases_of_an_answer(name: str) -> None:
    words = [*WORDS.split(), "--geometry", name]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    phases = json.loads(result.stdout)["phases"]
    assert [one["phase"] for one in phases] == ["vision", "prefill", "decode"] * 3
    assert [one["strategy"].partition("(")[0] for one in phases[::3]] == ["untouched", "none", "st3"]
    for one in phases:
        assert set(one["kinds"]) == {*KINDS, REST}
        assert all(seconds >= 0 for seconds in one["kinds"].values())
        assert 0 < one["kinds"]["matrix products"] < one["seconds"]
        assert sum(one["kinds"].values()) <= one["seconds"]
    assert phases[0]["selection"] == 0 < phases[-1]["selection"] < 1
    if name == SMALL[0]:
        table = CliRunner().invoke(app, words).stdout
        assert "| phase | strategy |" in table
        assert table.count("| decode |") == 3
