"""Where lmms-eval is not installed: its tasks are one name in the list, and asking for one says what to install."""

from importlib.util import find_spec

import pytest

from tokentrim.compare.config import load_compare
from tokentrim.errors import ConfigError, UnsupportedError
from tokentrim.harness.tasks import split_metric
from tokentrim.plugins.loader import registry

absent = pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed here")


@absent
@pytest.mark.parametrize("ask", [registry("task").entry, registry("task").get])
def test_asking_for_a_task_names_the_extra(ask):
    with pytest.raises(UnsupportedError, match=r"tokentrim-vlm\[lmms\]"):
        ask("lmms:gqa")


@absent
def test_a_comparison_says_so_before_it_runs():
    with pytest.raises(UnsupportedError, match=r"tasks\[0\].*tokentrim-vlm\[lmms\]"):
        load_compare({"tasks": ["lmms:gqa"], "strategies": ["random"]})


def test_the_family_is_listed_and_its_members_are_not():
    assert "lmms" in [entry.name for entry in registry("task").families()]
    assert not any(":" in name for name in registry("task").names())


def test_a_metric_follows_the_name():
    assert split_metric("gqa") == ("gqa", None)
    assert split_metric("mme@mme_perception_score") == ("mme", "mme_perception_score")
    for bad in ("", "@x", "gqa@"):
        with pytest.raises(ConfigError, match="lmms:NAME"):
            split_metric(bad)
