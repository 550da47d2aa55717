"""The documentation says what is true: its tables are fresh, its code runs, its links lead somewhere.

``python tests/test_docs.py`` writes the generated blocks, and the schemas in ``tokentrim/schemas``, anew.
"""

import inspect
import json
import os
import re
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from tokentrim import hookspecs
from tokentrim.cli import app
from tokentrim.cli.validate import read
from tokentrim.contracts.sites import AT_BOUNDARIES, AT_STEPS, LayerSite, Need, StepSite
from tokentrim.errors import ConfigError
from tokentrim.plugins.loader import KINDS, registry
from tokentrim.testbed import MODELS, model_folder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CONFIGS = sorted((DOCS / "examples/configs").glob("*.yaml"))
PUBLISHED = sorted((DOCS / "examples/configs/published").glob("*.yaml"))
SITE = sorted([*DOCS.glob("*.md"), *DOCS.glob("results/*.md")])
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *SITE]
_BUILTINS = (
    "none",
    "random",
    "uniform",
    "pool",
    "fastv",
    "pvtp",
    "vta",
    "st3",
    "vtw",
    "sparsevlm",
    "pyramiddrop",
    "dart",
    "v2drop",
    "fitprune",
    "fastervlm",
    "vispruner",
    "vtc-cls",
    "visionzip",
    "prumerge",
    "hired",
    "globalcom2",
    "holov",
    "hiprune",
    "vscan",
    "divprune",
    "scope",
    "mmtok",
    "cdpruner",
    "tome",
    "evs",
    "vidcom2",
    "dycoke",
    "scissor",
    "framefusion",
    "prunevid",
    "snapkv",
    "lookm",
    "layer-counts",
    "tally",
    "text-only",
    "oracle",
    "replay",
)


def name_of(path):
    return str(path.relative_to(ROOT))


def read_page(path):
    return (ROOT / path).read_text(encoding="utf-8")


# ---------------------------------------------------------------------- generated blocks


def paper_of(documentation):
    """``[Chen 2024](link)`` from the bibtex block of a docstring."""
    block = re.search(r"```bibtex\n(.*?)```", inspect.cleandoc(documentation), re.DOTALL)
    if block is None:
        return ""
    author, year = re.search(r"author=\{([^,}]+)", block[1])[1], re.search(r"year=\{(\d+)", block[1])[1]
    arxiv, doi = re.search(r"arXiv:([\d.]+)", block[1]), re.search(r"doi=\{([^}]+)", block[1])
    link = f"https://arxiv.org/abs/{arxiv[1]}" if arxiv else f"https://doi.org/{doi[1]}"
    return f"[{author} {year}]({link})"


def strategy_names():
    """Every registered strategy: controls first, then the methods, in the order of a reader's interest."""
    return sorted(registry("strategy").names(), key=lambda name: (*_BUILTINS, name).index(name))


def strategy_table():
    """Every registered strategy: controls first, then the methods, in the order of a reader's interest."""
    from tests.costs import cell_of

    strategies = registry("strategy")
    lines = ["| name | what it does | stage | needs | measured cost | paper |", "|---|---|---|---|---|---|"]
    for name in strategy_names():
        found, summary = strategies.get(name), strategies.entry(name).tags["summary"]
        stage = "–" if found.stage == "none" else found.stage
        needs = ", ".join(sorted(need.value for need in found.needs)) or "–"
        cells = (summary, stage, needs, cell_of(name), paper_of(found.__doc__))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def config_table():
    """Every shipped configuration with the command that it begins with."""
    lines = ["| file | command |", "|---|---|"]
    for path in CONFIGS:
        lines.append(f"| [{path.name}](examples/configs/{path.name}) | `{command_of(path)}` |")
    return "\n".join(lines)


def command_of(path):
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def needs_table():
    """Every need, and the property of a site under which it is read."""
    lines = ["| need | at | read as | what it is |", "|---|---|---|---|"]
    for need in Need:
        views = [(LayerSite, "boundary", AT_BOUNDARIES), (StepSite, "step", AT_STEPS)]
        views = [(view, where) for view, where, served in views if need in served]
        view = views[0][0]
        member = getattr(view, need.name.lower())
        getter = member.fget if isinstance(member, property) else member
        arguments = (
            "" if isinstance(member, property) else f"({', '.join([*inspect.signature(member).parameters][1:])})"
        )
        reads = f"site.{need.name.lower()}{arguments}"
        what = " ".join(inspect.cleandoc(getter.__doc__).split("\n\n")[0].split())
        where = ", ".join(where for _, where in views)
        lines.append(f"| `Need.{need.name}` | {where} | `{reads}` | {what} |")
    return "\n".join(lines)


