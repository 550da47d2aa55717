"""Plugins that are really installed, in a folder of their own, and the commands as a user runs them."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests import warm

GOOD = """
    from tokentrim import Need, Schedule, SpatialScorer, hookimpl

    class Norm(SpatialScorer):
        '''Keep large features.'''
        name = "norm"
        needs = frozenset({Need.FEATURES})

        def schedule(self, shape, n_visual):
            return Schedule.of({0: n_visual // 2})

        def score(self, site):
            return site.features.norm(dim=-1)

    class Odd(Norm):
        '''Declares a knob that it has not.'''
        name = "odd"
        budget_knob = "keep"

    @hookimpl
    def tokentrim_strategies(register):
        register("norm", Norm, summary="large features")
"""
PLUGINS = {
    "good": GOOD,
    "odd": GOOD.replace('"norm", Norm', '"odd", Odd').replace('"large', '"also large')
    + "        register('even', type('Even', (Norm,), {'name': 'even'}))\n",
    "unimportable": "raise RuntimeError('no wheel for this moon')\n",
    "leaving": "raise SystemExit(3)\n",
    "vanishing": "class Away(BaseException): pass\nraise Away('gone')\n",
    "noisy": textwrap.dedent(GOOD).replace("norm", "loud").replace("large", r"\x1b[31mred\x9b")
    + "print('hello from a plugin')\n",
    "taken": GOOD.replace('"norm", Norm', '"fastv", Norm'),
    "misspelt": GOOD.replace("def tokentrim_strategies", "def tokentrim_strategy"),
}
FAILED = ("unimportable", "leaving", "vanishing", "taken", "misspelt")
STATUS = {"good": "loaded", "odd": "broken", "noisy": "loaded"} | dict.fromkeys(FAILED, "failed")
CAUSES = {
    "odd": "strategy 'odd' of plugin 'odd' of odd 1.0: budget_knob must name a parameter; got 'keep'",
    "unimportable": "RuntimeError: no wheel for this moon",
    "leaving": "SystemExit: 3",
    "vanishing": "Away: gone",
    "taken": "plugin 'builtin-strategies' of tokentrim",
    "misspelt": "Did you mean 'tokentrim_strategies'?",
}


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """Run a command beside the plugins; returns what a shell would see."""
    site = tmp_path_factory.mktemp("site")
    for name, source in PLUGINS.items():
        (site / f"{name}_plugin.py").write_text(textwrap.dedent(source))
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tokentrim]\n{name} = {name}_plugin\n")
    environment = {key: value for key, value in os.environ.items() if key != "TOKENTRIM_PLUGINS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), environment.get("PYTHONPATH", "")])

    def run(*arguments, start=subprocess.run, **more):
        command = [sys.executable, "-m", "tokentrim", *arguments]
        return start(command, capture_output=True, text=True, check=False, env={**environment, **more})

    return run


def strangers(infos):
    return {info["distribution"]: info for info in infos if info["distribution"] in PLUGINS}


@pytest.mark.slow
def test_each_plugin_is_reported_with_its_cause_and_the_others_work(call):
    done = call("plugins", "--json")
    found = strangers(json.loads(done.stdout))
    assert {name: info["status"] for name, info in found.items()} == STATUS
    assert all(cause in found[name]["error"] for name, cause in CAUSES.items())
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "plugins.py:" not in done.stderr  # a warning is a sentence, without a line of our source
    planned = call("plan", "--model", "llava-1.5-7b", "-s", "norm", "--json")
    assert json.loads(planned.stdout)["layer_tokens"] == [288] * 32, planned.stderr
    # Of a plugin with one strategy that cannot be used, the others can.
    assert call("show", "even", "--json").returncode == 0
    assert "budget_knob must name" in call("show", "odd").stderr


@pytest.mark.slow
def test_what_strangers_print_and_write_is_neither_a_result_nor_a_command_to_the_terminal(call):
    for arguments in (("ls", "strategy"), ("ls", "strategy", "--json")):
        done = call(*arguments, start=warm.run)
        assert done.returncode == 0, done.stderr
        assert "hello from a plugin" in done.stderr
        assert "hello" not in done.stdout
        assert not {"\x1b", "\x9b"} & set(done.stdout)
    row = next(row for row in json.loads(done.stdout) if row["name"] == "loud")
    assert row["summary"] == "\x1b[31mred\x9b features"


@pytest.mark.slow
def test_the_doctor_finds_each_and_says_so(call):
    done = call("doctor", "--json", start=warm.run)
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    assert {name: info["status"] for name, info in strangers(findings["plugins"]).items()} == STATUS
    assert len(findings["problems"]) == len(CAUSES)
    assert all(any(cause in problem for problem in findings["problems"]) for cause in CAUSES.values())


@pytest.mark.slow
def test_loading_can_be_limited(call):
    limited = call("plugins", "--json", TOKENTRIM_PLUGINS="good,odd")
    assert {info["status"] for info in strangers(json.loads(limited.stdout)).values()} == {
        "loaded",
        "broken",
        "skipped",
    }
    assert limited.stderr == ""
    for arguments in (("--no-plugins", "plugins", "--json"), ("plugins", "--json", "--no-plugins")):
        done = call(*arguments)
        assert {info["status"] for info in strangers(json.loads(done.stdout)).values()} == {"skipped"}
        assert done.stderr == ""
    unknown = call("--no-plugins", "show", "norm")
    assert unknown.returncode == 2
    assert "Not loaded, by TOKENTRIM_PLUGINS or --no-plugins: good," in unknown.stderr


def test_the_doctor_names_another_distribution_that_is_imported_as_tokentrim(cli, monkeypatch):
    versions = {"tokentrim": "0.1.13", "tokentrim-vlm": "0.1.0"}
    monkeypatch.setattr("tokentrim.cli.doctor._version", versions.get)
    result = cli("doctor", "--json")
    assert result.exit_code == 1
    (problem,) = result.data["problems"]
    assert "come from one distribution; got 'tokentrim 0.1.13 beside tokentrim-vlm'" in problem
    assert "Run pip uninstall tokentrim" in problem
    del versions["tokentrim"]
    assert cli("doctor").exit_code == 0
