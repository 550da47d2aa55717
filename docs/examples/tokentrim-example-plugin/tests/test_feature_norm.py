"""``feature-norm`` is found, keeps tokentrim's contract, and decides as it says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokentrim_example_plugin.strategy import FeatureNorm

import tokentrim
from tokentrim import registry
from tokentrim.compare import load_compare
from tokentrim.testing import parametrize_with_checks

CONFIGS = Path(__file__).parents[1] / "configs"


@parametrize_with_checks(["feature-norm", {"name": "feature-norm", "keep_ratio": 0.2}])
def test_contract(check: Any) -> None:
    """What every strategy must do, on small models with random weights."""
    check()


def test_it_is_found_by_its_entry_point() -> None:
    """The name leads to the class, and to this distribution."""
    assert registry("strategy").entry("feature-norm").origin.distribution == "tokentrim-example-plugin"
    assert registry("strategy").get("feature-norm") is FeatureNorm


def test_its_configurations_are_right() -> None:
    """Both files can be read, and name the strategy."""
    assert tokentrim.load_config(CONFIGS / "feature-norm.yaml").chosen.strategy == FeatureNorm(keep_ratio=0.25)
    assert "feature-norm" in [method.name for method in load_compare(CONFIGS / "compare.yaml").strategies]


def test_a_misspelt_parameter_is_an_error_that_helps() -> None:
    """The nearest name is suggested."""
    with pytest.raises(tokentrim.ConfigError, match="Did you mean 'keep_ratio'"):
        tokentrim.TrimConfig(strategy={"name": "feature-norm", "keep_ration": 0.5})


def test_scores_of_a_case_worked_out_by_hand() -> None:
    """Three tokens of width 2: the norms are 5, 1 and 10."""
    site: Any = SimpleNamespace(features=torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]]))
    assert FeatureNorm().score(site).tolist() == [[5.0, 1.0, 10.0]]