def example_error():
    """What the misspelt example of the configuration page is answered with."""
    page = read_page("docs/configuration.md")
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "keep_ration" in block)
    from tokentrim.config.specs import load_config

    with pytest.raises(ConfigError) as caught:
        load_config(example)
    return "```text\nerror: " + str(caught.value).replace("inline YAML:", "my.yaml:") + "\n```"


def adapter_table():
    """Every registered adapter."""
    adapters = registry("adapter")
    lines = ["| adapter | families | `config.model_type` |", "|---|---|---|"]
    for name in adapters.names():
        tags = adapters.entry(name).tags
        types = ", ".join(f"`{kind}`" for kind in tags.get("model_types", ())) or "any other"
        lines.append(f"| `{name}` | {tags['summary']} | {types} |")
    return "\n".join(lines)


def feature_table():
    """What generate can be asked for under a strategy, and the verdict."""
    from tests.generate.features import table

    return table()


def published_table():
    """Published numbers beside our configurations."""
    from tests.published_table import published

    return published()


def presets_table():
    """Configurations at published budgets."""
    from tests.published_table import presets

    return presets()


def keys_table():
    """Every key of every configuration file."""
    from tests.reference_pages import keys

    return keys()


def method_catalogue():
    """Every registered strategy, in the order of the table."""
    from tests.reference_pages import methods

    return methods(strategy_names())


def cost_table():
    """Measured costs of every method of the comparison."""
    from tests.costs import table

    return table()


def check_table(checks):
    """Every check of a contract."""
    lines = ["| check | what must hold |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{check.name}` | {check.summary.replace('``', '`')} |" for check in checks)])


def strategy_check_table():
    from tokentrim.testing.doors import STRATEGY_CHECKS

    return check_table(STRATEGY_CHECKS)


def adapter_check_table():
    from tokentrim.testing.adapter_checks import ADAPTER_CHECKS

    return check_table(ADAPTER_CHECKS)


