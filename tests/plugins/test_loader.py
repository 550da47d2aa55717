"""Loading plugins: built-ins by the public door, isolation of broken ones, limits, reports."""

import sys
import textwrap
from importlib.metadata import EntryPoint, distributions

import pytest

from tokentrim import hookspecs
from tokentrim.cli.ls import all_rows
from tokentrim.config.specs import strategy_from
from tokentrim.errors import PluginError, UnknownNameError
from tokentrim.plugins import loader as plugins
from tokentrim.plugins.loader import KINDS, Plugins, PluginWarning, discover, parse_limit

GOOD = """
    from tokentrim import hookimpl

    @hookimpl
    def tokentrim_models(register):
        register("{name}", dict, summary="a model")
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Write a distribution with one plugin to disk and return its entry point."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, source, plugin="extras"):
        module = f"plugin_{name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{name.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[tokentrim]\n{plugin} = {module}\n")
        written.append(module)
        found = [dist for dist in distributions(path=[str(tmp_path)]) if dist.name == name]
        return next(iter(found[0].entry_points))

    yield write
    for module in written:
        sys.modules.pop(module, None)


def status(loaded, distribution):
    return next(info for info in loaded.infos if info.distribution == distribution)


def test_builtins_come_by_the_public_door():
    loaded = Plugins(discover(), frozenset())
    assert not loaded.failures
    assert {info.name for info in loaded.infos if info.distribution == "tokentrim-vlm"} == {
        f"builtin-{what}" for what in ("strategies", "adapters", "testbed", "executors", "harness")
    }
    assert {"none", "random", "fastv", "st3"} <= set(loaded.registries["strategy"].names())
    assert "llava" in loaded.registries["adapter"].names()
    assert {"testbed", "testbed-plain"} <= set(loaded.registries["model"].names())
    assert {"color", "where", "list-where"} <= set(loaded.registries["task"].names())


def test_an_uninstalled_checkout_says_what_to_do(monkeypatch):
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    with pytest.raises(PluginError, match="tokentrim-vlm must be installed.*pip install -e"):
        discover()


@pytest.mark.parametrize("kind", ["strategy", "adapter", "task", "model"])
def test_every_builtin_resolves(kind):
    registry = Plugins(discover(), frozenset()).registries[kind]
    for entry in registry:
        found = registry.get(entry.name)
        assert found is not None
        if kind == "strategy":
            assert entry.tags["stage"] == found.stage
            assert entry.tags["summary"]
        if kind == "adapter":
            assert entry.tags["model_types"] == found.model_types


def test_a_stranger_loads(install):
    loaded = Plugins([install("someone", GOOD.format(name="theirs"))])
    info = status(loaded, "someone")
    assert (info.name, info.version, info.status, info.error) == ("extras", "1.5", "loaded", None)
    assert info.hooks == ("tokentrim_models",)
    assert info.provides == ("model:theirs",)
    assert loaded.registries["model"].get("theirs") is dict


BROKEN = {
    "import": ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    "syntax": ("def broken(:", "SyntaxError"),
    "misspelt": (
        "from tokentrim import hookimpl\n@hookimpl\ndef tokentrim_modells(register): ...",
        "hook tokentrim_modells .* must be a known hook.*Did you mean 'tokentrim_models'",
    ),
    "unmarked": ("def tokentrim_models(register): ...", "must be marked. Write @tokentrim.hookimpl"),
    "argument": (
        "from tokentrim import hookimpl\n@hookimpl\ndef tokentrim_models(register, extra): ...",
        "must implement hooks as specified.*extra",
    ),
    "empty": ("x = 1", "must implement a hook"),
    "raises": (
        "from tokentrim import hookimpl\n@hookimpl\ndef tokentrim_models(register):\n"
        "    register('early', dict)\n    raise RuntimeError('oh no')",
        "tokentrim_models of plugin 'extras' .* failed: RuntimeError: oh no",
    ),
    "twice": (
        "from tokentrim import hookimpl\n@hookimpl\ndef tokentrim_models(register):\n"
        "    register('early', dict)\n    register('early', dict)",
        "must be registered once. Remove one",
    ),
    "away": (
        "class Away(BaseException): pass\nraise Away('gone')",
        "could not be imported from 'plugin_bad_away': Away: gone",
    ),
    "refuses": (
        "from tokentrim import UnsupportedError\nraise UnsupportedError('not on this moon')",
        "plugin 'extras' of bad-refuses 1.5 could not be imported.*UnsupportedError: not on this moon",
    ),
    "refuses-late": (
        "from tokentrim import StrategyError, hookimpl\n@hookimpl\ndef tokentrim_models(register):\n"
        "    raise StrategyError('not today')",
        "tokentrim_models of plugin 'extras' .* failed: StrategyError: not today",
    ),
    "form": (
        "from tokentrim import hookimpl\n@hookimpl\ndef tokentrim_models(register):\n    register('early', 'nocolon')",
        "must read 'package.module:Attribute'",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_remembered_and_the_others_load(install, how):
    source, message = BROKEN[how]
    first = install("aaa", GOOD.format(name="first"))
    broken = install(f"bad-{how}", source)
    last = install("zzz", GOOD.format(name="last"))
    loaded = Plugins([first, broken, last])
    info = status(loaded, f"bad-{how}")
    assert info.status == "failed"
    with pytest.raises(PluginError, match=message):
        raise loaded.failures[0]
    assert f"bad-{how}" in info.error
    assert loaded.registries["model"].names() == ("first", "last")
    assert len(loaded.failures) == 1


@pytest.mark.parametrize("error", ["UnsupportedError", "PluginError", "SystemExit", "GeneratorExit"])
def test_a_target_that_cannot_be_imported_names_its_plugin_whatever_it_raises(install, error):
    source = "from tokentrim import hookimpl\n@hookimpl\ndef tokentrim_models(register): register('late', 'late_one:x')"
    point = install("lazy", source)
    target = point.dist.locate_file("late_one.py")
    target.write_text(f"from tokentrim.errors import *\nprint('hello')\nraise {error}('not here')")
    with pytest.raises(PluginError, match=f"model 'late' of plugin 'extras' of lazy 1.5 .*{error}: not here"):
        Plugins([point]).registries["model"].get("late")


def test_what_a_plugin_prints_is_no_result(install, capsys):
    loaded = Plugins([install("noisy", "print('hello')\n" + textwrap.dedent(GOOD.format(name="theirs")))])
    assert status(loaded, "noisy").status == "loaded"
    assert capsys.readouterr() == ("", "hello\n")


FAMILY = """
    from tokentrim import Family, Need, Schedule, SpatialScorer, UnknownNameError, hookimpl

    class Norm(SpatialScorer):
        name = "norms:even"
        needs = frozenset({Need.FEATURES})

        def schedule(self, shape, n_visual):
            return Schedule.of({0: n_visual // 2})

        def score(self, site):
            return site.features.norm(dim=-1)

    class Norms(Family):
        def origin(self, rest):
            return "norms-kept-elsewhere", "7"

        def get(self, rest):
            if rest == "odd":
                raise KeyError(rest)
            if rest != "even":
                raise UnknownNameError(f"no norm is called {rest}")
            return Norm

    FAMILIES = {"all": Norms()}

    @hookimpl
    def tokentrim_strategies(register):
        register("norms", "plugin_normal:FAMILIES[all]", family=True, summary="norms")
"""


def test_a_family_of_strategies(install, monkeypatch):
    loaded = Plugins([install("normal", FAMILY)])
    monkeypatch.setattr(plugins, "_loaded", loaded)
    strategies = loaded.registries["strategy"]
    (row,) = [row for row in all_rows() if row["kind"] == "strategy"]
    assert (row["name"], row["summary"], row["error"]) == ("norms:NAME", "norms", None)
    assert strategies.entry("norms:even").origin.distribution == "norms-kept-elsewhere"
    strategy = strategy_from({"name": "norms:even"}).strategy
    assert strategy_from(strategy.spec()).strategy == strategy
    with pytest.raises(UnknownNameError, match="no norm is called round"):
        strategies.get("norms:round")
    with pytest.raises(PluginError, match=r"get\('odd'\) of strategy 'norms:odd' .*KeyError"):
        strategies.get("norms:odd")


def test_a_distribution_is_not_built_in_by_its_name(install, monkeypatch):
    ours = [point for point in discover() if point.name == "builtin-strategies"]
    impostor = install("tokentrim", GOOD.format(name="theirs"))
    loaded = Plugins([*ours, impostor], frozenset())
    assert [info.status for info in loaded.infos] == ["loaded", "skipped"]
    monkeypatch.setattr(plugins, "entry_points", lambda group: [impostor])
    with pytest.raises(PluginError, match="must be installed; got .*another distribution.*extras = plugin_tokentrim"):
        discover()


def test_an_older_install_of_the_checkout_is_not_loaded_twice(install, monkeypatch):
    (ours,) = [point for point in discover() if point.name == "builtin-strategies"]
    points = []
    for name in ("tokentrim", "tokentrim-vlm"):
        install(name, "", ours.name)
        (found,) = [dist for dist in distributions(path=sys.path[:1]) if dist.name == name]
        points += [point._for(found) for point in [EntryPoint(ours.name, ours.value, "tokentrim")]]
    for there, kept in ((points, points[1:]), (points[:1], points[:1])):
        monkeypatch.setattr(plugins, "entry_points", lambda group, there=there: there)
        assert [point.dist.name for point in discover()] == [point.dist.name for point in kept]


def test_asking_for_a_name_of_a_broken_plugin_raises_the_cause(install):
    loaded = Plugins([install("bad", BROKEN["raises"][0])])
    with pytest.raises(PluginError, match="model 'early' is not there, because.*oh no") as caught:
        loaded.registries["model"].get("early")
    assert isinstance(caught.value.__cause__.__cause__, RuntimeError)


def test_asking_for_any_other_name_mentions_the_broken_plugin(install):
    loaded = Plugins([install("bad", BROKEN["import"][0])])
    with pytest.raises(UnknownNameError, match="may have provided it: plugin 'extras' of bad 1.5") as caught:
        loaded.registries["model"].get("whatever")
    assert isinstance(caught.value.__cause__.__cause__, ModuleNotFoundError)


def test_a_taken_name_rejects_the_whole_second_plugin(install):
    second = GOOD.format(name="same") + "        register('other', dict)\n"
    loaded = Plugins([install("one", GOOD.format(name="same")), install("two", second)])
    assert status(loaded, "two").status == "failed"
    assert "plugin 'extras' of one 1.5 and again by plugin 'extras' of two 1.5" in status(loaded, "two").error
    assert loaded.registries["model"].names() == ("same",)
    with pytest.raises(PluginError, match="model 'other' is not there, because"):
        loaded.registries["model"].get("other")


@pytest.mark.parametrize(
    ("limit", "loads"),
    [(None, {"one", "two"}), ("", set()), ("one", {"one"}), ("second", {"two"}), (" one , second ", {"one", "two"})],
)
def test_the_environment_variable_limits_what_loads(install, limit, loads):
    points = [install("one", GOOD.format(name="a"), "first"), install("two", GOOD.format(name="b"), "second")]
    loaded = Plugins([*discover(), *points], parse_limit(limit))
    found = {info.distribution for info in loaded.infos if info.status == "loaded"}
    assert found == loads | {"tokentrim-vlm"}
    skipped = {info.distribution for info in loaded.infos if info.status == "skipped"}
    assert {"one", "two"} - loads <= skipped


def test_a_name_in_the_limit_that_is_not_installed_is_reported(install):
    loaded = Plugins([install("one", GOOD.format(name="a"))], frozenset({"onne"}))
    missing = next(info for info in loaded.infos if info.status == "missing")
    assert missing.name == "onne"
    assert "Did you mean 'one'" in missing.error


def test_failures_are_reported_once_as_warnings(install, monkeypatch):
    broken = install("bad", BROKEN["import"][0])
    monkeypatch.setattr(plugins, "discover", lambda: [broken])
    monkeypatch.setattr(plugins, "_loaded", None)
    monkeypatch.setenv(plugins.LIMIT_VARIABLE, "bad")
    with pytest.warns(PluginWarning, match="plugin 'extras' of bad 1.5 could not be imported"):
        first = plugins.load()
    assert plugins.load() is first
    assert plugins.plugin_infos()[0].status == "failed"


def test_registry_of_an_unknown_kind():
    with pytest.raises(UnknownNameError, match="Did you mean 'strategy'"):
        plugins.registry("strategi")


def test_builtins_come_first_and_the_order_is_fixed(install, monkeypatch):
    points = [install("zeta", GOOD.format(name="z")), install("alpha", GOOD.format(name="a"))]
    ours = list(plugins.entry_points(group="tokentrim", name="builtin-strategies"))
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*points, *ours])
    order = [plugins._origin(point).distribution for point in discover()]
    assert order == ["tokentrim-vlm", "alpha", "zeta"]


def test_hookspecs_stay_short_and_documented():
    with open(hookspecs.__file__) as file:
        assert len(file.readlines()) < 60
    for kind in KINDS:
        assert getattr(hookspecs, kind.hook).__doc__
