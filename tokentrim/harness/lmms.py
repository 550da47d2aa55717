"""The model ``tokentrim`` of lmms-eval: any model that tokentrim can prune, under any strategy, on any of its tasks.

    python -m lmms_eval --model tokentrim --model_args pretrained=FOLDER,strategy=st3.yaml --tasks gqa,pope

A chat model: prompts are the messages that a task makes, put through the model's own chat template. An exception of a
generation ends the run; there are no empty answers in its place. lmms-eval imports this file when the model is asked
for, and nothing else does.
"""

# lmms-eval is not installed where types are checked.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import sanitize_model_name
from tqdm import tqdm

from tokentrim.errors import UnsupportedError, complaint
from tokentrim.harness.answering import Answerer, HarnessQuestion, require_pruning
from tokentrim.harness.costs_file import NAME, costs_data, write_costs
from tokentrim.harness.failing import let_out
from tokentrim.harness.generation import generation_of
from tokentrim.harness.options import HarnessOptions, read_options
from tokentrim.loading import DeviceName, Loaded, load_model
from tokentrim.runs.costs import Costs, together, total
from tokentrim.tasks.messages import Conversation, conversation_of

_IN_RESULTS = ("layer_mean_tokens", "layer_mean_ratio", "flops_ratio", "kv_mean_ratio", "kv_end_ratio",
               "kv_total_mean_ratio", "selection_seconds", "pruning_events")  # fmt: skip


class Tokentrim(lmms):
    """A model under a strategy.

    Args:
        arguments: the model arguments, see :class:`~tokentrim.harness.options.HarnessOptions`. In Python
            ``pretrained`` may also be a :class:`~tokentrim.loading.Loaded`.

    Raises:
        TokentrimError: when they are not what they must be; under lmms-eval's command the process ends with code 2.
    """

    is_simple = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        with let_out(bad_input=True):
            self._options = read_options(arguments)
            self._loaded = _load(self._options)
            self._answerer: Answerer | None = Answerer(self._loaded, self._options)
            self._device = self._loaded.model.device
            self._folder: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers numbers there."""
        return self._device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer all requests of this process, in their order."""
        with let_out():
            answerer = self._working()
            self._remember_folder(requests)
            found: list[GenerationResult | None] = [None] * len(requests)
            with tqdm(total=len(requests), desc="Model Responding", disable=self.rank != 0) as bar:
                for answer in answerer.answer(self._questions(requests)):
                    counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens)
                    found[answer.place] = GenerationResult(answer.text, counts)
                    bar.update()
            return [result for result in found if result is not None]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Refused: strategies are about answering."""
        with let_out():
            raise _refused("loglikelihood", requests)

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        """Refused: every request is one prompt here."""
        with let_out():
            raise _refused("generate_until_multi_round", requests)

    def clean(self) -> None:
        """End of the run on every process: add up the costs, hold them against the plan, write them, free the model.

        Raises:
            EngineError: when nothing was pruned although the plan prunes.
        """
        with let_out():
            if self._answerer is not None:
                self._finish(self._answerer)
            self._answerer = None
            del self._loaded
        super().clean()

    def _finish(self, answerer: Answerer) -> None:
        """Costs of all processes: checked everywhere, written by the first."""
        parts: list[dict[str, Costs]] = [answerer.costs]
        if self.world_size > 1:
            parts = [{} for _ in range(self.world_size)]
            dist.all_gather_object(parts, answerer.costs)
        costs = together(parts)
        everything = total(costs.values())
        require_pruning(everything)
        if self.rank != 0:
            return
        data = costs_data(answerer, costs, len(parts))
        data["versions"]["lmms_eval"] = version("lmms_eval")
        path = self._options.costs or (self._folder / NAME if self._folder else None)
        if path is not None:
            write_costs(Path(path), data)
        overall: dict[str, Any] = data["overall"]
        if not everything.questions:
            return
        seconds = everything.sums["prefill_seconds"] + everything.sums["decode_seconds"]
        # The same in lmms-eval's own results, under "throughput".
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=everything.new_tokens,
            avg_speed=everything.new_tokens / seconds if seconds else 0.0,
            additional_metrics={name: overall[name] for name in _IN_RESULTS if overall[name] is not None},
        )

    def _questions(self, requests: Sequence[Instance]) -> Iterator[HarnessQuestion]:
        """Requests as questions; a document is read, and its images with it, when its turn comes."""
        for place, request in enumerate(requests):
            only_fills = (request.metadata or {}).get("__padding_only__")
            conversation, settings, task = self._read(request.args)
            generation = generation_of(settings, self._options.max_new_tokens)
            yield HarnessQuestion(place, "" if only_fills else task, conversation, generation)

    def _read(self, args: tuple[Any, ...]) -> tuple[Conversation, Any, str]:
        """(conversation, generation settings, task) of a request: of a chat task, or of one without messages."""
        if callable(args[1]):
            _, to_messages, settings, doc_id, task, split = args
            messages = to_messages(self.task_dict[task][split][doc_id])
        else:  # lmms-eval loads a task file given in place of a name this way
            context, settings, to_visual, doc_id, task, split = args
            visuals = to_visual(self.task_dict[task][split][doc_id]) or []
            messages = [{"role": "user", "content": [*({"type": "image", "url": visual} for visual in visuals),
                                                     {"type": "text", "text": context}]}]  # fmt: skip
        return conversation_of(messages, f"task {task!r}"), settings, task

    def _remember_folder(self, requests: Sequence[Instance]) -> None:
        """Where lmms-eval's command writes its results: its arguments hang on every task."""
        for request in requests:
            for part in request.args:
                path = getattr(getattr(getattr(part, "__self__", None), "args", None), "output_path", None)
                if path:
                    self._folder = Path(path) / sanitize_model_name(self._options.model_name)
                    return

    def _working(self) -> Answerer:
        if self._answerer is None:
            raise UnsupportedError(
                complaint("a tokentrim model of lmms-eval", "be used for one evaluation",
                          hint="lmms-eval frees a model after it; make another")
            )  # fmt: skip
        return self._answerer


def _refused(what: str, requests: Sequence[Instance]) -> UnsupportedError:
    """The error for requests that are not served."""
    tasks = sorted({request.task_name for request in requests})
    hint = "leave them out"
    return UnsupportedError(complaint("the tasks", "ask for answers (generate_until)", f"{what} of {tasks}", hint))


def _load(options: HarnessOptions) -> Loaded:
    """The model on this process's own device."""
    if isinstance(options.pretrained, Loaded):
        return options.pretrained
    device, _, number = options.device.partition(":")
    if device != "cpu" and torch.cuda.is_available():
        # Every process of a data-parallel run has a GPU of its own.
        torch.cuda.set_device(int(number or os.environ.get("LOCAL_RANK", "0")))
    names: dict[str, DeviceName] = {"auto": "auto", "cpu": "cpu", "cuda": "cuda"}
    return load_model(
        str(options.pretrained), names[device], options.dtype,
        attn_implementation=options.attn_implementation, device_map=options.device_map,
    )  # fmt: skip
