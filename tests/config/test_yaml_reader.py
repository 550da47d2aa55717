"""YAML in: lines, duplicate keys, and what an unquoted word means."""

from pathlib import Path

import pytest

from tokentrim.config.yaml_reader import Where, load_yaml
from tokentrim.errors import ConfigError


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