def figure_table():
    """Every column of the rows of ``summary.json``."""
    from tokentrim.runs.figures import FIGURES, SOURCES

    lines = ["| column | printed as | rows | from | definition |", "|---|---|---|---|---|"]
    for figure in FIGURES:
        rows = "all" if len(figure.rows) > 1 else next(iter(figure.rows))
        cells = (f"`{figure.name}`", figure.title, rows, SOURCES[figure.source], figure.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


BLOCKS = [
    ("docs/compare.md", "figures", figure_table),
    ("docs/results/methods.md", "costs", cost_table),
    ("docs/reference.md", "keys", keys_table),
    ("docs/reference.md", "methods", method_catalogue),
    ("docs/published.md", "published", published_table),
    ("docs/reproduce.md", "presets", presets_table),
    ("docs/test-a-plugin.md", "strategy-checks", strategy_check_table),
    ("docs/test-a-plugin.md", "adapter-checks", adapter_check_table),
    ("docs/write-an-adapter.md", "adapters", adapter_table),
    ("README.md", "strategies", strategy_table),
    ("docs/choose-a-strategy.md", "strategies", strategy_table),
    ("docs/configuration.md", "configs", config_table),
    ("docs/configuration.md", "error", example_error),
    ("docs/write-a-strategy.md", "needs", needs_table),
    ("docs/generate.md", "features", feature_table),
]


def test_costs_are_of_strategies_that_there_are_and_the_others_say_so():
    from tests import costs

    rows = json.loads(costs.FILE.read_text(encoding="utf-8"))["rows"]
    known = set(registry("strategy").names())
    measured = {row["strategy"] for row in rows.values()}
    assert measured <= known
    assert all(costs.cell_of(name) == costs.NOT_MEASURED for name in known - measured)
    assert costs.cell_of("a strategy of tomorrow") == costs.NOT_MEASURED
    assert all(row["prefill_time_ratio"] > 0 and 0 <= row["selection_share"] < 1 for row in rows.values())


def block_of(text, name):
    return re.search(rf"(?<=<!-- {name}:begin -->\n)(.*?)\n?(?=<!-- {name}:end -->)", text, re.DOTALL)


@pytest.mark.parametrize(("page", "name", "make"), BLOCKS, ids=[f"{page}:{name}" for page, name, _ in BLOCKS])
def test_generated_block_is_fresh(page, name, make):
    assert block_of(read_page(page), name)[1] == make(), "run: python tests/test_docs.py"


# ---------------------------------------------------------------------- hooks


def hooks():
    return [(name, value) for name, value in vars(hookspecs).items() if hasattr(value, "tokentrim_spec")]


def test_every_kind_has_a_hook():
    assert {name for name, _ in hooks()} == {kind.hook for kind in KINDS}


@pytest.mark.parametrize(("name", "hook"), hooks(), ids=[name for name, _ in hooks()])
def test_hook_is_documented_with_its_exact_arguments(name, hook):
    arguments = ", ".join(inspect.signature(hook).parameters)
    assert f"### `{name}({arguments})`" in read_page("docs/hooks.md")


def test_no_hook_is_documented_that_does_not_exist():
    documented = re.findall(r"^### `(\w+)\(", read_page("docs/hooks.md"), re.MULTILINE)
    assert sorted(documented) == sorted(name for name, _ in hooks())


# ---------------------------------------------------------------------- configurations and commands


@pytest.mark.parametrize("path", [*CONFIGS, *PUBLISHED], ids=name_of)
def test_shipped_configuration_is_valid_and_begins_with_its_command(path):
    command = command_of(path).split()
    assert command[:2] in (["tokentrim", "run"], ["tokentrim", "compare"])
    assert name_of(path) in command
    text = path.read_text(encoding="utf-8")
    # A comparison looks its models up, and a checkout without trained weights has none.
    if command[1] == "compare":
        from tokentrim.compare import load_compare

        assert load_compare(path).tasks
    else:
        assert read(path)[0] == "configuration", text


def test_published_numbers_have_sources_and_configurations():
    from tests.published_table import config_of, data, every_row

    found = data()
    rows = every_row(found)
    for row in rows:
        assert ("numbers" in row or "average" in row) == ("source" in row), row
        assert row.get("source", "wen") in found["sources"], row
        assert len(row.get("numbers", found["benchmarks"])) == len(found["benchmarks"]), row
    for row in (*rows, *found["settings"]):
        assert row["method"] in (*registry("strategy").names(), "unpruned"), row
        if "config" in row:
            assert read(config_of(row))[0] == "configuration"
    configs = {row["config"] for row in (*rows, *found["settings"]) if "config" in row}
    assert {name for name in configs if not name.startswith("../")} == {path.stem for path in PUBLISHED}


def test_documented_commands_are_the_commands():
    documented = re.findall(r"^## `tokentrim ([\w-]+)`", read_page("docs/cli.md"), re.MULTILINE)
    assert sorted(documented) == sorted(typer.main.get_command(app).commands)


@cache
def program():
    """The whole command line, which takes a while to make."""
    return typer.main.get_command(app)


def options_in(text):
    """(command, option) of every ``tokentrim`` command line in a text's code; a command of a group is "group name"."""
    commands = program().commands
    groups = "|".join(name for name, found in commands.items() if hasattr(found, "commands"))
    for line in re.sub(r"\\\n\s*", "", text).split("\n"):
        found = re.match(rf"\s*`?(?:tokentrim) ((?:{groups}) [a-z]+|[a-z]+) (.*)", line)
        if found:
            yield from ((found[1], option) for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", " " + found[2]))


def command_named(name):
    """The command behind ``"plan"`` or ``"calibrate vtw"``."""
    found = program()
    for word in name.split():
        found = found.commands[word]
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_options_of_documented_command_lines_exist(path):
    for command, option in options_in(path.read_text(encoding="utf-8")):
        # An option of the whole program may stand behind any command.
        params = [*command_named(command).params, *program().params]
        known = {name for parameter in params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert option in known | {"--help"}, f"tokentrim {command} {option}"


def test_error_page_tells_the_exit_code(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("strategy:\n  spatial: {name: fastv, keep_ration: 0.5}\n", encoding="utf-8")
    assert CliRunner().invoke(app, ["validate", str(file)]).exit_code == 2


# ---------------------------------------------------------------------- links


def anchors(path):
    """GitHub's anchors of a page's headings."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_internal_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert path not in SITE or DOCS in (target, *target.parents), f"{link} leaves the site"
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", sorted((ROOT / "tokentrim/testing").glob("*.py")), ids=name_of)
def test_checks_name_sections_that_exist(path):
    from tokentrim.testing import outcome

    text = path.read_text(encoding="utf-8").replace("{STRATEGIES}", outcome.STRATEGIES)
    for page, anchor in re.findall(r"(docs/[\w-]+\.md)#([\w-]+)", text.replace("{ADAPTERS}", outcome.ADAPTERS)):
        assert anchor in anchors(ROOT / page), f"{page}#{anchor}"


def test_the_site_fetches_nothing():
    settings = read_page("zensical.toml")
    assert "font = false" in settings
    assert "[project.plugins.offline]" in settings
    scripts = re.findall(r'path = "([^"]+)"', settings)
    assert scripts == ["javascripts/iframe-worker.js"]
    assert "http" not in settings + (DOCS / scripts[0]).read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation():
    navigation = read_page("zensical.toml")
    assert not [name for page in SITE if f'"{(name := page.relative_to(DOCS))}"' not in navigation]


# ---------------------------------------------------------------------- code


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", read_page(page), re.DOTALL)


def shipped_model():
    """A shipped model whose weights are there: the testbed, else the smaller one."""
    return next((name for name in MODELS if (model_folder(name) / "model.safetensors").is_file()), None)


def run_example(code, capsys):
    name = shipped_model()
    if name is None:
        pytest.skip("no trained testbed model in this checkout")
    exec(compile(code.replace('"testbed"', f'"{name}"'), "example", "exec"), {})
    return capsys.readouterr().out


def test_the_example_of_the_readme_runs(capsys):
    printed = run_example(python_blocks("README.md")[0], capsys)
    assert "strategy       st3" in printed
    assert "visual tokens  100 ->" in printed


def test_the_example_of_the_quickstart_runs(capsys):
    code = next(block for block in python_blocks("docs/quickstart.md") if "load_model" in block)
    assert "keep_ratio=0.25" in run_example(code, capsys)


_IMPORTS = """
from typing import ClassVar
from torch import Tensor
import tokentrim
from tokentrim import LayerSite, ModelShape, Need, Schedule, keep_count
"""


@pytest.mark.parametrize(
    ("page", "marker"), [("README.md", "class FeatureNorm"), ("docs/write-a-strategy.md", "class FeatureNorm")]
)
def test_the_example_strategies_plan_as_they_say(page, marker):
    from tokentrim import plan
    from tokentrim.counting.published import PRESETS

    names = {"__name__": "example"}
    exec(_IMPORTS + next(block for block in python_blocks(page) if marker in block), names)
    strategy = names[marker.split()[1]](keep_ratio=0.25)
    assert plan(strategy, PRESETS["llava-1.5-7b"], 576).usage.layer_tokens[-1] == 144


def write_blocks():
    for page, name, make in BLOCKS:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        start, end = block_of(text, name).span()
        path.write_text(f"{text[:start]}{make()}\n{text[end:]}", encoding="utf-8")


def write_example():
    """The example plugin, as new-plugin writes it; what its tests leave behind stays."""
    from tokentrim.cli.scaffold import NewPlugin

    for path, content in NewPlugin("tokentrim-example-plugin", "feature-norm").files().items():
        if path.suffix != ".png":
            (DOCS / "examples/tokentrim-example-plugin" / path).write_bytes(content)


def write_schemas():
    from tokentrim.cli.schemas import SCHEMAS, SHIPPED

    for kind, build in SCHEMAS.items():
        text = json.dumps(build(), indent=1, ensure_ascii=False)
        (SHIPPED / f"{kind}.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["TOKENTRIM_PLUGINS"] = ""  # the tables and schemas are of what comes with tokentrim
    write_blocks()
    write_schemas()
    write_example()
