"""Reference tables made of the pydantic models and of the registry."""

from __future__ import annotations

import inspect
import re

from tokentrim.cli.show import describe, parameters_of
from tokentrim.compare import config as compare_config
from tokentrim.config.specs import Budget, TrimConfig
from tokentrim.contracts.load_options import LoadOptions
from tokentrim.plugins.loader import registry

_MODELS = (
    ("A strategy file, and `run --config`", TrimConfig),
    ("`budget` of a strategy", Budget),
    ("A comparison", compare_config.CompareConfig),
    ("`models` of a comparison", compare_config.ModelSpec),
    ("`tasks` of a comparison", compare_config.TaskSpec),
    ("`strategies` of a comparison", compare_config.MethodSpec),
    ("`budgets` of a comparison", compare_config.Budgets),
)


def keys():
    """Every key of every configuration, in the order of a reader's interest."""
    lines = []
    for title, model in _MODELS:
        lines += [f"### {title}", "", *_table(model), ""]
    return "\n".join(lines).strip()


def methods(names):
    """Every registered strategy with its facts, parameters and own words."""
    strategies, lines = registry("strategy"), []
    for name in names:
        about = describe(strategies.entry(name))
        facts = [
            f"stage: {about['stage']}" if about["stage"] != "none" else "decides nothing",
            f"reads: {', '.join(about['needs']) or 'nothing'}",
            f"budget knob: `{about['budget_knob']}`" if about["budget_knob"] else "no budget knob",
            *(["counts depend on the data"] if not about["count_is_static"] else []),
            *(["merges"] if about["merges"] else []),
            *(["carries trained weights"] if about["trainable"] else []),
        ]
        lines += [f"### `{name}`", "", f"*{'; '.join(facts)}.*", "", _prose(about["documentation"]), ""]
        if about["parameters"]:
            lines += [*_table(strategies.get(name)), ""]
    return "\n".join(lines).strip()


def _prose(documentation):
    """A docstring without its list of parameters, which the table has."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(documentation))
    kept = [p for p in paragraphs if not p.startswith("Parameters:")]
    # reStructuredText's double quotes and a literal bar are one in Markdown.
    return "\n\n".join(kept).replace("``", "`")


def _table(model):
    lines = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    inherited = LoadOptions.model_fields
    for row in sorted(parameters_of(model), key=lambda row: row["name"] in inherited):
        required = model.model_fields[row["name"]].is_required()
        default = "required" if required else _default(row["default"])
        cells = [f"`{row['name']}`", f"`{_type(row['type'])}`", default, row["range"], row["description"]]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return lines


def _default(value):
    """A default that fits into a cell; objects of their own have tables of their own."""
    text = str(value)
    return "" if value in (None, "") else f"`{text}`" if len(text) < 30 and "Spec(" not in text else "see there"


def _type(text):
    """A type as somebody who writes YAML would say it."""
    text = re.sub(r"\b(?:tokentrim|collections|pydantic)[\w.]*\.(\w+)", r"\1", text)
    text = re.sub(r"Annotated\[(.*?), AfterValidator\(.*?\)\]", r"\1", text)
    text = re.sub(r"Optional\[(.*)\]$", r"\1 | None", text)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(", ", " | "), text)
    text = re.sub(r"tuple\[([^\[\]]+), \.\.\.\]", r"list of \1", text)
    text = re.sub(r"\b(ModelSpec|TaskSpec|MethodSpec|StrategySpec)\b", "below", text)
    text = text.removesuffix(" | None").replace(" | ", " or ")
    return {"Any": "strategy", "str": "text", "bool": "true or false"}.get(text, text)
