"""What the page asks of a model: which strategies it offers, and one question with and without one of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tokentrim.config.specs import Budget, StrategySpec, resolve, strategy_from
from tokentrim.contracts.sites import Need
from tokentrim.contracts.token_places import Cells
from tokentrim.engine.tokens.shown import stages_of
from tokentrim.errors import DataError, TokentrimError, UnsupportedError, complaint
from tokentrim.loading import load_image, on_device, prompt_inputs
from tokentrim.plugins.loader import registry
from tokentrim.runs.batches import visual_tokens
from tokentrim.runs.stopwatch import GenerateTiming, generate, timed_generate
from tokentrim.session import Session, located, session_with

if TYPE_CHECKING:
    from PIL import Image

    from tokentrim.contracts.strategy import Strategy
    from tokentrim.engine.report import Report
    from tokentrim.loading import Loaded


@dataclass(frozen=True)
class Ran:
    """One of the two runs.

    Attributes:
        label: of the strategy, its knob solved.
        answer: the decoded answer.
        report: what was kept and spent.
        stages: (first layer, tokens kept from there on), and (None, seen in the last layer at the end).
        cells: where the tokens lie.
        first_token: seconds to the first token: median, least, most; empty before they are taken.
        further_token: the same for each further token; empty also where the answer had none.
    """

    label: str
    answer: str
    report: Report
    stages: list[tuple[int | None, list[int]]]
    cells: Cells
    first_token: tuple[float, ...] = ()
    further_token: tuple[float, ...] = ()


def _spreads(taken: list[GenerateTiming]) -> dict[str, tuple[float, ...]]:
    """Both times of runs, each as :class:`Ran` has it."""
    further = [one.decode_seconds_per_token for one in taken if one.decode_seconds_per_token is not None]
    return {
        name: (statistics.median(seconds), min(seconds), max(seconds)) if seconds else ()
        for name, seconds in (("first_token", [one.prefill_seconds for one in taken]), ("further_token", further))
    }


@dataclass(frozen=True)
class Beside:
    """The unpruned run, the pruned one, what both were asked, how often each is timed, and whether it has been."""

    unpruned: Ran
    pruned: Ran
    picture: Image.Image
    question: str
    repeats: int
    timed: bool = False


class Asking:
    """A model, the strategies that serve it, and questions put to it.

    Attributes:
        loaded: the model and its processor.
        name: what the user called it.
        served: what the page offers, by name, and what each is in a line.
        refused: every other registered strategy, and why.
    """

    def __init__(self, loaded: Loaded, name: str, given: StrategySpec | None = None) -> None:
        """Try every registered strategy on the model; none of them runs.

        Args:
            loaded: the model and its processor.
            name: what the user called it.
            given: a strategy to offer beside the registered ones, with what the user set of it.
        """
        self.loaded, self.name = loaded, name
        self.served: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._found = located(loaded.model)
        self._specs: dict[str, StrategySpec] = {}
        for entry in registry("strategy"):
            try:
                spec = strategy_from(entry.name)
                self._require_fit(spec)
            except TokentrimError as error:
                self.refused[entry.name] = str(error)
                continue
            if entry.name != "none":
                self._specs[entry.name] = spec
                self.served[entry.name] = str(entry.tags.get("summary", ""))
        self._given = ""
        if given is not None and given != self._specs.get(given.strategy.label()):
            self._require_fit(given)
            self._given = given.strategy.label()
            self._specs[self._given] = given
            self.served[self._given] = "as it was given on the command line"

    def _require_fit(self, spec: StrategySpec) -> None:
        """Raise TokentrimError unless the strategy can run on the model, for whoever asks on a page."""
        if Need.EVIDENCE in spec.strategy.needed():
            raise UnsupportedError(
                complaint(f"strategy {spec.strategy.label()!r}", "be told which tokens hold the evidence",
                          hint="only the testbed's tasks know; use it in 'tokentrim compare'")
            )  # fmt: skip
        session_with(self.loaded.model, spec, self._found, structure=spec.structure)

    @property
    def about(self) -> str:
        """The model in a line."""
        model, shape = self.loaded.model, self._found[1].shape
        return f"{self.name}: {type(model).__name__}, {shape.n_layers} layers, on {model.device.type}"

    def knob(self, name: str) -> str | None:
        """The parameter of a strategy that a budget turns, if it has one."""
        return self._specs[name].strategy.budget_knob

    def is_matched(self, name: str) -> bool:
        """Whether a strategy is first shown at a budget: not where it has no knob, or was given as it should be."""
        return self.knob(name) is not None and name != self._given

    def is_temporal(self, name: str) -> bool:
        """Whether a strategy acts on the cache alone."""
        return self._specs[name].strategy.stage == "decode"

    def both(
        self,
        picture: str | None,
        question: str,
        name: str,
        budget: Budget | None = None,
        longest: int = 64,
        repeats: int = 3,
    ) -> Iterator[Beside]:
        """The two answers, and then the same again with their times; no run is timed that had to warm up.

        Args:
            picture: file of the picture; None where there is none yet.
            question: about it.
            name: of a strategy among :attr:`served`.
            budget: what its knob is solved for; None: the strategy as it is.
            longest: new tokens at most.
            repeats: timed runs of each of the two.

        Raises:
            DataError: when the picture or the question is missing or unusable.
            TokentrimError: what the strategy or the engine has to say.
        """
        if not picture:
            raise DataError(complaint("a question", "be about a picture", None, "drop one, or take an example"))
        if not question.strip():
            raise DataError(complaint("a question", "have words", question, "type it below the picture"))
        shown, spec = load_image(picture), self._specs[name]
        if budget is not None:
            spec = replace(spec, budget=budget)
        inputs = on_device(self.loaded.model, prompt_inputs(self.loaded.processor, [question], [[shown]]))
        n_visual = visual_tokens(self.loaded, inputs, [[shown] if spec.structure != "prune" else []])[0]
        strategies = strategy_from("none").strategy, resolve(spec, self._found[1].shape, n_visual)
        unpruned, pruned = (self._answer(inputs, strategy, longest, spec) for strategy in strategies)
        yield Beside(unpruned, pruned, shown, question, repeats)
        timings: list[list[GenerateTiming]] = [[], []]
        for _ in range(repeats):
            for taken, strategy in zip(timings, strategies, strict=True):
                with self._session(strategy, spec, record=False), torch.inference_mode():
                    taken.append(timed_generate(self.loaded.model, inputs, longest))
        first, second = (_spreads(taken) for taken in timings)
        yield Beside(replace(unpruned, **first), replace(pruned, **second), shown, question, repeats, timed=True)

    def _session(self, strategy: Strategy, spec: StrategySpec, *, record: bool = True) -> Session:
        return session_with(self.loaded.model, strategy, self._found, record=record, structure=spec.structure)

    def _answer(self, inputs: dict[str, Any], strategy: Strategy, longest: int, spec: StrategySpec) -> Ran:
        """One run, with what it kept."""
        with self._session(strategy, spec) as session, torch.inference_mode():
            output = generate(self.loaded.model, inputs, longest)
        new = output[0, inputs["input_ids"].shape[1] :]
        text = self.loaded.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        return Ran(session.strategy.label(), text, session.report(), stages_of(session.trace), Cells.of(session.grid))
