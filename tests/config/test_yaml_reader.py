"""YAML in: lines, duplicate keys, what an unquoted word means, and what no configuration needs."""

import os
from pathlib import Path

import pytest

from tokentrim.config.schedule_file import read_schedule
from tokentrim.config.specs import load_config, strategy_from
from tokentrim.config.yaml_reader import Where, load_yaml
from tokentrim.errors import ConfigError, TokentrimError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E4", 1e4),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("5.", 5.0),
        (".inf", float("inf")),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # YAML 1.1 would read these as booleans, numbers of base 8 and 60, and a date.
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("1_000", "1_000"),
        ("'12'", "12"),
    ],
)
def test_scalars(text, value):
    found = load_yaml(f"{{a: {text}}}").data["a"]
    assert found == value
    assert type(found) is type(value)


def test_lines_of_values():
    where = load_yaml("# a comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n").where
    assert [where.at(*path).line() for path in [(), ("a",), ("a", "b"), ("a", "c", 1), ("a", "c", 1, "d")]] == [
        2,
        2,
        3,
        6,
        6,
    ]
    assert where.at("a", "missing").line() == 2
    assert str(where.at("a", "c", 1, "d")) == "inline YAML:6, a.c[1].d"


def test_a_dict_has_no_lines():
    assert str(Where().at("a", "b")) == "a.b"
    assert str(Where()) == ""


def test_a_repeated_key_names_both_lines():
    with pytest.raises(
        ConfigError, match=r"inline YAML:3, a\.b: the key 'b' must be given once.*line 2 and again in line 3"
    ):
        load_yaml("a:\n  b: 1\n  b: 2\n")


def test_malformed_yaml_names_the_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:3: the text must be well-formed YAML"):
        load_yaml(path)


@pytest.mark.parametrize("text", ["&a [*a]", "a: &b {c: *b}"])
def test_self_reference_is_refused(text):
    with pytest.raises(ConfigError, match="an anchor must not contain itself"):
        load_yaml(text)


def test_anchors_and_merges_work():
    data = load_yaml("base: &b {k: 1, r: 2}\nmore: {<<: *b, r: 3}\n").data
    assert data["more"] == {"k": 1, "r": 3}


@pytest.mark.parametrize("text", ["!!python/object/apply:os.getcwd []", "!unknown 3"])
def test_tags_run_nothing(text):
    with pytest.raises(ConfigError, match="well-formed YAML"):
        load_yaml(text)


def test_a_complex_key_is_refused():
    with pytest.raises(ConfigError, match="must be plain text"):
        load_yaml("? [a, b]\n: 1\n")


def test_a_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "there.yaml").write_text("a: 1")
    with pytest.raises(ConfigError, match=r"must exist; got .*gone\.yaml.*there\.yaml"):
        load_yaml(str(tmp_path / "gone.yaml"))


def test_an_unreadable_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="be readable UTF-8 text"):
        load_yaml(path)
    with pytest.raises(ConfigError, match="be readable UTF-8 text"):
        load_yaml(Path(tmp_path))


def _many(first, each, last):
    """Anchors that each name the one before several times."""
    return first + "".join(each.replace("N", str(n)).replace("M", str(n - 1)) for n in range(1, 9)) + last


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_many("a0: &a0 [x]\n", f"aN: &aN [{', '.join(['*aM'] * 9)}]\n", "strategy: *a8\n"), "at most 100000 values"),
        (_many("a0: &a0 {x: 1}\n", f"aN: &aN {{<<: [{', '.join(['*aM'] * 9)}]}}\n", ""), "at most 100000 values"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 99)), "at most 50 levels deep"),
        ("[" * 60 + "]" * 60, "at most 50 levels deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(600)), "at most 50 levels deep"),
        (f"- {'x' * 300_000}\n", "at most 262144 characters"),
        (f"a: {'9' * 5000}", "fit into 64 bits"),
        (f"a: -{1 << 63}1", "fit into 64 bits"),
        ("a: !!int x", "be what its tag"),
        ("a: !!bool maybe", "be what its tag"),
        ("a: !!timestamp 2026-01-02", "well-formed YAML"),
        ('a: "\\ud800"', "be what its tag"),
        ("a: \0", "well-formed YAML"),
        ("{true: 0.5}", "plain text or a whole number; got 'true'"),
        ("{~: 1}", "plain text or a whole number"),
        ("{1.5: 1}", "plain text or a whole number"),
        ("{1: a, +1: b}", "the key 1 must be given once"),
        ("{a: 1}\n---\n{a: 2}", "well-formed YAML"),
    ],
)
def test_what_no_configuration_needs_is_refused_at_once(text, message):
    with pytest.raises(ConfigError, match=message):
        load_yaml(f"{text}\n")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbf{a: 1}")
    assert load_yaml(tmp_path / "x.yaml").data == {"a": 1}


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "long", "NUL", "large", "UTF-16"])
@pytest.mark.parametrize("read", [load_yaml, load_config, read_schedule, strategy_from])
def test_only_regular_files_are_read(kind, read, tmp_path):
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        path.write_text("# nothing\n" * 30_000)
    elif kind == "UTF-16":
        path.write_bytes("{name: st3}".encode("utf-16"))
    else:
        path = tmp_path / f"{'x' * 300 if kind == 'long' else chr(0)}.yaml"
    with pytest.raises(ConfigError, match="the configuration file must"):
        read(path)


@pytest.mark.parametrize("text", ["x" * 5000, "a\0b", "{name: dyvte, weights: %s}" % ("x" * 300)])
def test_what_can_be_no_files_name_is_no_file(text, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(f'strategy: "{text}"' if "{" not in text else f"strategy: {text}")
    if "dyvte" in text:
        assert load_config(config)
    else:
        with pytest.raises(TokentrimError):
            strategy_from(text)


@pytest.mark.parametrize("other", ["a.yaml", "./a.yaml", "b.yaml", "deep/../a.yaml", "link.yaml", "noend"])
def test_files_that_name_each_other_under_any_spelling_are_refused(other, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link.yaml").symlink_to("a.yaml")
    (tmp_path / "b.yaml").write_text("strategy: deep/../link.yaml\n")
    (tmp_path / "noend").write_text("strategy: noend\n")
    (tmp_path / "a.yaml").write_text(f"strategy: {other}\n")
    with pytest.raises(ConfigError, match="not name itself"):
        load_config(tmp_path / "a.yaml")


def test_a_long_way_through_files_is_refused(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"strategy: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match="at most 16 files"):
        load_config(tmp_path / "0.yaml")
