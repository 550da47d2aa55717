"""Two processes, talking by gloo: the same results as from one; and under torchrun, an honest end when one dies."""

import pytest

from tests import warm
from tests.executors.small import CELLS, CONFIG, contents, heads
from tokentrim.compare import run

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_two_ranks_give_the_same_results(shaky, alone, tmp_path):
    shaky.order()
    first, second = warm.ranks(2, shaky.command(tmp_path), env=shaky.environment())
    assert first.returncode == second.returncode == 0, first.stderr[-3000:] + second.stderr[-3000:]
    assert contents(tmp_path) == contents(alone)
    assert f"{CELLS}/{CELLS} cells" in first.stdout
    assert second.stdout == "", "one rank speaks"
    assert not any(head["timed_alone"] for head in heads(tmp_path))


@pytest.mark.slow
def test_a_dead_rank_ends_the_run_and_keeps_what_was_finished(shaky, alone, tmp_path):
    shaky.order("kill")
    done = warm.run(shaky.command(tmp_path, launcher=TORCHRUN), env=shaky.environment(), timeout=540)
    assert done.returncode == 1
    assert "SIGKILL" in done.stderr
    kept = list((tmp_path / "cells").glob("[!.]*.jsonl"))
    assert len(kept) == CELLS - 2, "the cells of the task before"
    finished = {path.name: path.read_bytes() for path in kept}
    assert run(CONFIG, tmp_path, formats=["csv"]).failures == 0
    assert contents(tmp_path) == contents(alone)
    assert {name: (tmp_path / "cells" / name).read_bytes() for name in finished} == finished
