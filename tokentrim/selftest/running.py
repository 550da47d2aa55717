"""Running a self-test, and refusing what fails it."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import transformers
from torch import nn

from tokentrim.contracts.adapter import Adapter, Layout
from tokentrim.contracts.sites import Need
from tokentrim.engine.seams.attention import implementation_of
from tokentrim.errors import AdapterError, TokentrimError, UnsupportedError, complaint
from tokentrim.progress import Progress, Silent
from tokentrim.selftest.checks import CHECKS
from tokentrim.selftest.pictures import Maker, maker_for
from tokentrim.selftest.shrink import SIZE, Size, build, small_config, windows_of
from tokentrim.selftest.subject import Made, Subject
from tokentrim.selftest.verdict import Failed, Skipped

_PASSING: Final = frozenset({"training", "gradient_checkpointing"})
"""Switches of a module that say nothing of its kind."""

_OPEN_WINDOW: Final = 4096
"""Wider than any prompt of the self-test: what windows hide is for the check of that name."""


@dataclass(frozen=True)
class Result:
    """What one check saw.

    Attributes:
        name: of the check.
        ok: whether it passed; None where it could not be made.
        text: what it saw.
        takes: needs that the model does without because of it; where these are none, a failure refuses the model.
    """

    name: str
    ok: bool | None
    text: str
    takes: frozenset[Need] = frozenset()


@dataclass(frozen=True)
class SelfTest:
    """What became of a model's self-test.

    Attributes:
        adapter: name of the adapter on trial.
        model_class: of the model.
        results: of the checks, in order; nothing follows a failure that refuses the model.
        kinds: kinds of decoder layers that the copy has (see :func:`layer_kinds`).
    """

    adapter: str
    model_class: str
    results: tuple[Result, ...]
    kinds: frozenset[str] = frozenset()

    @property
    def refusal(self) -> Result | None:
        """Why the model is refused, or None where it is not."""
        return next((result for result in self.results if not result.ok and not result.takes), None)

    @property
    def unserved(self) -> dict[Need, str]:
        """What the model does without, and why."""
        return {
            need: f"the self-test found: {result.text}"
            for result in self.results
            if not result.ok
            for need in sorted(result.takes, key=lambda need: need.value)
        }


def self_test(
    model_class: Any, config: Any, adapter: Adapter, *, attention: str | None = None, progress: Progress | None = None
) -> SelfTest:
    """Prove on a small random copy that pruning is right on models of this architecture.

    Runs on the host in float32, in seconds; torch's own generator is left as it was.

    Args:
        model_class: class of the model, with ``generate``.
        config: its configuration, of any size.
        adapter: what is to serve it.
        attention: the attention implementation to run the checks with; None = transformers' choice for the class.
        progress: told what happens.
    """
    told = Silent() if progress is None else progress
    results: list[Result] = []
    told.start(1 + len(CHECKS))
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        subject = subject_of(model_class, config, adapter, attention, results)
        told.step("small copy")
        for name, check, takes in CHECKS if subject else ():
            results.append(result_of(name, check, takes, subject))
            told.step(name)
            if not results[-1].ok and not takes:
                break
    kinds = frozenset[str]() if subject is None else layer_kinds(subject.layout)
    return SelfTest(adapter.name, model_class.__name__, tuple(results), kinds)


def layer_kinds(layout: Layout) -> frozenset[str]:
    """Kinds of decoder layers, by the classes and switches of each layer and its attention; no sizes."""
    return frozenset(
        f"{_kind(layer)} {_kind(module)}" for layer, module in zip(layout.layers, layout.attentions, strict=True)
    )


def _kind(module: nn.Module) -> str:
    marks = [
        f"{name}={value if isinstance(value, bool | str) else value is not None}"
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name not in _PASSING and (value is None or isinstance(value, bool | str | int))
    ]
    return f"{type(module).__name__}({', '.join(marks)})"


def result_of(name: str, check: Any, takes: frozenset[Need], subject: Any) -> Result:
    """What a check saw of a subject; whatever it raises is a failure."""
    try:
        return Result(name, True, check(subject), takes)
    except Skipped as reason:
        return Result(name, None, str(reason), takes)
    except (Failed, TokentrimError) as failure:
        return Result(name, False, str(failure), takes)
    except Exception as error:  # a model may raise anything where it meets what it was not made for
        return Result(name, False, f"{type(error).__name__}: {_first_line(error)}", takes)


def subject_of(
    model_class: Any,
    config: Any,
    adapter: Adapter,
    attention: str | None,
    results: list[Result],
    size: Size = SIZE,
) -> Subject | None:
    """The copy, as small as the family's own arithmetic lets it be; None, and a result that says why, without one."""
    reasons: list[str] = []
    for pictures_too, heads_too in ((True, True), (True, False), (False, True), (False, False)):
        shrink = functools.partial(small_config, config, pictures_too=pictures_too, heads_too=heads_too, size=size)
        make = functools.partial(_made, model_class, shrink, attention)
        try:
            model = make(None, None)
            layout = adapter.locate(model)
            found = maker_for(model, layout.entry, placeholder(layout.entry.config))
            subject = Subject(make, model, adapter, layout, Made(found)) if isinstance(found, Maker) else None
            if subject is not None:
                with torch.no_grad():
                    model(**subject.prompt(0))
        except AdapterError as error:
            results.append(Result("layout", False, str(error)))
            return None
        except Exception as error:  # a configuration that does not shrink says nothing of pruning
            reasons.append(f"{type(error).__name__}: {_first_line(error)}")
            continue
        if isinstance(found, str):
            reasons.append(found)
        elif subject is not None:
            weights = sum(parameter.numel() for parameter in model.parameters())
            results.append(Result("small copy", True, f"{len(layout.layers)} decoder layers, {weights:,} weights"))
            results.append(Result("pictures", True, f"{found.length} visual tokens from {_shown(found)}"))
            return subject
    results.append(Result("small copy", None, f"cannot be self-tested: {'; '.join(dict.fromkeys(reasons))}"))
    return None


