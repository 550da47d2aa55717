"""One small comparison on the shipped six-layer model, run once for all tests that look at its results."""

import pytest

from tokentrim.compare import run

SMALL = {
    "models": ["testbed-plain"],
    "tasks": ["where", {"task": "list-all", "samples": 3}],
    "samples": 4,
    "strategies": ["random", "fastv", "oracle", {"strategy": {"name": "vta", "horizon": 4}, "match": "kv_ratio"}],
    "budgets": [0.5],
    "batch_size": 3,
    "timing": False,
}


@pytest.fixture(scope="session")
def small():
    return SMALL


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    return run(SMALL, tmp_path_factory.mktemp("finished"))
