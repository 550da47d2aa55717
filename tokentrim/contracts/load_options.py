"""How a model is loaded: where to, in which number format, with which attention; one spelling for all who name one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tokentrim.errors import ConfigError, complaint, suggestion

DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]
DTypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap: TypeAlias = str | dict[str, str | int]

SPREADS: Final = ("auto", "balanced", "balanced_low_0", "sequential")
"""Words for which transformers asks each device how much room it has."""
_DEVICE: Final = re.compile(r"(cpu|cuda|xpu|mps|npu|hpu|mlu|musa|sdaa|qaic)(:\d+)?", re.A)
_DISK: Final = "disk"
_SHOWN: Final = ("cpu", "cuda", "cuda:0")
RARE: Final = ("attn_implementation", "device_map")
"""What few set."""


class LoadOptions(BaseModel):
    """How a model is loaded, beside which one; its fields are also keys of every file that names a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: DeviceName = Field(default="auto", description="auto takes a GPU where there is one")
    dtype: DTypeName = Field(default="auto", description="auto takes the one that the model was saved in")
    attn_implementation: str | None = Field(
        default=None, description="of transformers, such as sdpa or eager; default: the model's own choice"
    )
    device_map: DeviceMap | None = Field(
        default=None,
        description="instead of device: auto, balanced, sequential, a device, or a device for each module by its name",
    )

    @field_validator("device_map")
    @classmethod
    def _devices(cls, value: DeviceMap | None) -> DeviceMap | None:
        problem = _misplaced(value)
        if problem:
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _one_place(self) -> LoadOptions:
        if self.device_map is not None and self.device != "auto":
            raise ValueError(_two_places(self.device))
        return self

    @model_serializer(mode="wrap")
    def _without_rare(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What few set is written where it is set: files and keys of those who set nothing stay what they were."""
        written: dict[str, Any] = write(self)
        here = LoadOptions.model_fields
        return {key: written[key] for key in sorted(written, key=lambda key: key in here)
                if key not in RARE or written[key] is not None}  # fmt: skip

    @property
    def loading(self) -> dict[str, Any]:
        """Keyword arguments of :func:`tokentrim.loading.load_model`."""
        return {name: getattr(self, name) for name in LoadOptions.model_fields}


def require_placement(device: object, dtype: object, device_map: object) -> None:
    """Raise ConfigError unless these are right as keys of a :class:`LoadOptions`.

    Args:
        device: a word.
        dtype: a word.
        device_map: as transformers takes it, so also a mapping to a ``torch.device``; None is right.
    """
    for key, value, known in (("device", device, get_args(DeviceName)), ("dtype", dtype, get_args(DTypeName))):
        if value not in known:
            raise ConfigError(complaint(f"{key} of a model", "be a known one", value, suggestion(str(value), known)))
    problem = _misplaced(device_map)
    if not problem and device_map is not None and device != "auto":
        problem = _two_places(device)
    if problem:
        raise ConfigError(problem)


def _misplaced(device_map: object) -> str:
    """What is wrong with a device map; empty where nothing is."""
    if isinstance(device_map, Mapping):
        for module, device in device_map.items():
            if device != _DISK and not _is_device(device):
                hint = f"numbers are GPUs'. {suggestion(str(device), (*_SHOWN, _DISK))}"
                return complaint(f"the device of {str(module)!r} in device_map", "be one", device, hint)
    elif isinstance(device_map, str) and device_map not in SPREADS and not _is_device(device_map):
        must = "be a device, or a word that says how layers are spread"
        return complaint("device_map of a model", must, device_map, suggestion(device_map, (*SPREADS, *_SHOWN)))
    return ""


def _is_device(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and value >= 0
    return _DEVICE.fullmatch(str(value)) is not None


def _two_places(device: object) -> str:
    return complaint("a model's device_map", "stand alone", f"device {device!r}", "leave the device out")
