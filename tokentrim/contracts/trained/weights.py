"""Weights files of trainable strategies: safetensors alone, with a header that says what the weights are for.

Metadata, one JSON text under the key ``tokentrim``: ``format``, ``strategy`` (its name), ``made_for`` (sizes of the
model, and parameters of the strategy that another one cannot share), ``sizes`` (of the trained module), ``model`` (the
one trained on: name, fingerprint, sketch), ``provenance`` (how they were trained), ``digest`` (of the tensors).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokentrim.errors import StrategyError, complaint, reason_of
from tokentrim.reading import regular

if TYPE_CHECKING:
    from torch import Tensor

FORMAT: Final = "tokentrim-weights-1"
_KEY: Final = "tokentrim"


@dataclass(frozen=True)
class Header:
    """What a weights file says of itself.

    Attributes:
        strategy: name of the strategy.
        made_for: numbers that model and strategy must share with those it was trained for.
        sizes: numbers that the module was built with.
        model: name, fingerprint and sketch (see ``sketch.py``) of the model trained on; empty if untrained.
        provenance: how it was trained.
    """

    strategy: str
    made_for: Mapping[str, int]
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])


def write_weights(path: Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write a weights file, whole or not at all.

    Args:
        path: the file; its folder is made.
        tensors: the module's ``state_dict()``.
        header: what to write beside them.

    Raises:
        StrategyError: when it cannot be written.
    """
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"format": FORMAT, **asdict(header), "digest": _digest(ready)}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One key: safetensors writes several in any order, and the same training is to write the same file.
        part.write_bytes(save(ready, metadata={_KEY: json.dumps(about, sort_keys=True)}))
        os.replace(part, path)
    except OSError as cause:
        raise StrategyError(complaint(f"the weights file {path}", "be writable", hint=f"{cause}")) from cause
    finally:
        part.unlink(missing_ok=True)


def read_header(path: Path) -> Header:
    """The header of a weights file, without reading its tensors.

    Raises:
        StrategyError: when it is missing, or is not a weights file.
    """
    return _parse(path, _open(path)[0])


def read_weights(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """A weights file.

    Raises:
        StrategyError: when it is missing, is not a weights file, or its tensors are not those that were written.
    """
    about, tensors = _open(path, tensors=True)
    header = _parse(path, about)
    if about.get("digest") != _digest(tensors):
        raise StrategyError(
            complaint(f"the weights file {path}", "hold the tensors that it was written with",
                      hint="it is damaged: copy or train it again")
        )  # fmt: skip
    return header, tensors


def file_digest(path: Path) -> str:
    """The digest of a weights file's tensors.

    Raises:
        StrategyError: see :func:`read_weights`.
    """
    return _digest(read_weights(path)[1])


def _open(path: Path, *, tensors: bool = False) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata, and the tensors where they are wanted. Nothing but safetensors is read: a pickle runs code."""
    from safetensors import safe_open

    opened: Any = safe_open
    try:
        with opened(regular(path), framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "{}")
            found = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError as cause:
        raise StrategyError(
            complaint("the weights file", "be there", str(path), "check the path; a relative one is meant from the "
                      "configuration file's folder, or from here")
        ) from cause  # fmt: skip
    except Exception as cause:  # torch knows not every type of number that the format has
        raise StrategyError(
            complaint(f"the weights file {path}", "be readable safetensors", hint=reason_of(cause))
        ) from cause
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise StrategyError(complaint(f"the header of {path}", "be JSON", text, reason_of(cause))) from cause
    return about if isinstance(about, dict) else {}, found


def _parse(path: Path, about: Mapping[str, Any]) -> Header:
    try:
        values = {key: about[key] for key in ("format", *Header.__dataclass_fields__)}
    except KeyError as cause:
        raise StrategyError(
            complaint(f"the weights file {path}", f"have the header of {FORMAT}", sorted(about),
                      "write it with 'tokentrim train'")
        ) from cause  # fmt: skip
    written = values.pop("format")
    if written != FORMAT:
        raise StrategyError(complaint(f"the format of {path}", f"be {FORMAT}", written, "train the weights again"))
    header = Header(**values)
    maps = (header.made_for, header.sizes, header.model, header.provenance)
    numbers = [number for one in maps[:2] if isinstance(one, dict) for number in one.values()]
    sketch: Any = header.model.get("sketch", {}) if isinstance(header.model, dict) else {}
    if not (
        isinstance(header.strategy, str)
        and all(isinstance(one, dict) for one in maps)
        and all(type(number) is int for number in numbers)
        and isinstance(sketch, dict)
        and all(isinstance(some, list) and all(isinstance(n, float | int) for n in some) for some in sketch.values())
    ):
        raise StrategyError(
            complaint(f"the header of {path}", "name its strategy, and whole numbers of its model and module", values,
                      "write it with 'tokentrim train'")
        )  # fmt: skip
    return header


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
