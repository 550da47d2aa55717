"""``st3`` is ``pvtp`` and ``vta``, and the shipped configurations say what the presets say."""

from pathlib import Path

import pytest

from tests.strategies.sites_factory import model_shape
from tokentrim.config.specs import load_config
from tokentrim.contracts.compose import Composition
from tokentrim.contracts.sites import Need
from tokentrim.contracts.strategy import Parts, Strategy
from tokentrim.counting.forecast import plan
from tokentrim.errors import UnknownNameError
from tokentrim_strategies.fastv import FastV
from tokentrim_strategies.pvtp import PVTP, PVTPParameters
from tokentrim_strategies.random_control import Random
from tokentrim_strategies.st3 import PRESETS, ST3
from tokentrim_strategies.vta import VTA, VTAParameters

CONFIGS = Path(__file__).parents[2] / "docs/examples/configs"


def test_defaults_are_those_of_the_parts():
    assert ST3().parts() == Parts((PVTP(),), VTA())


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


@pytest.mark.parametrize(("model", "layers", "last"), [("llava-1.5-7b", 32, 72), ("llava-1.5-13b", 40, 72)])
def test_presets(model: str, layers: int, last: int):
    (part,) = ST3.preset(model).spatial_parts
    assert part.schedule(model_shape(layers), 576).per_layer(layers, 576)[-1] == last


def test_unknown_preset_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'llava-1\.5-7b'"):
        ST3.preset("llava-1.5-7B-hf")


def test_plan_multiplies_both_parts():
    layers = PVTP().schedule(model_shape(), 576).per_layer(32, 576)
    usage = plan(ST3(horizon=64), model_shape(), 576, new_tokens=33).usage
    assert usage.layer_tokens == layers
    assert usage.cached[-1] == tuple(-(-n // 2) for n in layers)  # forward 32 of a horizon of 64
    assert plan(ST3(), model_shape(), 576, new_tokens=64).usage.cached[31] == usage.cached[-1]


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
