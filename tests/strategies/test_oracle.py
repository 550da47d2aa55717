"""``oracle`` ranks by the task's evidence."""

import torch

from tests.strategies.sites_factory import layer_site, model_shape
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule
from tokentrim_strategies.oracle import Oracle


def test_scores_are_the_evidence():
    evidence = torch.tensor([[0.0, 1.0, 0.5]])
    assert torch.equal(Oracle().score(layer_site((3,), {Need.EVIDENCE: evidence})), evidence)
    assert Oracle(boundary=2, keep_count=4).schedule(model_shape(), 64) == Schedule.of({2: 4})
