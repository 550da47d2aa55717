"""BibTeX from docstrings: parsed, found for everything in a configuration, each work once."""

import json
import re

import pytest

from tokentrim.cli.citations import bibliography, merged, of_tokentrim, references_in
from tokentrim.errors import ConfigError, PluginError, UnknownNameError
from tokentrim.plugins.loader import registry

TWO = """Does something.

    ```bibtex
    @article{one2020, title={{A} nested {t{i}tle}}, author={X, Y and
      Z, W}, year=2020}
    @misc{two2021,
      title={Other},
      url={https://example.org/a_b}
    }
    ```
"""


def test_a_block_may_hold_several_entries_with_nested_braces():
    one, two = references_in(TWO, "strategy 's'")
    assert (one.key, two.key) == ("one2020", "two2021")
    assert one.bibtex.startswith("@article{one2020")
    assert one.bibtex.endswith("year=2020}")
    assert (one.field("title"), one.field("year"), one.field("note")) == ("{A} nested {t{i}tle}", "2020", "")
    assert two.field("url") == "https://example.org/a_b"


@pytest.mark.parametrize(
    "block", ["@article{a, title={x}", "@article{, title={x}}", "see the paper", "@article{a title}"]
)
def test_malformed_bibtex_names_its_owner(block):
    with pytest.raises(PluginError, match="the bibtex block of strategy 's' must consist of entries"):
        references_in(f"x\n\n```bibtex\n{block}\n```", "strategy 's'")


def test_the_same_work_is_printed_once_and_says_for_what():
    one = references_in("```bibtex\n@misc{a, title={The {Title}}}\n```", "strategy 'x'")
    same_key = references_in("```bibtex\n@misc{a, title={Another}}\n```", "strategy 'y'")
    same_title = references_in("```bibtex\n@misc{b, title={the title}}\n```", "strategy 'z'")
    (found,) = merged([*one, *same_key, *same_title])
    assert found.bibtex == one[0].bibtex
    assert found.cited_by == ("strategy 'x'", "strategy 'y'", "strategy 'z'")


@pytest.mark.parametrize("kind", ["strategy", "adapter"])
def test_every_registered_citation_is_complete(kind):
    for name in registry(kind).names():
        for reference in references_in(registry(kind).get(name).__doc__, name):
            assert all(reference.field(field) for field in ("title", "author", "year")), reference.key
            assert re.search(r"doi=|arXiv:|url=", reference.bibtex), reference.key


def keys(*sources):
    return [reference.key for reference in bibliography(sources).references]


def test_a_composition_cites_its_parts():
    assert keys("{spatial: [fastv, {name: pvtp, start: 4}], temporal: vta}") == ["chen2024fastv", "zhuang2025st3"]
    assert keys("st3", "vta", "fastv") == ["zhuang2025st3", "chen2024fastv"]


def test_what_names_no_paper_is_told_apart():
    found = bibliography(["none", "{spatial: random, temporal: vta}", "st3"])
    assert found.without == ("strategy 'none'", "strategy 'random'")
    assert len(found.references) == 1


def test_a_configuration_cites_strategy_guide_and_model(tmp_path):
    for folder, family in (("large", "qwen2_5_vl"), ("small", "llava_next")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"model_type": family}))
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {tmp_path / 'large'}\nstrategy: {{name: sgl, guide: {tmp_path / 'small'}}}\n")
    found = bibliography([str(file)])
    assert [reference.key for reference in found.references] == ["zhao2025sgl", "liu2024llavanext", "bai2025qwen25vl"]
    assert found.references[-1].cited_by == (f"model '{tmp_path / 'large'}'",)
    assert not found.without


def test_a_comparison_cites_every_method(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("{tasks: [where], models: [testbed], strategies: [random, fastv, {strategy: vta, match: fixed}]}")
    found = bibliography([str(file)])
    assert [reference.key for reference in found.references] == ["chen2024fastv", "zhuang2025st3"]
    assert found.without == ("strategy 'random'", "model 'testbed'")


def test_an_adapter_cites_every_family():
    assert keys("qwen-vl") == ["wang2024qwen2vl", "bai2025qwen25vl", "bai2025qwen3vl"]


@pytest.mark.parametrize(("source", "error"), [("fastvv", UnknownNameError), ("{name: fastv, j: 2}", ConfigError)])
def test_what_cannot_be_read_is_an_error(source, error):
    with pytest.raises(error):
        bibliography([source])


def test_tokentrim_cites_itself():
    reference = of_tokentrim()
    assert reference.key == "tokentrim"
    assert references_in(f"```bibtex\n{reference.bibtex}\n```", "x")[0].bibtex == reference.bibtex
    assert reference.field("author") == "{The tokentrim authors}"
