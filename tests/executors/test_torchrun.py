"""Two processes of torchrun, talking by gloo: the same results as from one, and an honest end when one dies."""

import pytest

from tests.executors.small import CELLS, CONFIG, contents, heads
from tokentrim.compare import run

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_two_ranks_give_the_same_results(shaky, alone, tmp_path):
    shaky.order()
    done = shaky.compare(tmp_path, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path) == contents(alone)
    assert done.stdout.count(f"{CELLS}/{CELLS} cells") == 1, "one rank speaks"
    assert not any(head["timed_alone"] for head in heads(tmp_path))


@pytest.mark.slow
def test_a_dead_rank_ends_the_run_and_keeps_what_was_finished(shaky, alone, tmp_path):
    shaky.order("kill")
    done = shaky.compare(tmp_path, launcher=TORCHRUN)
    assert done.returncode == 1
    assert "SIGKILL" in done.stderr
    kept = list((tmp_path / "cells").glob("[!.]*.jsonl"))
    assert len(kept) == CELLS - 2, "the cells of the task before"
    finished = {path.name: path.read_bytes() for path in kept}
    assert run(CONFIG, tmp_path).failures == 0
    assert contents(tmp_path) == contents(alone)
    assert {name: (tmp_path / "cells" / name).read_bytes() for name in finished} == finished
