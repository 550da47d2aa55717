"""Comparisons read from YAML: short forms, defaults, and errors that say where."""

import textwrap

import pytest

from tokentrim.compare.config import load_compare
from tokentrim.errors import ConfigError, UnknownNameError

SHORT = """
tasks: [where]
strategies: [fastv]
"""


def test_the_shipped_comparison_has_the_controls():
    config = load_compare()
    names = [method.name for method in config.strategies]
    assert {"none", "random", "uniform", "oracle", "st3"} <= set(names)
    assert config.models[0].model == "testbed"
    assert len(config.tasks) == 8
    assert config.text_only


def test_short_and_long_forms_mean_the_same():
    long = load_compare(
        {
            "models": [{"model": "testbed"}],
            "tasks": [{"task": "where"}],
            "strategies": [{"strategy": {"name": "fastv"}}],
            "budgets": {"values": [0.5, 0.3, 0.2]},
        }
    )
    assert load_compare(SHORT).hash == long.hash
    assert load_compare("tasks: where\nstrategies: {name: fastv}\n").hash == long.hash


def test_what_is_written_reads_back_the_same():
    config = load_compare(
        {
            "tasks": ["where"],
            "strategies": [{"spatial": "fastv", "temporal": "vta"}, {"strategy": "random", "label": "r"}],
        }
    )
    again = load_compare(config.to_dict())
    assert again.hash == config.hash
    assert [method.name for method in again.strategies] == [method.name for method in config.strategies]


def test_the_hash_sees_every_change():
    hashes = {
        load_compare(SHORT + extra).hash
        for extra in ("", "samples: 7", "budgets: [0.4]", "seeds: [0, 1]", "split: calibration", "text_only: false")
    }
    assert len(hashes) == 6


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("tasks: [where]\nstrategis: [fastv]\n", ["strategis", "Did you mean 'strategies'?"]),
        ("tasks: [wher]\nstrategies: [fastv]\n", ["'wher'", "Did you mean 'where'?"]),
        ("tasks: [where]\nstrategies:\n  - random\n  - {name: fastv, keep_ratio: 1.7}\n", [":4", "keep_ratio", "1.7"]),
        ("tasks: [where]\nstrategies:\n  - {strategy: fastv, mach: fixed}\n", [":3", "mach", "'match'"]),
        ("tasks: [where]\nstrategies: [fastv]\nbudgets: [0.5, 1.7]\n", ["budgets", "(0, 1]", "1.7"]),
        ("tasks: [where]\nstrategies: [fastv]\nsamples: 0\n", ["samples", "[1, 100000]"]),
        ("tasks: [where]\nstrategies: [fastv]\nsamples: 100000000\n", ["samples", "[1, 100000]"]),
        ("tasks: [where]\nstrategies: [fastv]\nseeds: [0, 0]\n", ["seeds", "differ"]),
        ("tasks: [where]\nstrategies: [fastv]\nbudgets: [0.3, 0.3000000000001]\n", ["budgets", "differ"]),
        ("tasks: [where]\nstrategies: [fastv, {strategy: pvtp, budgets: [0.5000000000001]}]\n", ["budgets", "differ"]),
        ("tasks: [where]\nstrategies: [{strategy: fastv, match: fixed, budgets: [0.5]}]\n", ["'fastv'", "left out"]),
        ("tasks: [where]\nstrategies: [{strategy: none, budgets: [0.5]}]\n", ["'none'", "left out"]),
        ("tasks: [where]\nstrategies: [fastv]\nexecutor: {name: local, max_retries: 101}\n", ["max_retries", "100"]),
        ("tasks: [where]\nstrategies: [{name: layer-counts, rates: {true: 0.5}}]\n", ["rates", "true"]),
        ("tasks: [where]\nstrategies: [{name: layer-counts, rates: {1: true}}]\n", ["rates", "number", "True"]),
        ("tasks: [where]\nstrategies: [fastv, {name: fastv, k: 3}]\n", ["fastv", "label"]),
        ("strategies: [fastv]\n", ["tasks", "be given"]),
        ("- where\n", ["be a mapping"]),
    ],
)
def test_bad_configurations_say_what_is_wrong(text, parts, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(textwrap.dedent(text))
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        load_compare(file)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "label", ["none", "random", "text-only", "downscale", "uniform", "oracle", "st3", "None", "\uff4eone"]
)
def test_a_label_says_no_other_methods_name(label):
    method = {"strategy": {"name": "fastv", "keep_ratio": 0.05}, "label": label, "match": "fixed"}
    for given in (method, {"control": "downscale", "label": label}):
        if given.get("control") == label:
            continue
        with pytest.raises(ConfigError, match=f"the label '{label}' must be of the method"):
            load_compare({"tasks": ["where"], "strategies": [given]})
    own = {"control": label} if label == "downscale" else {"strategy": label.lower(), "label": label}
    if label.isascii():
        assert load_compare({"tasks": ["where"], "strategies": [own]}).strategies[0].name == label


@pytest.mark.parametrize("label", [" mine", "mi\nne", "mi\u200bne", "mine\u00a0", "\x1b[31m", "\u2028", "\ud800"])
def test_a_label_is_printable(label):
    with pytest.raises(ConfigError, match="a label must be printable"):
        load_compare({"tasks": ["where"], "strategies": [{"strategy": "fastv", "label": label}]})


def test_an_unknown_task_is_an_unknown_name_wherever_it_is_asked_for():
    from tokentrim.calibrate.options import GSearch, options_from
    from tokentrim.train.runner import options_of
    from tokentrim.train.trainer import Trainer

    for ask in (lambda: load_compare({"tasks": ["wher"], "strategies": ["fastv"]}),
                lambda: options_of(Trainer, {"tasks": ["wher"]}, "train"),
                lambda: options_from(GSearch, {"tasks": ["wher"]})):  # fmt: skip
        with pytest.raises(UnknownNameError, match="Did you mean 'where'"):
            ask()
