"""Answering a harness's questions under a strategy, batch by batch. What fails raises; no answer is made up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteriaList

from tokentrim.engine.generate import answer_lengths
from tokentrim.errors import EngineError, complaint
from tokentrim.harness.generation import Generation
from tokentrim.harness.options import HarnessOptions
from tokentrim.loading import Loaded, conversation_inputs, on_device
from tokentrim.runs.batches import visual_tokens
from tokentrim.runs.cells import prunes
from tokentrim.runs.costs import Costs
from tokentrim.runs.stopping import StopsAtText
from tokentrim.session import located, trim
from tokentrim.tasks.messages import Conversation

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim.contracts.strategy import Strategy


@dataclass(frozen=True)
class HarnessQuestion:
    """One request of a harness.

    Attributes:
        place: its number in the harness's list.
        task: the task's name; empty for a copy that only fills up a process's share, which is in no costs.
        conversation: the prompt.
        generation: how to answer.
    """

    place: int
    task: str
    conversation: Conversation
    generation: Generation


@dataclass(frozen=True)
class HarnessAnswer:
    """What was said to a question: its text, and the tokens of its prompt and of itself."""

    place: int
    text: str
    prompt_tokens: int
    new_tokens: int


@dataclass
class Answerer:
    """A loaded model, and the strategy under which it answers.

    Attributes:
        loaded: model and processor.
        options: strategy, budget and batch size.
        costs: by task, of all that was answered so far.
        solved: the strategy by number of visual tokens, where its knob was solved for a budget.
        ignored: generation settings that meant nothing here.
    """

    loaded: Loaded
    options: HarnessOptions
    costs: dict[str, Costs] = field(default_factory=dict[str, Costs])
    solved: dict[tuple[int, int], Strategy] = field(default_factory=dict[tuple[int, int], "Strategy"])
    ignored: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        """Find the model's numbers, and let the strategy prove that it can serve them."""
        self.shape = located(self.loaded.model)[1].shape
        with trim(self.loaded.model, self._strategy(0, 0), structure=self.options.chosen.structure) as session:
            self.shape = session.layout.shape

    def answer(self, questions: Iterable[HarnessQuestion]) -> Iterator[HarnessAnswer]:
        """Answers, as their batches come to an end: each names its question's place.

        Questions share a batch when one call of ``generate`` can answer them under one strategy. A question waits
        until its batch is full; what is left is answered last, so only a few images are held at once.

        Raises:
            TokentrimError: when a prompt or the strategy cannot be served.
            Exception: whatever ``generate`` raises.
        """
        waiting: dict[tuple[object, ...], list[HarnessQuestion]] = {}
        for question in questions:
            self.ignored.update(question.generation.ignored)
            key = (question.task, question.generation.key, self._kind(question.conversation))
            waiting.setdefault(key, []).append(question)
            if len(waiting[key]) == self.options.batch_size:
                yield from self._answer(waiting.pop(key))
        for batch in waiting.values():
            yield from self._answer(batch)

    def _kind(self, conversation: Conversation) -> int:
        """What the questions of a batch have in common: their number of visual tokens where a budget depends on it."""
        if not conversation.images or not self.options.ratios:
            return -1 if conversation.images else 0
        inputs = conversation_inputs(self.loaded.processor, [conversation.turns], [conversation.images])
        return visual_tokens(self.loaded, inputs, [conversation.images])[0]

    def _answer(self, batch: list[HarnessQuestion]) -> Iterator[HarnessAnswer]:
        """Answer one batch and add its costs."""
        loaded, generation = self.loaded, batch[0].generation
        prompts = [question.conversation for question in batch]
        images = [prompt.images for prompt in prompts]
        inputs = dict(conversation_inputs(loaded.processor, [prompt.turns for prompt in prompts], images))
        n_visual = visual_tokens(loaded, inputs, images)
        n_prompt = [int(n) for n in inputs["attention_mask"].sum(1)]
        strategy = self._strategy(max(n_visual), round(sum(n_prompt) / len(batch)) - max(n_visual))
        with trim(loaded.model, strategy, record=False, structure=self.options.chosen.structure) as session:
            new = self._generate(inputs, generation)
        lengths = [self._length(row, generation) for row in new]
        # Every beam is a row of its own to the session; it is charged for the answer that its question got.
        beams: int = generation.settings["num_beams"]
        session.annotate(new_tokens=[length for length in lengths for _ in range(beams)])
        if batch[0].task:
            costs = self.costs.setdefault(batch[0].task, Costs())
            due = any(prunes(strategy, self.shape, n, max(lengths) - 1) for n in set(n_visual))
            costs.add(session.report(), lengths, pictured=any(n_visual), due=due)
        for question, row, length, n in zip(batch, new, lengths, n_prompt, strict=True):
            yield HarnessAnswer(question.place, generation.cut(self._text(row[:length])).strip(), n, length)

    def _generate(self, inputs: dict[str, Tensor], generation: Generation) -> Tensor:
        """New tokens of a batch, on the host."""
        model = self.loaded.model
        inputs = on_device(model, inputs)
        stops: dict[str, Any] = {}
        if generation.until:
            ended = StopsAtText(generation.until, self._text, inputs["input_ids"].shape[1])
            stops = {"stopping_criteria": StoppingCriteriaList([ended])}
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=generation.max_new_tokens, **generation.settings, **stops
            )  # fmt: skip
        ids = inputs["input_ids"]
        if output.shape[0] != ids.shape[0]:
            raise EngineError(
                complaint("generate", f"return one answer per question, {ids.shape[0]}", output.shape[0],
                          "leave num_return_sequences out of the task's generation settings")
            )  # fmt: skip
        return output[:, ids.shape[1] :].cpu()

    def _length(self, row: Tensor, generation: Generation) -> int:
        """Tokens of an answer [n] up to its end; an answer that a stop text ended is followed by padding, too."""
        length = answer_lengths(self.loaded.model, row.unsqueeze(0))[0]
        if any(stop in self._text(row[:length]) for stop in generation.until):
            padding = self.loaded.processor.tokenizer.pad_token_id
            while length > 1 and row[length - 1] == padding:
                length -= 1
        return length

    def _text(self, tokens: Tensor) -> str:
        return self.loaded.processor.tokenizer.decode(tokens, skip_special_tokens=True)

    def _strategy(self, n_visual: int, n_text: int) -> Strategy:
        """The strategy for prompts with so many tokens, its knob solved where there is a budget.

        Raises:
            StrategyError: when no value of the knob meets the budget.
        """
        ratios, chosen = self.options.ratios, self.options.chosen.strategy
        if not ratios or not n_visual:
            return chosen
        key = (n_visual, n_text if "flops_ratio" in ratios else 0)
        if key not in self.solved:
            new_tokens = self.options.new_tokens or 1
            self.solved[key], _ = chosen.for_answer(self.options.max_new_tokens).at_budget(
                self.shape, n_visual, **ratios, n_text=n_text, new_tokens=new_tokens
            )  # fmt: skip
        return self.solved[key]


def require_pruning(costs: Costs) -> None:
    """Refuse the results of a run in which nothing was pruned although the strategy's plan prunes.

    Raises:
        EngineError: when there was no pruning event.
    """
    if costs.due and not costs.pruning_events:
        raise EngineError(
            complaint("the run", f"prune: the strategy's plan drops visual tokens of {costs.due} questions",
                      "no pruning event", "its results are those of another strategy; report this as a bug")
        )  # fmt: skip
