"""Registries: lazy targets, checks on resolving, collisions, unknown names, order, freezing."""

import sys
from pathlib import Path

import pytest

from tokentrim.errors import PluginError, UnknownNameError
from tokentrim.plugins.registry import Family, Kind, Origin, Registry, load_target

OURS = Origin("builtin", "tokentrim", "0.1.0")
THEIRS = Origin("extras", "someone-else", "2.0")


class Base:
    name = ""


class Red(Base):
    name = "red"


class Unrelated:
    pass


def make(base=None, instances=False):
    return Registry(Kind("colour", "tokentrim_colours", base, instances))


def add(registry, name, target, origin=OURS, **tags):
    entry = registry.make_entry(name, target, origin, tags)
    registry.add(entry)
    return entry


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module on disk that nothing has imported yet."""
    (tmp_path / "late_colours.py").write_text(
        "from abc import ABC, abstractmethod\n"
        "class Base(ABC):\n    name = ''\n    @abstractmethod\n    def mix(self): ...\n"
        "class Blue(Base):\n    name = 'blue'\n    def mix(self): ...\n"
        "class Half(Base):\n    name = 'half'\n"
        "class Misnamed(Blue):\n    name = 'green'\n"
        "TABLE = {'sky': Blue()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "late_colours"
    sys.modules.pop("late_colours", None)


def test_registering_imports_nothing_and_tags_can_be_read(module):
    registry = make(f"{module}:Base")
    add(registry, "blue", f"{module}:Blue", stage="prefill")
    assert module not in sys.modules
    assert registry.entry("blue").tags["stage"] == "prefill"
    assert module not in sys.modules
    assert registry.get("blue").__name__ == "Blue"
    assert registry.get("blue") is registry.get("blue")


def test_a_target_may_name_a_key_of_a_mapping(module):
    registry = make(f"{module}:Base", instances=True)
    add(registry, "blue", f"{module}:TABLE[sky]")
    assert registry.get("blue").name == "blue"


def test_a_target_may_be_an_object():
    registry = make()
    add(registry, "red", Red)
    assert registry.get("red") is Red


@pytest.mark.parametrize("target", ["no_colon", "module:", ":Attr", "a b:C", "m:A[", ""])
def test_a_malformed_target_is_refused_at_once(target):
    with pytest.raises(PluginError, match=r"target of colour 'red' of plugin 'builtin' .*must read 'package\.module"):
        make().make_entry("red", target, OURS, {})


@pytest.mark.parametrize("name", ["Red", "a b", "a.yaml", "{a}", "", "a:b", 3, None])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(PluginError, match="name of a colour of plugin 'builtin'"):
        make().make_entry(name, Red, OURS, {})


def test_a_collision_names_both_origins_and_keeps_the_first():
    registry = make()
    add(registry, "red", Red)
    with pytest.raises(PluginError, match=r"tokentrim 0\.1\.0.*someone-else 2\.0"):
        add(registry, "red", Unrelated, THEIRS)
    assert registry.get("red") is Red


def test_an_unknown_name_gets_the_nearest_and_the_list():
    registry = make()
    add(registry, "red", Red)
    add(registry, "blue", Red)
    with pytest.raises(UnknownNameError, match=r"got 'rad'\. Did you mean 'red'\? Known: blue, red\."):
        registry.get("rad")


def test_a_lost_name_raises_its_cause():
    registry = make()
    cause = PluginError("plugin 'extras' is broken")
    registry.lose("green", cause)
    with pytest.raises(PluginError, match="colour 'green' is not there, because plugin 'extras' is broken") as caught:
        registry.get("green")
    assert caught.value.__cause__ is cause


def test_an_unknown_name_mentions_broken_plugins():
    registry = make()
    cause = PluginError("plugin 'extras' is broken.")
    registry.freeze([cause])
    with pytest.raises(UnknownNameError, match="may have provided it: plugin 'extras' is broken") as caught:
        registry.get("green")
    assert caught.value.__cause__ is cause


def test_order_is_by_name():
    registry = make()
    for name in ("c", "a", "b"):
        add(registry, name, object())
    assert registry.names() == ("a", "b", "c")
    assert [entry.name for entry in registry] == ["a", "b", "c"]
    assert len(registry) == 3
    assert "a" in registry
    assert "z" not in registry


def test_a_frozen_registry_takes_no_more():
    registry = make()
    registry.freeze([])
    with pytest.raises(PluginError, match="must be registered while plugins load"):
        add(registry, "red", Red)


@pytest.mark.parametrize(
    ("name", "attribute", "message"),
    [
        ("pathlike", "Path", "must be a class derived from late_colours:Base"),
        ("half", "Half", "must define mix"),
        ("blue", "Misnamed", "registered under its own name; got 'green'"),
        ("gone", "Missing", "could not be imported from 'late_colours:Missing': AttributeError"),
    ],
)
def test_what_a_target_must_be(module, name, attribute, message):
    registry = make(f"{module}:Base")
    add(registry, name, Path if attribute == "Path" else f"{module}:{attribute}", THEIRS)
    with pytest.raises(PluginError, match=message) as caught:
        registry.get(name)
    assert "someone-else 2.0" in str(caught.value)


def test_an_object_where_a_class_is_demanded(module):
    registry = make(f"{module}:Base")
    add(registry, "blue", f"{module}:TABLE[sky]")
    with pytest.raises(PluginError, match="must be a class derived from"):
        registry.get("blue")


def test_a_module_that_fails_keeps_its_cause():
    registry = make()
    add(registry, "red", "no_such_module_at_all:Red", THEIRS)
    with pytest.raises(PluginError, match="ModuleNotFoundError.*reinstall someone-else") as caught:
        registry.get("red")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_load_target_refuses_other_text():
    with pytest.raises(PluginError, match="must read 'package"):
        load_target("nothing")


class Shades(Family):
    """Any shade of grey that is a number."""

    def origin(self, rest):
        if not rest.isdigit():
            raise UnknownNameError(f"no shade {rest}")
        return "paint", "7"

    def get(self, rest):
        found = Base()
        found.name = f"grey:{rest}"
        return found


def test_a_familys_members_are_found_by_prefix_and_not_listed():
    registry = make()
    add(registry, "grey", Shades(), THEIRS, family=True)
    entry = registry.entry("grey:50")
    assert (entry.name, entry.origin) == ("grey:50", Origin("extras", "paint", "7"))
    assert registry.get("grey:50").name == "grey:50"
    assert registry.get("grey:50") is registry.get("grey:50")
    assert registry.names() == ()
    assert [family.name for family in registry.families()] == ["grey"]


def test_a_familys_own_error_is_what_an_unknown_member_gives():
    registry = make()
    add(registry, "grey", Shades(), family=True)
    with pytest.raises(UnknownNameError, match="no shade dark"):
        registry.get("grey:dark")


def test_an_unknown_name_lists_families_too():
    registry = make()
    add(registry, "grey", Shades(), family=True)
    for name in ("gray:50", "grey"):
        with pytest.raises(UnknownNameError, match="grey:NAME"):
            registry.entry(name)


def test_a_family_and_a_name_cannot_share_a_name():
    registry = make()
    add(registry, "grey", Shades(), family=True)
    with pytest.raises(PluginError, match="be registered once"):
        add(registry, "grey", Red, THEIRS)


def test_a_family_that_is_none_is_refused():
    registry = make()
    add(registry, "grey", Red, family=True)
    with pytest.raises(PluginError, match=r"tokentrim\.plugins\.registry:Family"):
        registry.entry("grey:50")


def test_a_family_may_know_its_names_by_a_pattern_and_be_asked_each_time():
    class Sizes(Shades):
        lasting = False

        def get(self, rest):
            found = Base()
            found.name = rest
            return found

    registry = make()
    add(registry, "size", Sizes(), THEIRS, family=True, pattern=r"\d+", members="a number")
    assert registry.knows("12")
    assert registry.entry("12").origin == Origin("extras", "paint", "7")
    assert registry.get("12") is not registry.get("12")
    for name in ("size:12", "x"):
        with pytest.raises(UnknownNameError, match="Known: a number"):
            registry.entry(name)
