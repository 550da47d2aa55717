"""From a configuration to cells: what runs once, what runs per budget, and when a key changes."""

import pytest

from tokentrim.compare.config import load_compare
from tokentrim.compare.expand import expand
from tokentrim.runs.cells import locate


def cells_of(**changes):
    base = {"models": ["testbed-plain"], "tasks": ["where"], "strategies": ["random", "fastv", "st3", "vta"]}
    config = load_compare({**base, **changes})
    return expand(config, [locate(spec) for spec in config.models])


def rows_of(cells):
    return [(cell.method, cell.match, cell.budget, cell.boundary) for cell in cells]


def test_the_reference_comes_first_and_by_itself():
    assert rows_of(cells_of())[0] == ("none", "fixed", None, None)


def test_each_method_is_matched_by_what_it_acts_on():
    rows = rows_of(cells_of(budgets=[0.5, 0.4]))
    assert [row for row in rows if row[0] == "fastv"] == [
        ("fastv", "layer_mean_ratio", 0.5, 2),
        ("fastv", "layer_mean_ratio", 0.4, 2),
    ]
    assert {row[1] for row in rows if row[0] == "vta"} == {"kv_ratio"}
    assert {row[3] for row in rows if row[0] == "vta"} == {None}


def test_text_only_stands_beside_every_boundary_that_a_method_starts_at():
    rows = [row for row in rows_of(cells_of()) if row[0] == "text-only"]
    assert rows == [("text-only", "fixed", None, 0), ("text-only", "fixed", None, 2)]
    assert all(row[0] != "text-only" for row in rows_of(cells_of(text_only=False)))


def test_a_strategy_with_a_budget_of_its_own_runs_once():
    own = {"name": "fastv", "budget": {"layer_mean_ratio": 0.6}}
    rows = rows_of(cells_of(strategies=[own, {"strategy": "random", "match": "fixed"}]))
    assert [row[:3] for row in rows if row[0] in ("fastv", "random")] == [
        ("fastv", "fixed", None),
        ("random", "fixed", None),
    ]


def test_text_only_stands_at_the_boundary_of_the_solved_strategy():
    rows = rows_of(cells_of(strategies=["vtw", "yopo"], budgets=[0.5, 0.34], controls=[]))
    assert [row[3] for row in rows if row[0] == "vtw"] == [3, 2]
    assert [row[3] for row in rows if row[0] == "text-only"] == [2, 3]


def test_controls_are_added_where_they_are_not_listed():
    rows = rows_of(cells_of(strategies=["fastv", "random"], budgets=[0.5]))
    names = [row[0] for row in rows]
    assert names[:6] == ["none", "uniform", "pool", "downscale", "fastv", "random"]
    assert ("downscale", "layer_mean_ratio", 0.5, None) in rows
    assert {row[0] for row in rows_of(cells_of(strategies=["fastv"], controls=[]))} == {"none", "fastv", "text-only"}


def test_controls_stand_beside_every_budget():
    own = {"strategy": "fastv", "budgets": [0.6]}
    rows = rows_of(cells_of(strategies=[own], budgets=[0.5]))
    assert {row[2] for row in rows if row[0] == "random"} == {0.6, 0.5}


def test_seeds_multiply_what_is_random_only():
    cells = cells_of(seeds=[0, 1], budgets=[0.5])
    assert [cell.seed for cell in cells if cell.method == "random"] == [0, 1]
    assert [cell.seed for cell in cells if cell.method == "fastv"] == [None]


@pytest.mark.parametrize(
    "changes",
    [{"samples": 7}, {"batch_size": 3}, {"split": "calibration"}, {"max_new_tokens": 9}, {"models": ["testbed"]}],
)
def test_a_key_changes_with_what_may_change_a_result(changes):
    assert not {cell.key for cell in cells_of()} & {cell.key for cell in cells_of(**changes)}


def test_a_key_stays_when_other_methods_come_and_go():
    few, many = cells_of(strategies=["fastv"]), cells_of(strategies=["uniform", "fastv", "random"])
    assert {cell.key for cell in few if cell.method == "fastv"} <= {cell.key for cell in many}


def test_keys_differ_within_a_comparison():
    cells = cells_of(seeds=[0, 1])
    assert len({cell.key for cell in cells}) == len(cells)
