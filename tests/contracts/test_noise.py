"""Noise is a function of seed, content and token number alone."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tests.engine.probes import Probe
from tests.models import alone, prompt, tiny_llava
from tokentrim.contracts.noise import content_key, mix, pixel_key, uniform
from tokentrim.session import trim

_model = lru_cache(maxsize=4)(tiny_llava)
_quick = settings(deadline=None, max_examples=50)


@pytest.mark.parametrize("direct", [True, False])
def test_a_sample_draws_the_same_noise_in_any_batch(direct: bool) -> None:
    model = _model(side=4)
    layouts = ([3, "image", 5], [9], [2, "image", 4, "image", 7], ["image", 2])
    batch = prompt(model, *layouts)
    torch.manual_seed(3)
    before = torch.get_rng_state()

    def draw(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        probe = Probe(at=(0,))
        with trim(model, probe), torch.no_grad():
            if direct:
                model(**inputs)
            else:
                model.generate(**inputs, max_new_tokens=2, do_sample=False)
        return probe._seen[0]["noise"]

    together = draw(batch)
    assert torch.equal(together, draw(batch))
    for row, n in ((0, 16), (2, 32), (3, 16)):
        assert torch.equal(together[row, :n], draw(alone(batch, row, 16))[0])
    turned = {
        "input_ids": batch["input_ids"].flip(0),
        "attention_mask": batch["attention_mask"].flip(0),
        "pixel_values": batch["pixel_values"][[3, 1, 2, 0]],
    }
    assert torch.equal(draw(turned)[3, :16], together[0, :16])
    assert not torch.equal(together[0, :16], together[3, :16])
    assert torch.equal(torch.get_rng_state(), before)


def test_generate_and_forward_draw_alike() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    kept = []
    for generating in (True, False):
        with trim(model, {"name": "random", "keep_ratio": 0.4}) as session, torch.no_grad():
            model.generate(**inputs, max_new_tokens=1) if generating else model(**inputs)
        kept.append(session.trace.kept(0))
    assert torch.equal(*kept)


def test_another_image_draws_other_noise() -> None:
    model = _model(side=4)
    inputs = prompt(model, [3, "image", 5])
    kept = []
    for shift in (0.0, 1e-3):
        with trim(model, {"name": "random", "keep_ratio": 0.5}) as session, torch.no_grad():
            model(**{**inputs, "pixel_values": inputs["pixel_values"] + shift})
        kept.append(session.trace.kept(0).tolist())
    assert kept[0] != kept[1]


@_quick
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1), st.integers(0, 1000))
def test_uniform_noise_is_uniform(key: int, seed: int, salt: int) -> None:
    noise = uniform(torch.tensor([key]), torch.arange(4096).unsqueeze(0), seed=seed, salt=salt)
    assert noise.dtype == torch.float32
    assert float(noise.min()) >= 0.0
    assert float(noise.max()) < 1.0
    # The standard error of the mean is 0.0045, and that of each tenth's count is 19.
    assert abs(float(noise.mean()) - 0.5) < 0.025
    counts = torch.histc(noise, bins=10, min=0, max=1)
    assert float((counts - 409.6).abs().max()) < 115


@_quick
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 2), st.integers(0, 50))
def test_seed_salt_and_key_each_change_the_noise(key: int, seed: int, salt: int) -> None:
    counters = torch.arange(64).unsqueeze(0)
    base = uniform(torch.tensor([key]), counters, seed=seed, salt=salt)
    for other in (
        uniform(torch.tensor([(key + 1) % 2**32]), counters, seed=seed, salt=salt),
        uniform(torch.tensor([key]), counters, seed=seed + 1, salt=salt),
        uniform(torch.tensor([key]), counters, seed=seed, salt=salt + 1),
    ):
        assert float((base - other).abs().mean()) > 0.1
        assert abs(float(torch.corrcoef(torch.cat([base, other]))[0, 1])) < 0.6


@_quick
@given(st.integers(0, 2**32 - 1))
def test_a_mixing_round_has_an_inverse_and_avalanches(word: int) -> None:
    mixed = int(mix(torch.tensor(word)))
    assert 0 <= mixed < 2**32
    assert mixed != int(mix(torch.tensor(word ^ 1)))


@_quick
@given(st.lists(st.integers(1, 50_000), min_size=1, max_size=20), st.integers(0, 10))
def test_padding_in_front_does_not_change_a_key(tokens: list[int], pads: int) -> None:
    plain, padded = torch.tensor([tokens]), torch.tensor([[0] * pads + tokens])
    assert torch.equal(content_key(plain), content_key(padded))
    if len(set(tokens)) > 1:
        assert int(content_key(plain)) != int(content_key(plain.roll(1)))


def test_an_image_has_its_key_in_any_batch() -> None:
    pixels = torch.randn(3, 3, 8, 8)
    keys = pixel_key(pixels)
    assert len(set(keys.tolist())) == 3
    assert torch.equal(pixel_key(pixels[[2, 0]]), keys[[2, 0]])
    assert int(pixel_key(pixels[:1].flip(-1))) != int(keys[0])


def test_the_key_of_a_large_image_is_the_sum_over_all_of_its_pixels() -> None:
    pixels = torch.randn(2, 3, 310, 310, generator=torch.Generator().manual_seed(1))
    words = pixels.flatten(1).view(torch.int32).long() & 0xFFFFFFFF
    weights = mix(torch.arange(1, words.shape[1] + 1)) | 1
    assert torch.equal(pixel_key(pixels), ((words * weights) & 0xFFFFFFFF).sum(1) & 0xFFFFFFFF)
