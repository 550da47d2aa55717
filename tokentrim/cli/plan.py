"""``tokentrim plan``: what a strategy will cost, before any weight is loaded."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from tokentrim.cli.output import AsJson, StrategyOption, console, emit
from tokentrim.errors import ConfigError, UnsupportedError, complaint

_TEXT_TOKENS = 35  # as tokentrim.plan has them; repeated, because importing it needs torch and --help must not
_NEW_TOKENS = 64
_SIZE = re.compile(r"\s*(\d+)\s*[xX]\s*(\d+)\s*")


def plan(
    strategy: StrategyOption = None,
    model: Annotated[
        str, typer.Option(help="A preset such as llava-1.5-7b, a registered model, or a folder.")
    ] = "testbed",
    text_tokens: Annotated[int, typer.Option(help="Tokens of the prompt that are not visual.")] = _TEXT_TOKENS,
    image_size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH of the image, in pixels.")] = None,
    images: Annotated[int, typer.Option(help="Images in the prompt.", min=0)] = 1,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = _NEW_TOKENS,
    as_json: AsJson = False,
) -> None:
    """Tokens per layer, FLOPs and KV bytes of a strategy on one prompt, from shapes alone."""
    if strategy is None:
        raise ConfigError(
            complaint("--strategy", "be given", hint="such as --strategy st3; see 'tokentrim ls strategy'")
        )
    from tokentrim.config import strategy_from
    from tokentrim.plan import plan as make_plan
    from tokentrim.plan import plan_table
    from tokentrim.presets import shape_of

    spec = strategy_from(strategy)
    shape = shape_of(model)
    if shape.vision is None:
        raise UnsupportedError(
            complaint(f"model {model!r}", "have a vision tower of known size", hint="plan another model")
        )
    n_visual = images * shape.vision.n_visual
    chosen = spec.strategy
    if spec.budget is not None:
        chosen, _ = chosen.at_budget(shape, n_visual, **spec.budget.ratios, n_text=text_tokens, new_tokens=new_tokens)
    made = make_plan(chosen, shape, n_visual, text_tokens, new_tokens)
    note = None if image_size is None else _size_note(image_size, shape.vision.n_visual)
    if as_json:
        notes = [*made.to_dict()["notes"], *([note] if note else [])]
        emit({**made.to_dict(), "notes": notes})
        return
    out = console()
    out.print(plan_table(made))
    if note:
        out.print(f"note: {note}", style="dim")


def _size_note(text: str, n_visual: int) -> str:
    """What an image's size changes.

    Raises:
        ConfigError: when the text is no size.
    """
    size = _SIZE.fullmatch(text)
    if size is None or "0" in (size[1].lstrip("0") or "0", size[2].lstrip("0") or "0"):
        raise ConfigError(complaint("--image-size", "read HEIGHTxWIDTH in pixels", text, "such as 336x336"))
    return (
        f"this model brings every image to one size, so {size[1]}x{size[2]} pixels also become {n_visual} visual tokens"
    )
