"""Small models to check on: copies of every registered family with random weights, and models of an adapter's author.

Nothing is read from disk or network: a copy is made of a configuration alone (:meth:`Adapter.example_config`), with
everything as in the family but few and narrow layers.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from tokentrim.contracts.adapter import Adapter
from tokentrim.errors import UnknownNameError, UnsupportedError, complaint, unknown_name
from tokentrim.loading import known_model_types
from tokentrim.plugins.loader import registry
from tokentrim.selftest.running import Result, model_class_of, subject_of
from tokentrim.selftest.shrink import Size
from tokentrim.selftest.subject import Made, Rows, Subject

SIZES: Final = (Size(layers=6, patches=6, blocks=5), Size(layers=6, patches=12, blocks=5))
"""Of copies; the second is for families that need larger pictures."""

RAGGED: Final[Rows] = ((3, 5), (2, 4, 7), (9,))
"""Text tokens around the pictures of each row of a batch: one picture, two, none."""
SIMPLE: Final[Rows] = ((3, 5), (9, 4), (9,))
"""The same for families in which two pictures are not twice one."""


def small_model(family: str | None = None) -> Subject:
    """A small random copy of a registered family, with prompts: ``.model``, ``.prompt(0, 1, 2)``, ``.layout``.

    The same object for every caller, as nothing in the suite changes it. Prompt 0 has one picture, 1 two (one, where
    two pictures of a prompt are encoded otherwise than each alone), 2 none.

    Args:
        family: a ``config.model_type``; None = the first that serves the most needs, of those whose pictures all have
            the same number of tokens.

    Raises:
        UnknownNameError: when no registered adapter serves the family.
        UnsupportedError: when no small copy can be made of it.
    """
    return _small(_plainest() if family is None else family)


@functools.cache
def _small(family: str) -> Subject:
    known = known_model_types()
    if family not in known:
        raise unknown_name("model family", family, known)
    adapter: Adapter = registry("adapter").get(known[family])()
    return example_subject(adapter, family)


def forget_small_models() -> None:
    """Make new ones from now on."""
    _small.cache_clear()
    _plainest.cache_clear()


@functools.cache
def _plainest() -> str:
    unserved: dict[str, int] = {}
    for family, name in known_model_types().items():
        adapter: Adapter = registry("adapter").get(name)()
        if adapter.example_config(family) is not None:
            subject = _small(family)
            if adapter.fixed_length(subject.layout, "image") is not None:
                unserved[family] = len(subject.layout.unserved)
                if not unserved[family]:
                    break
    if unserved:
        return min(unserved, key=unserved.__getitem__)
    raise UnknownNameError(
        complaint("a model family for the checks", "be served by a registered adapter", sorted(known_model_types()),
                  "pass families=[...], or load the built-in adapters")
    )  # fmt: skip


def example_subject(adapter: Adapter, family: str) -> Subject:
    """A small random copy of a family that ``adapter`` serves.

    Raises:
        UnsupportedError: when the adapter has no example of it, or none that can be made small; says why.
    """
    config = adapter.example_config(family)
    if config is None:
        raise UnsupportedError(
            complaint(f"adapter {adapter.name!r}", f"give an example_config of {family!r} to be checked on it", None,
                      "override Adapter.example_config, or pass tokentrim.testing.Example(adapter, model, rows)")
        )  # fmt: skip
    results: list[Result] = []
    with torch.random.fork_rng(devices=[]):
        for size in SIZES:
            results.clear()
            made = subject_of(model_class_of(config), config, adapter, None, results, size)
            if made is not None:
                fixed = adapter.fixed_length(made.layout, "image") is not None
                return _with_rows(made, RAGGED if fixed or _counts_alike(made) else SIMPLE)
    raise UnsupportedError(
        complaint(f"the example_config of adapter {adapter.name!r}", "make a small model",
                  "; ".join(result.text for result in results), "return a configuration that transformers can build")
    )  # fmt: skip


def _with_rows(subject: Subject, rows: Rows) -> Subject:
    return replace(subject, prompts=Made(subject.maker, rows))


def _counts_alike(subject: Subject) -> bool:
    """Whether a prompt of two pictures runs with twice the placeholders of one."""
    try:
        with torch.no_grad():
            subject.model(**_with_rows(subject, RAGGED).prompt(1))
    except Exception:  # whatever the family raises where its counts do not fit
        return False
    return True


# ---------------------------------------------------------------------- models that an author hands over


@dataclass(frozen=True)
class Example:
    """A model to check an adapter on, with prompts for it.

    Attributes:
        adapter: on trial.
        model: a small model with random weights, or a function that makes one (the same every time). It is copied,
            never changed; float32, on the host, at least four decoder layers.
        rows: one or more prompts as the processor makes them, each of one row without padding, ending in text; with
            pictures in at least the first two.
        batch: the same rows as one left-padded batch; None = ``rows`` are joined: what has the shape of ``input_ids``
            is padded, everything else is concatenated.
    """

    adapter: Adapter
    model: nn.Module | Callable[[], nn.Module]
    rows: Sequence[Mapping[str, Any]]
    batch: Mapping[str, Any] | None = None

    def subject(self) -> Subject:
        """What the checks run on."""
        model = _built(self.model, None, None)
        build = functools.partial(_built, self.model)
        prompts = _Given(tuple(self.rows), self.batch)
        return Subject(build, model, self.adapter, self.adapter.locate(model), prompts)


def _built(source: nn.Module | Callable[[], nn.Module], attention: str | None, window: int | None) -> Any:
    """A model of an author's, with another attention implementation where one is asked for; windows stay."""
    made: Any = copy.deepcopy(source) if isinstance(source, nn.Module) else cast("Callable[[], Any]", source)()
    if attention is not None:
        made.set_attn_implementation(attention)
    made = made.eval()
    settings = made.generation_config
    settings.eos_token_id, settings.do_sample = None, False
    settings.suppress_tokens = _placeholders(made.config) or None  # an answer holds none
    settings.pad_token_id = 0 if settings.pad_token_id is None else settings.pad_token_id
    return made


def _placeholders(config: Any) -> list[int]:
    values = [getattr(config, f"{kind}_token_id", None) for kind in ("image", "video")]
    return [value for value in values if isinstance(value, int)]


@dataclass(frozen=True)
class _Given:
    """Prompts of an author's."""

    rows: tuple[Mapping[str, Any], ...]
    batch: Mapping[str, Any] | None

    def __len__(self) -> int:
        return len(self.rows)

    def prompt(self, *rows: int) -> dict[str, Any]:
        """One row as it is, all of them as the author batches them, or some of them joined."""
        if len(rows) == 1:
            return dict(self.rows[rows[0]])
        if self.batch is not None and rows == tuple(range(len(self.rows))):
            return dict(self.batch)
        return joined([self.rows[row] for row in rows])


def joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prompts of one row as a left-padded batch: per-token inputs are padded with zeros, others concatenated."""
    ids: list[Tensor] = [row["input_ids"] for row in rows]
    width = max(line.shape[1] for line in ids)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = [(row[name], line) for row, line in zip(rows, ids, strict=True) if name in row]
        if name == "attention_mask":
            continue
        per_token = all(isinstance(value, Tensor) and value.shape == line.shape for value, line in parts)
        found[name] = torch.cat([_padded(value, width) if per_token else value for value, _ in parts])
    found["attention_mask"] = torch.cat([_padded(torch.ones_like(line), width) for line in ids])
    return found


def _padded(line: Tensor, width: int) -> Tensor:
    return nn.functional.pad(line, (width - line.shape[1], 0))
