"""``random`` draws by content, seed and boundary, and by nothing else."""

import torch

from tests.strategies.sites_factory import layer_site, model_shape
from tokentrim.contracts.noise import uniform
from tokentrim.contracts.sites import Need
from tokentrim.counting.schedule import Schedule
from tokentrim_strategies.random_control import Random

NOISE = {Need.RANDOM: None}


def test_golden():
    site = layer_site((5,), NOISE, boundary=3, keys=(77,))
    expected = uniform(torch.tensor([77]), torch.arange(5).unsqueeze(0), seed=9, salt=3)
    assert torch.equal(Random(seed=9, boundary=3).score(site), expected)


def test_schedule():
    assert Random(boundary=3, keep_count=10).schedule(model_shape(), 64) == Schedule.of({3: 10})
    assert Random().schedule(model_shape(), 64) == Schedule.of({0: 16})


def test_sample_draws_alike_in_any_batch():
    alone = Random().score(layer_site((6,), NOISE, keys=(5,)))
    together = Random().score(layer_site((9, 6), NOISE, keys=(4, 5)))
    assert torch.equal(together[1, :6], alone[0])


def test_seed_and_boundary_matter_and_the_global_generator_does_not():
    site = layer_site((64,), NOISE)
    state = torch.get_rng_state()
    first = Random(seed=1).score(site)
    assert torch.equal(first, Random(seed=1).score(site))
    assert not torch.equal(first, Random(seed=2).score(site))
    assert not torch.equal(first, Random(seed=1).score(layer_site((64,), NOISE, boundary=2)))
    assert torch.equal(state, torch.get_rng_state())


def test_is_even_on_the_whole():
    site = layer_site((4096,) * 4, NOISE)
    means = Random().score(site).mean(dim=1)
    assert bool(((means > 0.47) & (means < 0.53)).all())