def _made(
    model_class: Any, shrink: Callable[..., Any], attention: str | None, implementation: str | None, window: int | None
) -> Any:
    """A copy with an attention implementation (None: the usual one) and windows of a size (None: wide open)."""
    config = shrink(window=_OPEN_WINDOW if window is None else window)
    return build(model_class, config, implementation or attention)


def placeholder(config: Any) -> int:
    """The id of an image's placeholder.

    Raises:
        UnsupportedError: when the config names none.
    """
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise UnsupportedError(
        complaint(f"the config of {config.model_type!r}", "name its image token", "no image_token_id")
    )


def _shown(maker: Maker) -> str:
    shapes = {name: value if isinstance(value, list) else list(value) for name, value in maker.form.items()}
    return ", ".join(f"{name} {value}" for name, value in shapes.items())


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "").strip()


# ---------------------------------------------------------------------- in front of trim

_WRAPPERS: Final = ("torch.", "accelerate.", "peft.")
"""Whose classes wrap a module and run it as it is."""
_KNOWN: dict[tuple[str, ...], SelfTest] = {}
_LOCK = threading.Lock()
_DIGESTS: dict[str, str] = {}  # of configs, by what they say: making a small one takes ten times as long as writing one


def trusted(adapter: Adapter, parts: Iterable[Any]) -> bool:
    """Whether an adapter may serve a decoder without a proof.

    Args:
        adapter: what is to serve it.
        parts: the decoder's layers and attention modules, or its config.
    """
    homes = tuple(f"transformers.models.{name}." for name in adapter.decoders)
    known = all(_origin(part).startswith((*homes, *_WRAPPERS)) for part in parts) if homes else True
    return known and not adapter.needs_proof


def _origin(part: Any) -> str:
    """The Python module of the code that a module runs, or of a config's class."""
    code: Any = type(part).forward if isinstance(part, nn.Module) else type(part)
    return code.__module__


def proven(model: nn.Module, adapter: Adapter, layout: Layout) -> Layout:
    """The layout, with what the self-test found that this model cannot serve; tested once per architecture.

    Raises:
        UnsupportedError: when the model fails its self-test, with the reason.
    """
    test = _tested(model, adapter)
    whom = f"a {test.model_class} with a decoder that the {adapter.name} adapter was not made for"
    if (refusal := test.refusal) is not None:
        raise UnsupportedError(
            complaint(whom, "pass the self-test on a small random copy", f"{refusal.name}: {refusal.text}",
                      "it needs an adapter of its own, if it can have one; 'tokentrim doctor --model' shows all checks")
        )  # fmt: skip
    strange = sorted(layer_kinds(layout) - test.kinds)
    if strange:
        raise UnsupportedError(
            complaint(whom, "have decoder layers of the kinds that its small copy has", strange[0],
                      "what is not proven on a copy is not trimmed: this model needs an adapter of its own")
        )  # fmt: skip
    return replace(layout, unserved={**layout.unserved, **test.unserved})


def _tested(model: nn.Module, adapter: Adapter) -> SelfTest:
    config: Any = model.config
    chosen = model_class_of(config, type(model))
    used = implementation_of(config.get_text_config())
    attention = used if used in ("sdpa", "eager") else None  # the others do not run on the host
    key = (f"{chosen.__module__}.{chosen.__qualname__}", _digest(config), type(adapter).__qualname__, str(attention),
           transformers.__version__)  # fmt: skip
    with _LOCK:
        if key not in _KNOWN:
            _KNOWN[key] = self_test(chosen, config, adapter, attention=attention)
        return _KNOWN[key]


def model_class_of(config: Any, own: type[Any] | None = None) -> Any:
    """The class with ``generate`` for a configuration: the model's own, or transformers' image-text-to-text class.

    Raises:
        UnsupportedError: when there is none.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    known: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    can: Any = getattr(own, "can_generate", None)
    if own is not None and callable(can) and can():
        return own
    if type(config) in known:
        found = known[type(config)]
        return found[0] if isinstance(found, tuple) else found
    if own is not None:
        return own
    raise UnsupportedError(
        complaint("a model to test", "be an image-text-to-text model", config.model_type, "pass another folder")
    )


def _digest(config: Any) -> str:
    """Of all that a small copy is made from."""
    windows = windows_of(config.get_text_config())

    def hashed(data: Mapping[str, Any]) -> str:
        text = json.dumps([type(config).__qualname__, data, windows], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    whole = hashed(config.to_dict())
    if whole not in _DIGESTS:
        _DIGESTS[whole] = hashed(small_config(config).to_dict())
    return _DIGESTS[whole]
