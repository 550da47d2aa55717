"""Configuration: every form of a specification, and errors that say where and what to do."""

import json
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from tokentrim.cli.schemas import build_schema
from tokentrim.config.specs import Budget, StrategySpec, TrimConfig, load_config, resolve, strategy_from
from tokentrim.config.validation import check
from tokentrim.config.yaml_reader import Where, load_yaml
from tokentrim.errors import ConfigError, TokentrimError, UnknownNameError
from tokentrim.plugins import loader as plugins

ST3_YAML = """\
# tokentrim run --config st3.yaml
strategy:
  spatial:  {name: pvtp, start: 2, stride: 4, prune_ratio: 0.30}
  temporal: {name: vta, attenuation: cosine, horizon: 64, floor: 0.0, every: 1}
"""


@pytest.fixture
def fastv():
    return plugins.registry("strategy").get("fastv")


def test_all_forms_mean_the_same(fastv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.yaml").write_text("name: fastv\nk: 3\n")
    (tmp_path / "whole.yaml").write_text("strategy: {name: fastv, k: 3}\nmodel: testbed\n")
    (tmp_path / "pointer.yml").write_text("strategy: bare.yaml\n")
    (tmp_path / "noname").write_text("name: fastv\nk: 3\n")
    meant = fastv(k=3)
    for spec in (
        {"name": "fastv", "k": 3},
        "{name: fastv, k: 3}",
        "name: fastv\nk: 3",
        "strategy: {name: fastv, k: 3}",
        "bare.yaml",
        "whole.yaml",
        "pointer.yml",
        "noname",
        tmp_path / "whole.yaml",
        TrimConfig(strategy={"name": "fastv", "k": 3}),
        StrategySpec(meant),
        meant,
    ):
        assert strategy_from(spec) == StrategySpec(meant)


def test_a_name_means_the_defaults(fastv):
    assert strategy_from("fastv").strategy == fastv()


def test_a_registered_name_wins_over_a_file(fastv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fastv").write_text("name: st3\n")
    assert strategy_from("fastv").strategy == fastv()


def test_a_file_named_in_a_file_lies_beside_it(fastv, tmp_path):
    (tmp_path / "inner.yaml").write_text("name: fastv\nk: 5\n")
    (tmp_path / "outer.yaml").write_text("strategy: inner.yaml\n")
    assert strategy_from(tmp_path / "outer.yaml").strategy == fastv(k=5)


def test_files_may_not_name_each_other(tmp_path):
    (tmp_path / "a.yaml").write_text("strategy: b.yaml\n")
    (tmp_path / "b.yaml").write_text("strategy: a.yaml\n")
    with pytest.raises(ConfigError, match="must not name itself"):
        strategy_from(tmp_path / "a.yaml")


def test_composition():
    strategy = strategy_from(ST3_YAML).strategy
    assert [part.name for part in strategy.spatial_parts] == ["pvtp"]
    assert strategy.temporal_part.name == "vta"
    assert strategy.spatial_parts[0].prune_ratio == 0.30


def test_several_spatial_parts_and_bare_names():
    strategy = strategy_from({"spatial": ["pool", {"name": "fastv", "k": 2}], "temporal": "vta"}).strategy
    assert [part.name for part in strategy.spatial_parts] == ["pool", "fastv"]


@pytest.mark.parametrize("spec", ["st3", ST3_YAML, "{name: fastv, k: 3, budget: {kv_ratio: 0.3}}"])
def test_round_trip(spec):
    found = strategy_from(spec)
    assert strategy_from(found.as_dict()) == found
    assert strategy_from(json.loads(json.dumps(found.as_dict()))) == found


def test_a_config_dumps_to_what_it_reads():
    config = TrimConfig(strategy=ST3_YAML, model="testbed")
    assert TrimConfig(**config.model_dump()) == config


def test_budget_is_carried(fastv):
    found = strategy_from({"name": "fastv", "k": 3, "budget": {"kv_ratio": 0.3}})
    assert found == StrategySpec(fastv(k=3), Budget(kv_ratio=0.3))
    assert found.budget.ratios == {"kv_ratio": 0.3}
    composed = strategy_from({"spatial": "fastv", "temporal": "vta", "budget": {"layer_mean_ratio": 0.5}})
    assert composed.budget == Budget(layer_mean_ratio=0.5)


def test_resolve_solves_the_budget(monkeypatch, fastv):
    seen = {}

    def at_budget(self, shape, n_visual, **ratios):
        seen.update(ratios, shape=shape, n_visual=n_visual)
        return fastv(k=7), 0.31

    monkeypatch.setattr(fastv, "at_budget", at_budget)
    assert resolve({"name": "fastv", "budget": {"kv_ratio": 0.3}}, "a shape", 576) == fastv(k=7)
    assert seen == {**dict.fromkeys(Budget.model_fields), "kv_ratio": 0.3, "shape": "a shape", "n_visual": 576}
    assert resolve("fastv", "a shape", 576) == fastv()


ERRORS = [
    (
        "{name: fastv, laier: 2}",
        r"inline YAML:1, laier: each key of strategy 'fastv' must be a known one; got 'laier'\.",
    ),
    ({"name": "pvtp", "strid": 2}, "Did you mean 'stride'"),
    ("name: fastv\nk: -1", r"inline YAML:2, k: k of strategy 'fastv' must be at least 1; got -1\."),
    ({"name": "fastv", "keep_ratio": 1.5}, r"^keep_ratio of strategy 'fastv' must lie in \[0, 1\]; got 1\.5\.$"),
    ({"name": "fastv", "keep_ratio": "half"}, "must be a number; got 'half'. It is text"),
    ({"name": "fastv", "k": True}, "k of strategy 'fastv' must be a number; got True"),
    ({"name": "fastv", "k": 1e-4}, "k of strategy 'fastv' must be a whole number; got 0.0001"),
    ({"name": "fastv", "query": "lst"}, "must be 'last' or 'all'; got 'lst'. Did you mean 'last'"),
    ({"name": "fastv", "query": False}, "must be 'last' or 'all'; got False"),
    ({"name": "tally", "boundaries": []}, r"^boundaries of strategy 'tally' must not be empty; got \[\]\.$"),
    ({"name": "sgl", "guide": ""}, r"^guide of strategy 'sgl' must not be empty; got ''\.$"),
    ({"nam": "fastv"}, "must have the key 'name', 'spatial' or 'temporal'.*Did you mean 'name'"),
    ({}, "must have the key 'name'"),
    ({"name": ["fastv"]}, "name of a strategy must be text"),
    ({"name": None}, "name of a strategy must be text; got None"),
    (
        {"spatial": "fastv", "temporel": "vta"},
        "composed strategy must be a known one; got 'temporel'. Did you mean 'temporal'",
    ),
    ({"spatial": "vta"}, "must act during prefill only.*Move it to 'temporal:'"),
    ({"temporal": "fastv"}, "must act at decode steps only.*Move it to 'spatial:'"),
    ({"spatial": [3]}, "a part of a strategy must be a name or a mapping"),
    (
        {"spatial": {"name": "fastv", "budget": {"kv_ratio": 0.3}}},
        r"^spatial\.budget: a budget must be set on the whole",
    ),
    ({"name": "fastv", "budget": {"kv_ratio": 0.3, "flops_ratio": 0.2}}, "a budget must set exactly one of"),
    ({"name": "fastv", "budget": {}}, "a budget must set exactly one of"),
    ({"name": "fastv", "budget": {"kv_ratio": 0}}, r"kv_ratio of the budget must lie in \(0, 1\]; got 0"),
    ({"name": "fastv", "budget": {"kv_ration": 0.3}}, "Did you mean 'kv_ratio'"),
    ({"name": "fastv", "budget": 0.3}, "the budget must be a mapping"),
    ("- a\n- b", "must be a mapping"),
    ("{strategy: st3, modl: x}", "key of the configuration must be a known one; got 'modl'. Did you mean 'model'"),
    ("{model: testbed}", "strategy of the configuration must be given"),
    ("{strategy: st3, model: 3}", "model of the configuration must be text; got 3. Put it in quotes"),
    (3, "must be a name, a mapping, YAML, a file"),
    (dict, r"Call the class: dict\(\.\.\.\)"),
    ("gone.yaml", "the configuration file must exist; got 'gone.yaml'"),
]


@pytest.mark.parametrize(("spec", "message"), ERRORS, ids=[str(spec)[:40] for spec, _ in ERRORS])
def test_errors_say_where_and_what_to_do(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        strategy_from(spec)
    assert caught.value.exit_code == 2
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize("spec", ["fastb", {"name": "fastb"}, {"spatial": ["pool", "fastb"]}, "{name: fastb}"])
def test_an_unknown_strategy_gets_the_nearest_name(spec):
    with pytest.raises(UnknownNameError, match="got 'fastb'. Did you mean 'fastv'"):
        strategy_from(spec)


def test_an_unknown_strategy_in_a_file_is_placed_once(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("model: testbed\nstrategy:\n  name: fastb\n")
    with pytest.raises(UnknownNameError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:3, strategy.name: the strategy must be a registered name; got 'fastb'")


def test_errors_in_a_file_name_line_and_path_of_every_part(tmp_path):
    path = tmp_path / "st3.yaml"
    path.write_text(ST3_YAML.replace("0.30", "1.30").replace("stride", "strid").replace("cosine", "cosin"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(
        "st3.yaml:3, strategy.spatial.prune_ratio: prune_ratio of strategy 'pvtp' must" in line for line in lines
    )
    assert any("st3.yaml:3, strategy.spatial.strid: " in line and "'stride'" in line for line in lines)
    assert any("st3.yaml:4, strategy.temporal.attenuation: " in line and "'cosine'" in line for line in lines)


class Inner(BaseModel, extra="forbid"):
    size: int = Field(ge=1)
    label: str = ""


class Outer(BaseModel, extra="forbid"):
    inner: Inner
    either: int | str | None = None
    many: tuple[float, ...] = ()
    switch: bool = False
    low: float = Field(default=1.0, gt=0)
    high: float = Field(default=1.0, lt=5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "^inner of the thing must be given. Add it.$"),
        ({"inner": {}}, r"^inner\.size: size of inner of the thing must be given"),
        ({"inner": {"size": 0}}, r"^inner\.size: size of inner of the thing must be at least 1; got 0"),
        ({"inner": {"size": 1, "siz": 2}}, r"^inner\.siz: each key of inner of the thing must be a known one"),
        ({"inner": 3}, "inner of the thing must be a mapping"),
        ({"inner": {"size": 1}, "either": [1]}, "either of the thing must be a whole number or be text"),
        ({"inner": {"size": 1}, "many": [1, "x"]}, r"^many\[1\]: 1 of many of the thing must be a number; got 'x'"),
        ({"inner": {"size": 1}, "many": 3}, "many of the thing must be a list"),
        ({"inner": {"size": 1}, "switch": "maybe"}, "switch of the thing must be true or false"),
        ({"inner": {"size": 1}, "low": 0}, "low of the thing must be above 0"),
        ({"inner": {"size": 1}, "high": 7}, "high of the thing must be below 5"),
        (7, "the thing must be a mapping of keys to values; got 7"),
    ],
)
def test_check_speaks_the_grammar_for_any_model(values, message):
    with pytest.raises(ConfigError, match=message):
        check(Outer, values, "the thing", Where())


TRAPS = [
    # What looks like a number or a boolean, and is text in YAML 1.2; pydantic alone would take every one of them.
    ("share: '0.5'", r"inline YAML:1, share: share of the thing must be a number; got '0.5'.*write 0.5"),
    ("share: 50%", "got '50%'.*write 0.5"),
    ("share: 0,5", "got '0,5'.*write 0.5"),
    ("size: 010", "size of the thing must be a number; got '010'.*write 10"),
    ("size: 1_000", "got '1_000'.*write 1000"),
    ("size: 0x10", "got '0x10'. It is text: write a number"),
    ("size: yes", "got 'yes'. It is text"),
    ("size: true", "size of the thing must be a number; got True"),
    (
        "switch: no",
        "switch of the thing must be true or false; got 'no'. Only true and false are booleans.*write false",
    ),
    ("switch: On", "got 'On'.*write true"),
    ("switch: 'true'", "got 'true'.*write true"),
    ("switch: 0", "switch of the thing must be true or false; got 0. Only true and false are booleans.*write false"),
    ("switch: 1.0", "switch of the thing must be true or false; got 1.0. Only true and false are booleans"),
    ("perhaps: 1", "perhaps of the thing must be true or false; got 1.*write true"),
    ("shares: [0.5, '0.2']", r"shares\[1\]: 1 of shares of the thing must be a number; got '0.2'"),
    ("inner: {size: '3'}", r"inner\.size: size of inner of the thing must be a number; got '3'.*write 3"),
    ("maybe: off", "maybe of the thing must be a number; got 'off'"),
]


class Thing(BaseModel):
    size: int = 1
    share: float = Field(default=0.5, ge=0, le=1)
    switch: bool = True
    perhaps: bool | None = None
    shares: tuple[float, ...] = ()
    maybe: int | None = None
    word: str = ""
    either: float | Literal["auto"] = 1.0
    inner: Inner = Inner(size=1)


@pytest.mark.parametrize(("text", "message"), TRAPS, ids=[text for text, _ in TRAPS])
def test_what_only_looks_like_a_number_or_boolean_is_refused(text, message):
    document = load_yaml(text)
    with pytest.raises(ConfigError, match=message):
        check(Thing, document.data, "the thing", document.where)


def test_numbers_booleans_and_words_are_taken_as_they_are():
    text = (
        "{size: 3, share: 1e-4, switch: false, perhaps: null, shares: [1, 5e-1], maybe: null, word: no, either: auto}"
    )
    document = load_yaml(text)
    expected = {"size": 3, "share": 1e-4, "switch": False, "shares": (1.0, 0.5), "maybe": None, "word": "no"}
    expected["perhaps"] = None
    assert check(Thing, document.data, "the thing", document.where).model_dump(exclude={"inner"}) == {
        **expected,
        "either": "auto",
    }


def test_traps_and_other_errors_are_told_in_one_go():
    with pytest.raises(ConfigError) as caught:
        check(Thing, {"switch": "no", "share": 2, "size": "x"}, "the thing", Where())
    lines = str(caught.value).splitlines()
    assert [line.split(" of ")[0] for line in lines] == ["switch", "size", "share"]


def test_schema_tells_strategies_apart_by_name():
    schema = build_schema()
    json.dumps(schema)
    definitions = schema["$defs"]
    union = definitions["strategy"]["anyOf"][0]
    assert union["discriminator"]["propertyName"] == "name"
    assert set(union["discriminator"]["mapping"]) == set(plugins.registry("strategy").names())
    fastv = definitions["strategy-fastv"]
    assert fastv["properties"]["name"]["const"] == "fastv"
    assert fastv["additionalProperties"] is False
    assert {"k", "keep_ratio", "budget"} <= set(fastv["properties"])
    assert "budget" not in definitions["part-fastv"]["properties"]
    for reference in _references(schema):
        assert reference.removeprefix("#/$defs/") in definitions


def _references(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


@pytest.mark.parametrize("name", plugins.registry("strategy").names())
def test_every_registered_strategy_survives_its_spec(name):
    try:
        strategy = plugins.registry("strategy").get(name)()
    except TokentrimError:
        pytest.skip("has a parameter without a default")
    assert strategy_from(strategy.spec()) == StrategySpec(strategy)
