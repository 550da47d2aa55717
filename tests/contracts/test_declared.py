"""What a class declares of itself is checked when its name is asked for, and the message says what to write."""

from typing import ClassVar

import pytest

from tokentrim import Need, Schedule, SpatialScorer, SpatialSelector, Strategy, TemporalScorer
from tokentrim.contracts.declared import wrong_in_adapter, wrong_in_strategy
from tokentrim.errors import PluginError
from tokentrim.plugins.loader import KINDS, registry
from tokentrim.plugins.registry import Origin, Registry

STRATEGY, ADAPTER = KINDS[0], KINDS[1]
OURS, THEIRS = Origin("ours", "tokentrim", "0.1.0"), Origin("extras", "someone", "2.0")


class Scorer(SpatialScorer):
    """As a plugin's author would write it: no annotations where the base has them."""

    name = "scorer"
    needs = frozenset({Need.FEATURES})
    budget_knob = "keep_ratio"
    keep_ratio: float = 0.5

    def schedule(self, shape, n_visual):
        return Schedule.of({0: n_visual // 2})

    def score(self, site):
        return site.features.norm(dim=-1)


class Fading(TemporalScorer):
    name = "fading"
    needs = frozenset({Need.KEYS})

    def count(self, step, layer, n_prefill, shape):
        return n_prefill

    def score(self, site):
        return site.keys.sum()


class Chooser(SpatialSelector):
    name = "chooser"
    needs = frozenset({Need.FEATURES})
    merges = True
    count_is_static = False

    def schedule(self, shape, n_visual):
        return Schedule.of({0: n_visual})

    def select(self, site, count):
        raise NotImplementedError


@pytest.mark.parametrize("kind", ["strategy", "adapter"])
def test_everything_registered_declares_what_it_can(kind):
    check = {"strategy": wrong_in_strategy, "adapter": wrong_in_adapter}[kind]
    for entry in registry(kind):
        assert check(registry(kind).get(entry.name), entry.tags) == ""


@pytest.mark.parametrize("found", [Scorer, Fading, Chooser])
def test_what_is_right_is_left_alone(found):
    assert wrong_in_strategy(found, {"stage": found.stage, "summary": "x"}) == ""


WRONG = [
    (Scorer, {"stage": "prefil"}, "stage must be one of input, .*Did you mean 'prefill'"),
    (Scorer, {"stage": "decode"}, "stage must be prefill or input"),
    (Fading, {"stage": "prefill"}, "stage must be decode"),
    (Scorer, {"needs": {Need.FEATURES}}, "needs must be a frozenset of tokentrim.Need"),
    (Scorer, {"needs": frozenset({"last-row"})}, r"Write frozenset\(\{Need.LAST_ROW\}\)"),
    (Scorer, {"needs": Need.FEATURES}, "needs must be a frozenset"),
    (Scorer, {"needs": frozenset({Need.PROMPT_ROW})}, "be available at a boundary; got .'PROMPT_ROW'"),
    (Fading, {"needs": frozenset({Need.GRID})}, "be available at a decode step; got .'GRID'"),
    (Scorer, {"budget_knob": "keep_ration"}, "budget_knob must name a parameter.*Did you mean 'keep_ratio'"),
    (Scorer, {"merges": "yes"}, "merges must be True or False"),
    (Scorer, {"merges": True}, "merges must be False; got True. A scorer only ranks"),
    (Scorer, {"count_is_static": False}, "count_is_static must be True; got False"),
]


@pytest.mark.parametrize(("base", "change", "message"), WRONG, ids=[str(change) for _, change, _ in WRONG])
def test_a_wrong_ability_is_named(base, change, message):
    found = type("Wrong", (base,), {"__module__": __name__, **change})
    kinds = Registry(STRATEGY)
    kinds.add(kinds.make_entry(base.name, found, THEIRS, {}))
    with pytest.raises(PluginError, match=message) as caught:
        kinds.get(base.name)
    assert f"strategy '{base.name}' of plugin 'extras' of someone 2.0" in str(caught.value)


def test_an_ability_that_is_annotated_as_a_parameter():
    with pytest.warns(UserWarning, match="shadows"):
        found = type("Wrong", (Scorer,), {"__module__": __name__, "__annotations__": {"merges": bool}, "merges": True})
    assert "merges must be declared of the class and be no parameter" in wrong_in_strategy(found, {})


def test_a_tag_that_contradicts_the_class():
    assert "the tag stage must equal the class's, 'prefill'" in wrong_in_strategy(Scorer, {"stage": "input"})


def test_a_strategy_that_is_neither_spatial_nor_temporal_may_need_both():
    class Both(Strategy):
        needs: ClassVar[frozenset[Need]] = frozenset({Need.GRID, Need.PROMPT_ROW})

        def parts(self):
            raise NotImplementedError

    assert wrong_in_strategy(Both, {}) == ""


def adapter(**change):
    return type("Mine", (registry("adapter").get("llava"),), {"name": "mine", **change})


@pytest.mark.parametrize(
    ("change", "tags", "message"),
    [
        ({"model_types": ["mine"]}, {}, "model_types must be a tuple of texts"),
        ({"model_types": ("mine",)}, {}, "the tag model_types must equal the class's"),
        ({"model_types": ()}, {}, "model_types must name at least one family"),
        ({"model_types": ("mine",)}, {"model_types": ("mine",)}, "^$"),
    ],
)
def test_what_an_adapter_declares(change, tags, message):
    import re

    assert re.search(message, wrong_in_adapter(adapter(**change), tags))


def test_a_family_has_one_adapter():
    adapters = Registry(ADAPTER)
    adapters.add(adapters.make_entry("llava", object, OURS, {"model_types": ("llava",)}))
    with pytest.raises(
        PluginError, match=r"belong to it alone; got \['llava'\].*of tokentrim 0.1.0 serves llava"
    ) as caught:
        adapters.add(adapters.make_entry("mine", object, THEIRS, {"model_types": ("mine", "llava")}))
    assert "adapter 'mine' of plugin 'extras' of someone 2.0" in str(caught.value)
