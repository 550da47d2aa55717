"""The JSON schemas: fresh where they are shipped, true of every shipped file, and as strict as the reader."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from tokentrim.cli.schemas import SCHEMAS, SHIPPED
from tokentrim.compare import load_compare
from tokentrim.config.specs import load_config
from tokentrim.config.yaml_reader import load_yaml
from tokentrim.errors import TokentrimError
from tokentrim.plugins.loader import registry

ROOT = Path(__file__).parents[2]
YAMLS = sorted([*ROOT.glob("docs/examples/*s/*.yaml"), *ROOT.glob("tokentrim/compare/*.yaml")])
HEADER = re.compile(r"^# yaml-language-server: \$schema=(\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def schemas():
    return {kind: build() for kind, build in SCHEMAS.items()}


def accepts(schema, data):
    """Whether a schema accepts data, as an editor would see them: keys are text."""
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(json.dumps(data)))


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_shipped_schema_is_fresh_and_well_formed(schemas, kind):
    jsonschema.Draft202012Validator.check_schema(schemas[kind])
    shipped = json.loads((SHIPPED / f"{kind}.json").read_text(encoding="utf-8"))
    assert shipped == schemas[kind], "run: python tests/test_docs.py"


@pytest.mark.parametrize("path", YAMLS, ids=name_of)
def test_every_shipped_file_names_its_schema_and_fits_it(schemas, path):
    header = HEADER.search(path.read_text(encoding="utf-8"))
    kind = "schedule"  # which a calibration writes and nobody edits: it has no header
    if "schedules" not in path.parts:
        assert header is not None, "no line '# yaml-language-server: $schema=...'"
        assert (path.parent / header[1]).resolve().parent == SHIPPED
        kind = Path(header[1]).stem
    validator = jsonschema.Draft202012Validator(schemas[kind])
    errors = validator.iter_errors(json.loads(json.dumps(load_yaml(path).data)))
    assert not [error.message for error in errors]


CONFIGS = [
    ("strategy: st3", True),
    ("{name: fastv, k: 2}", True),
    ("strategy: {name: fastv, k: 2, budget: {kv_ratio: 0.3}}", True),
    ("strategy: {spatial: [{name: fastv}, pvtp], temporal: vta, budget: {kv_ratio: 0.3}}", True),
    ("{strategy: st3, model: testbed, structure: prune}", True),
    ("strategy: other.yaml", None),
    ("strategy: {name: fastvv}", False),
    ("strategy: {name: fastv, keep_ration: 0.5}", False),
    ("strategy: {name: fastv, keep_ratio: 1.5}", False),
    ("strategy: {name: fastv, keep_ratio: '0.5'}", False),
    ("strategy: {name: fastv, query: lst}", False),
    ("strategy: {name: fastv, budget: {ratio: 0.5}}", False),
    ("strategy: {spatial: {name: fastv, budget: {kv_ratio: 0.5}}}", False),
    ("{strategy: st3, modle: testbed}", False),
    ("model: testbed", False),
]


@pytest.mark.parametrize(("text", "right"), CONFIGS, ids=[text for text, _ in CONFIGS])
def test_the_schema_of_a_configuration_agrees_with_the_reader(schemas, text, right):
    assert accepts(schemas["config"], load_yaml(text if ":" in text else f"strategy: {text}").data) is (
        right is not False
    )
    if right is not None:
        assert reads(load_config, text) is right


COMPARISONS = [
    ("{tasks: [where], strategies: [fastv]}", True),
    ("{tasks: where, strategies: fastv}", True),
    ("{tasks: [{task: where, samples: 3}], strategies: [{name: fastv, k: 3}], budgets: [0.5]}", True),
    ("{tasks: [where], strategies: [{strategy: {name: vta, horizon: 4}, match: kv_ratio}], models: testbed}", True),
    ("{tasks: [where], strategies: [fastv], budgets: {match: kv_ratio, values: [0.5]}}", True),
    ("{tasks: [where], strategies: [downscale, {control: downscale, label: small}], timing: false}", True),
    ("{tasks: [where], strategies: [fastv], timing: {repeats: 7}, controls: []}", True),
    ("{tasks: [where], strategies: [{control: downscale, strategy: fastv}]}", False),
    ("{tasks: [where], strategies: [fastv], timing: {repeat: 7}}", False),
    ("{tasks: [wher], strategies: [fastv]}", False),
    ("{tasks: [where], strategies: [fast]}", False),
    ("{tasks: [where]}", False),
    ("{tasks: [where], strategies: [fastv], text_only: no}", False),
    ("{tasks: [where], strategies: [fastv], sample: 3}", False),
    ("{tasks: [where], strategies: [fastv], budgets: {match: tokens}}", False),
    ("{tasks: [where], strategies: [fastv], models: [{model: testbed, dtype: float8}]}", False),
]


@pytest.mark.parametrize(("text", "right"), COMPARISONS, ids=[text for text, _ in COMPARISONS])
def test_the_schema_of_a_comparison_agrees_with_the_reader(schemas, text, right):
    assert accepts(schemas["compare"], load_yaml(text).data) is right
    assert reads(load_compare, text) is right


def reads(load, text):
    try:
        load(text)
    except TokentrimError:
        return False
    return True


def test_every_registered_strategy_and_parameter_is_in_it(schemas):
    for kind in ("config", "compare"):
        for name in registry("strategy").names():
            fields = registry("strategy").get(name).model_fields
            assert {"name", "budget", *fields} == set(schemas[kind]["$defs"][f"strategy-{name}"]["properties"])
