"""Commands that look things up: no weights are loaded for any of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tokentrim.plugins.loader import KINDS, registry
from tokentrim.plugins.registry import members_of

COMMANDS = (
    "run", "compare", "report", "plan", "ls", "show", "cite", "validate", "bench", "plugins", "new-plugin", "schema",
    "serve", "doctor",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "matplotlib", "scipy")


def test_no_help_loads_anything_heavy():
    """All helps in one interpreter, because an interpreter is what takes time."""
    code = (
        "import sys\nfrom tokentrim.cli import app\n"
        f"for command in {COMMANDS!r}:\n"
        "    app([command, '--help'], prog_name='tokentrim', standalone_mode=False)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert all(f"Usage: tokentrim {command}" in done.stdout for command in COMMANDS)


def test_the_module_runs():
    done = subprocess.run([sys.executable, "-m", "tokentrim", "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("tokentrim ")


def test_ls_lists_everything_that_is_registered(cli):
    rows = cli("ls", "--json").data
    assert all({"name", "kind", "stage", "needs", "distribution"} <= set(row) for row in rows)
    for kind in KINDS:
        known = registry(kind.name)
        listed = {*known.names(), *map(members_of, known.families())}
        assert {row["name"] for row in rows if row["kind"] == kind.name} == listed
    assert "default" in {row["name"] for row in rows if row["kind"] == "config"}
    fastv = next(row for row in rows if row["name"] == "fastv")
    assert fastv["stage"] == "prefill"
    assert "last-row" in fastv["needs"]
    assert fastv["distribution"] == "tokentrim-vlm"


@pytest.mark.parametrize("kind", ["strategy", "strategies", "tasks", "config"])
def test_ls_of_one_kind(cli, kind):
    rows = cli("ls", kind, "--json").data
    assert len({row["kind"] for row in rows}) == 1
    assert rows[0]["name"] in cli("ls", kind).stdout


def test_show_describes_every_registered_name(cli):
    for kind in KINDS:
        for name in registry(kind.name).names():
            result = cli("show", name)
            assert result.exit_code == 0, result.stderr
            assert name in result.stdout
            assert "``" not in result.stdout
            assert ":`" not in result.stdout
            assert not re.search(r"FieldInfo|Annotated|Union\[|NoneType", result.stdout)


def test_show_gives_parameters_and_citation(cli):
    about = cli("show", "fastv", "--json").data
    keep = next(parameter for parameter in about["parameters"] if parameter["name"] == "keep_ratio")
    assert keep["range"] == ">= 0, <= 1"
    assert keep["description"]
    assert about["citation"].startswith("@inproceedings{")
    assert about["stage"] == "prefill"
    assert about["budget_knob"] == "keep_ratio"


def test_plan_gives_tokens_per_layer(cli):
    about = cli("plan", "--model", "llava-1.5-7b", "-s", "{name: fastv, k: 2, keep_ratio: 0.5}", "--json").data
    assert about["layer_tokens"] == [576, 576, *[288] * 30]
    assert about["layer_mean_tokens"] == pytest.approx(306)
    assert about["n_text"] == 35


def test_plan_meets_a_budget(cli):
    about = cli("plan", "--model", "llava-1.5-7b", "-s", "{name: st3, budget: {kv_ratio: 0.3}}", "--json").data
    assert 0.28 <= about["kv_mean_ratio"] <= 0.3


def test_plan_says_what_an_image_size_changes(cli):
    result = cli("plan", "--model", "llava-1.5-7b", "-s", "fastv", "--image-size", "480x640")
    assert result.exit_code == 0
    assert "576 visual tokens" in result.stdout


def test_plan_counts_the_tokens_of_an_image_size(cli):
    common = ("plan", "--model", "llava-next-vicuna-7b", "-s", "fastv", "--json")
    nominal = cli(*common).data
    assert (nominal["n_visual"], nominal["n_text"]) == (2880, 35 + 48)
    assert nominal["image"]["pieces"] == 5
    assert any("--image-size" in note for note in nominal["notes"])
    wide = cli(*common, "--image-size", "200x900", "--images", "2").data
    assert wide["image"]["size"] == [200, 900]
    assert wide["n_visual"] == 2 * wide["image"]["visual_tokens"] == 2 * (576 + 16 * 72)
    assert wide["n_text"] == 35 + 2 * 16
    pruned = cli(*common, "--image-size", "200x900", "--structure", "prune").data
    assert (pruned["n_visual"], pruned["n_text"]) == (576 + 16 * 72 + 16, 35)
    text = cli("plan", "--model", "qwen2.5-vl-7b", "-s", "fastv", "--image-size", "480x640").stdout
    assert "391 visual tokens" in " ".join(text.split())


@pytest.mark.parametrize("options", [("--structure", "drop"), ("--image-size", "0x3"), ("--image-size", "wide")])
def test_plan_refuses_what_is_no_size_or_choice(cli, options):
    result = cli("plan", "--model", "llava-next-vicuna-7b", "-s", "fastv", *options)
    assert result.exit_code == 2


def test_plugins_and_schema_are_json(cli):
    infos = cli("plugins", "--json").data
    assert {"builtin-strategies", "builtin-adapters"} <= {info["name"] for info in infos}
    assert "builtin-strategies" in cli("plugins").stdout
    assert json.loads(cli("schema").stdout)["$defs"]


def test_validate_prints_what_a_file_means(cli, tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("strategy: {name: fastv}\n")
    result = cli("validate", file)
    assert result.exit_code == 0
    assert "a valid configuration" in result.stdout
    assert "keep_ratio" in result.stdout
    assert cli("validate", file, "--json").data["config"]["strategy"]["k"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name: fastv, k: 999}", "must be below 64"),
        ("{strategy: {name: fastv, k: 20}, model: testbed}", "must be below 12"),
        ("{strategy: fastv, model: /no/such/folder}", "be a registered name, a model folder"),
        ("{name: replay, file: /no/trace}", "/no/trace"),
        ("{name: quecc, weights: /no/weights}", "/no/weights"),
        ("{tasks: [where], strategies: [{name: fastv, k: 999}]}", "must be below 12"),
        ("{tasks: [where], strategies: [fastv], models: [/no/such/folder]}", "be a registered name, a model folder"),
        ("{tasks: [where], strategies: [fastv], executor: {name: local, workers: 1000000}}", "for each core"),
    ],
)
def test_validate_refuses_what_would_not_run(cli, tmp_path, text, said):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    result = cli("validate", file)
    assert result.exit_code == 2
    assert said in result.stderr


def test_validate_knows_suites_and_schedules(cli, tmp_path):
    file = tmp_path / "c.yaml"
    for text, kind in (
        ("settings: [{geometry: scaled, strategies: [fastv]}]", "suite of benches"),
        ("{format: 1, method: vtw, made_for: {layers: 12}, counts: {8: 0}, provenance: {}}", "schedule"),
    ):
        file.write_text(text)
        assert cli("validate", file, "--json").data["kind"] == kind


def test_validate_knows_comparisons(cli, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({"models": ["testbed-plain"], "tasks": ["where"], "strategies": ["fastv"]}))
    assert cli("validate", file, "--json").data["kind"] == "comparison"


def test_text_of_a_user_is_never_markup(cli):
    result = cli("show", "[bold]x[/bold]")
    assert result.exit_code == 2
    assert "[bold]x[/bold]" in result.stderr


def test_cite_prints_bibtex_alone_and_notes_apart(cli):
    result = cli("cite", "st3", "none", "--tokentrim")
    assert result.exit_code == 0
    assert result.stdout.count("\n@") == 1
    assert result.stdout.startswith("@inproceedings{zhuang2025st3")
    assert "@software{tokentrim" in result.stdout
    assert result.stderr == "without a paper: strategy 'none'\n"
    about = cli("cite", ROOT / "docs/examples/configs/fastv-vta.yaml", "--json").data
    assert [reference["key"] for reference in about["references"]] == ["chen2024fastv", "zhuang2025st3"]
    nothing = cli("cite")
    assert nothing.exit_code == 2
    assert "tokentrim cite st3" in nothing.stderr
