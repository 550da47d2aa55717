"""``tokentrim chat``: several turns about a picture, and what each leaves of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokentrim.cli import options
from tokentrim.cli.output import console, emit, placement, quiet_libraries, started
from tokentrim.cli.run import check_fit, chosen, refuse_evidence

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Turn:
    """One question and its answer.

    Attributes:
        question: what was asked.
        answer: what the model said.
        n_visual: visual tokens of the pictures.
        kept: (first layer, visual tokens of which entries are there from it on), and (None, seen in the last layer).
    """

    question: str
    answer: str
    n_visual: int
    kept: list[tuple[int | None, int]]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        kept = [
            {"from_layer": layer, "where": "prefill" if layer is not None else "seen at the end", "count": count}
            for layer, count in self.kept
        ]
        return {"question": self.question, "answer": self.answer, "visual_tokens": self.n_visual, "kept": kept}

    @property
    def left(self) -> str:
        """What is left of the pictures, for people."""
        places = [
            f"{count} {'seen in the last layer at the end' if layer is None else f'from layer {layer}'}"
            for layer, count in self.kept
        ]
        share = self.kept[-1][1] / self.n_visual if self.n_visual else 0
        return f"left of {self.n_visual} visual tokens: {', '.join(places)} ({share:.0%})"


def chat(
    image: Annotated[list[Path], typer.Option("--image", "-i", help="Image file; may be repeated.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A question; may be repeated. Default: read lines."),
    ] = None,
    strategy: options.Strategy = None,
    config: options.Config = None,
    model: options.MaybeModel = None,
    max_new_tokens: options.NewTokens = 64,
    anew: Annotated[
        bool,
        typer.Option("--anew", help="Make each turn a new prompt: its question meets the whole picture."),
    ] = False,
    device: options.Device = None,
    dtype: options.DType = None,
    attn_implementation: options.Attention = None,
    device_map: options.DeviceMap = None,
    as_json: options.AsJson = False,
) -> None:
    """Ask several questions about a picture, one after another, and see what each turn leaves of it.

    The turns share one cache: what the strategy dropped for the first question is gone for the others.
    """
    place = placement(device, dtype, attn_implementation, device_map)
    name, spec, place = chosen(strategy, config, model, place)
    from tokentrim.config.specs import resolve
    from tokentrim.engine.tokens.shown import stages_of
    from tokentrim.loading import load_image, load_model, shape_of
    from tokentrim.runs.batches import visual_tokens
    from tokentrim.runs.dialogue import Dialogue, asks
    from tokentrim.session import trim

    quiet_libraries()
    pictures = [load_image(path) for path in image]
    refuse_evidence(spec.strategy)
    check_fit([spec], name, len(pictures))
    loaded = load_model(name, **place)
    talk = Dialogue(loaded, pictures, max_new_tokens, anew)
    n_visual = visual_tokens(loaded, talk.inputs("?"), [pictures])[0]
    solved = resolve(spec, shape_of(name), n_visual)
    people = console(to_stderr=as_json)
    turns: list[Turn] = []
    note = ""
    with started(f"the conversation under strategy {solved.label()!r}"), trim(loaded.model, solved) as session:
        for question in _questions(prompt, people):
            answer = talk.ask(question)
            stages = [(layer, len(tokens)) for layer, tokens in stages_of(session.trace)]
            turns.append(Turn(question, answer, n_visual, stages))
            _print(people, turns[-1], echo=prompt is not None or not sys.stdin.isatty())
            if not anew and not note and min(count for _, count in stages) < n_visual:
                why = "for turn 1's question" if asks(solved) else "whatever the question"
                gone = session.trace.evicts or any(layer is not None and count < n_visual for layer, count in stages)
                went = "dropped" if gone else "left out of sight"
                note = f"visual tokens of turn 1 were {went} {why}: later turns see what is left (--anew keeps them)"
                people.print(f"note: {note}", style="yellow", soft_wrap=True)
    if as_json:
        emit({"model": name, "strategy": solved.spec(), "anew": anew, "turns": [turn.as_dict() for turn in turns],
              "notes": [note] if note else []})  # fmt: skip


def _questions(given: list[str] | None, people: Console) -> Iterator[str]:
    """The questions of the options, else lines up to an empty one."""
    if given is not None:
        yield from given
        return
    while True:
        if sys.stdin.isatty():
            people.print("> ", end="")
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def _print(out: Console, turn: Turn, *, echo: bool) -> None:
    """A turn for people, with its question where that does not stand there yet."""
    if echo:
        out.print(f"> {turn.question}", soft_wrap=True)
    out.print(turn.answer or "(empty answer)", style="bold", soft_wrap=True)
    out.print(turn.left, style="dim", soft_wrap=True)
