"""One task of lmms-eval as a task of a comparison."""

from __future__ import annotations

import importlib
import inspect
import math
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from tokentrim.contracts.tasks import Sample, Split, Task
from tokentrim.errors import ConfigError, DataError, complaint, suggestion
from tokentrim.harness.generation import generation_of
from tokentrim.harness.options import LONGEST_ANSWER
from tokentrim.tasks.messages import conversation_of

_CACHED: Final = 4096


class LmmsTask(Task):
    """A task of lmms-eval: its documents, its prompts, and one of its metrics.

    Args:
        name: under which it was asked for.
        task: lmms-eval's object.
        metric: one of its metrics; None: the first that it lists.

    Raises:
        ConfigError: when it does not ask for answers, samples them or searches beams, or has no such metric.
    """

    metric = "graded"

    def __init__(self, name: str, task: Any, metric: str | None = None) -> None:
        self.name = name
        self._task = task
        if task.OUTPUT_TYPE != "generate_until":
            raise ConfigError(
                complaint(f"task {name!r}", "ask for answers (output_type generate_until)", task.OUTPUT_TYPE,
                          "choose another")
            )  # fmt: skip
        self._generation = generation_of(task.config.generation_kwargs, LONGEST_ANSWER)
        if not self._generation.is_greedy:
            raise ConfigError(
                complaint(f"task {name!r}", "be answered greedily in a comparison",
                          {key: self._generation.settings[key] for key in ("do_sample", "num_beams")},
                          "run it by lmms-eval itself, with --model tokentrim")
            )  # fmt: skip
        self.max_new_tokens = self._generation.max_new_tokens
        self.metric_name = self._chosen(metric)
        self.description = f"{task.config.task} of lmms-eval, {self.metric_name}"
        self._payload = lru_cache(maxsize=_CACHED)(self._scored)

    def _chosen(self, metric: str | None) -> str:
        """The metric: one of the task's own, of which more is better."""
        listed: Mapping[str, Any] = self._task.aggregation()
        chosen = metric or next(iter(listed), "")
        if chosen not in listed:
            raise ConfigError(
                complaint(f"the metric of task {self.name!r}", "be one of the task's own", chosen,
                          suggestion(chosen, listed))
            )  # fmt: skip
        if not self._task.higher_is_better().get(chosen, True):
            raise ConfigError(
                complaint(f"the metric of task {self.name!r}", "be one of which more is better", chosen,
                          "choose another with lmms:NAME@METRIC")
            )  # fmt: skip
        return chosen

    def samples(self, split: Split, n: int) -> Sequence[Sample]:
        """The first n documents of a split.

        ``test`` are the documents that lmms-eval evaluates; ``calibration`` its training split, or the validation
        split of a task that is evaluated on another.

        Raises:
            DataError: when there are no documents to calibrate on, or a prompt is not to be had.
            UnsupportedError: when a prompt holds more than text and images.
        """
        docs = self._docs(split)
        return [self._sample(split, place, docs[place]) for place in range(min(n, len(docs)))]

    def _docs(self, split: Split) -> Any:
        task = self._task
        if split == "test":
            return task.eval_docs
        if task.has_training_docs():
            return task.training_docs()
        if task.has_test_docs() and task.has_validation_docs():
            return task.validation_docs()
        raise DataError(
            complaint(f"task {self.name!r}", "have documents to calibrate on", "no split beside the evaluated one",
                      "calibrate on another task")
        )  # fmt: skip

    def _sample(self, split: Split, place: int, doc: Any) -> Sample:
        prompt = conversation_of(self._task.doc_to_messages(doc), f"task {self.name!r}")
        answer = self._task.doc_to_target(doc)
        return Sample(
            f"{self.name}/{split}/{place:05d}",
            prompt.images,
            prompt.text,
            str(answer[0] if isinstance(answer, list | tuple) and answer else answer),
            messages=None if prompt.is_plain else prompt.turns,
        )

    def score(self, sample: Sample, prediction: str) -> float | None:
        """The metric's number for one answer, where it has one: its value, or the ``score`` that its value holds."""
        payload = self._payload(sample.id, prediction)
        value = payload.get("score") if isinstance(payload, Mapping) else payload
        return float(value) if isinstance(value, int | float) else None

    def aggregate(self, answered: Sequence[tuple[Sample, str]]) -> float | None:
        """What the task's own aggregation makes of all answers.

        Raises:
            ConfigError: when that is no number.
        """
        payloads = [self._payload(sample.id, prediction) for sample, prediction in answered]
        payloads = [payload for payload in payloads if payload is not None]
        if not payloads:
            raise ConfigError(
                complaint(f"the metric of task {self.name!r}", "say something of one of these answers",
                          self.metric_name, "choose another with lmms:NAME@METRIC")
            )  # fmt: skip
        function = self._task.aggregation()[self.metric_name]
        # Some aggregations also write files where the command would; those are of no use here.
        with tempfile.TemporaryDirectory() as folder:
            more = {"args": Namespace(output_path=folder)} if "args" in inspect.signature(function).parameters else {}
            value = function(payloads, **more)
        if not isinstance(value, int | float) or math.isnan(value):
            raise ConfigError(
                complaint(f"the metric of task {self.name!r}", "be a number",
                          f"{self.metric_name} = {value!r}", "choose another with lmms:NAME@METRIC")
            )  # fmt: skip
        return float(value)

    def _scored(self, sample: str, prediction: str) -> Any:
        """What the task says of one answer under its metric, its filters applied; None where it says nothing."""
        instances: Any = importlib.import_module("lmms_eval.api.instance")
        # The name that samples() gave it says which document it is, in any process.
        _, named, number = sample.rsplit("/", 2)
        split, place = cast("Split", named), int(number)
        instance = instances.Instance(
            request_type="generate_until", arguments=(), idx=0,
            metadata={"task": self._task.config.task, "doc_id": place, "repeats": 1},
        )  # fmt: skip
        docs = self._docs(split)
        instance.resps = [self._generation.cut(prediction)]
        for ensemble in self._task._filters:
            ensemble.apply([instance], docs)
        found = next(iter(instance.filtered_resps.values()))
        return self._task.process_results(docs[place], [found]).get(self.metric_name)
