"""``st3`` is ``pvtp`` and ``vta``, and the shipped configurations say what the presets say."""

from pathlib import Path

import pytest

from tests.strategies.sites_factory import model_shape
from tokentrim.config.specs import load_config
from tokentrim.contracts.compose import Composition
from tokentrim.contracts.sites import Need
from tokentrim.contracts.strategy import Parts, Strategy
from tokentrim.counting.forecast import plan
from tokentrim.counting.published import PRESETS as MODELS
from tokentrim.errors import UnknownNameError
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.pvtp import PVTP, PVTPParameters
from tokentrim_strategies.random_control import Random
from tokentrim_strategies.st3 import PRESETS, ST3
from tokentrim_strategies.vta import VTA, VTAParameters

CONFIGS = Path(__file__).parents[2] / "docs/examples/configs"


def test_defaults_are_those_of_the_parts_but_what_is_not_chosen_may_return():
    assert ST3().parts() == Parts((PVTP(),), VTA(evict=False))
    assert ST3(evict=True).parts() == Parts((PVTP(),), VTA())
    assert (VTA().evicts(), ST3().temporal_part) == (True, VTA(evict=False))


def test_the_preset_evicting_is_what_the_default_was():
    before = {
        "attenuation": "cosine",
        "horizon": "auto",
        "floor": 0.0,
        "every": 1,
        "ranking": "accumulated",
        "evict": True,
    }
    strategy = ST3.preset("evicting")
    assert strategy == ST3(start=2, stride="auto", prune_ratio=0.5, **before)
    assert strategy.needed() == {Need.LAST_ROW, Need.ACCUMULATED} == ST3(evict=True).needed()
    assert ST3().needed() == {Need.LAST_ROW}


def test_every_parameter_reaches_its_part():
    spatial = PVTP(start=3, stride=2, prune_ratio=0.1, rule="linear", query="text", positions="renumber")
    temporal = VTA(
        start=3, stride=2, attenuation="linear", horizon=9, floor=0.2, every=4, ranking="frozen", evict=False
    )
    both = ST3(**{**spatial.model_dump(), **temporal.model_dump()})
    assert both.parts() == Parts((spatial,), temporal)
    assert both.needed() == {Need.TEXT_ROWS, Need.PROMPT_ROW} <= both.needs
    own = {*PVTPParameters.model_fields, *VTAParameters.model_fields, "positions"}
    assert set(ST3.model_fields) == own == set(PVTP.model_fields) | set(VTA.model_fields)


def test_survives_its_spec():
    spec = ST3(stride=2, every=8).spec()
    assert spec.pop("name") == "st3"
    assert ST3(**spec) == ST3(stride=2, every=8)


@pytest.mark.parametrize(
    ("model", "layers", "n_visual", "last"),
    [
        ("llava-1.5-7b", 32, 576, 48),
        ("llava-1.5-13b", 40, 576, 52),
        ("testbed", 12, 100, 6),
        ("testbed-qwen2.5-vl", 14, 100, 1),
        ("testbed-llava-next", 14, 100, 1),
    ],
)
def test_presets_hold_30_percent_of_the_cache_to_the_end_and_see_ever_less(
    model: str, layers: int, n_visual: int, last: int
):
    strategy = ST3.preset(model)
    usage = plan(strategy, model_shape(layers), n_visual, new_tokens=64).usage
    assert usage.layer_tokens[-1] == last
    assert usage.kv_peak_ratio == usage.kv_mean_ratio == usage.kv_end_ratio == usage.layer_mean_ratio
    assert usage.kv_mean_ratio == pytest.approx(0.3, abs=0.005)
    assert usage.kv_read_ratio == pytest.approx(0.15, abs=0.01)  # half of it, over an answer as long as was allowed
    evicting = plan(strategy.model_copy(update={"evict": True}), model_shape(layers), n_visual, new_tokens=64).usage
    assert (evicting.kv_peak_ratio, evicting.kv_mean_ratio) == (usage.kv_peak_ratio, usage.kv_read_ratio)


@pytest.mark.parametrize(("name", "flops"), [("llava-1.5-7b", 0.336), ("llava-1.5-13b", 0.337)])
def test_presets_of_llava_take_a_third_of_the_prefill(name: str, flops: float):
    assert plan(ST3.preset(name), MODELS[name], 576).usage.flops_ratio == pytest.approx(flops, abs=0.001)


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'llava-1\.5-7b'"):
        ST3.preset("llava-1.5-7B-hf")


def test_plan_multiplies_both_parts():
    layers = PVTP().schedule(model_shape(), 576).per_layer(32, 576)
    usage = plan(ST3(horizon=64, evict=True), model_shape(), 576, new_tokens=33).usage
    assert usage.layer_tokens == layers
    assert usage.cached[-1] == tuple(-(-n // 2) for n in layers)  # forward 32 of a horizon of 64
    assert plan(ST3(evict=True), model_shape(), 576, new_tokens=64).usage.cached[31] == usage.cached[-1]


def test_what_may_return_is_held_and_not_seen():
    evicting, returning = (plan(ST3(evict=evict), model_shape(), 576, new_tokens=33).usage for evict in (True, False))
    assert returning.cached == (returning.layer_tokens,) * 32
    assert returning.seen == evicting.cached
    assert returning.kv_read_ratio == evicting.kv_mean_ratio < returning.kv_mean_ratio == returning.kv_peak_ratio
    assert returning.decode_flops == evicting.decode_flops


@pytest.mark.parametrize(
    ("file", "strategy"),
    [
        *((f"st3-{model}.yaml", ST3.preset(model)) for model in PRESETS),
        ("fastv.yaml", FastV()),
        ("fastv-vta.yaml", Composition(spatial=(FastV(),), temporal=VTA())),
        ("random.yaml", Random()),
    ],
)
def test_shipped_configuration(file: str, strategy: Strategy):
    text = (CONFIGS / file).read_text(encoding="utf-8")
    command = f"# tokentrim run --config docs/examples/configs/{file} --image photo.jpg --prompt "
    assert text.splitlines()[0].startswith(command)
    assert load_config(CONFIGS / file).strategy.strategy == strategy
