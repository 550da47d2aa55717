"""What must be so before gigabytes of weights are read, and after: libraries, words, and every weight in its place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from tokentrim.contracts.load_options import SPREADS
from tokentrim.errors import ConfigError, DataError, UnsupportedError, complaint, nearest, suggestion

_NAMED: Final = 2  # weights of a kind
_READERS: Final = {
    "torchao": "torchao",
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "compressed-tensors": "compressed-tensors",
    "auto-round": "auto-round",
    "aqlm": "aqlm",
}
"""Ways to quantise weights, and the package that transformers reads them with; of others it says what it needs."""
_IMPORTED: Final = {
    "optimum-quanto": "optimum", "compressed-tensors": "compressed_tensors", "auto-round": "auto_round"
}  # fmt: skip


def quantised_by(config: Any) -> str | None:
    """How a model's weights are quantised, as its config says; None where they are not.

    Args:
        config: of transformers.
    """
    for part in (config, config.get_text_config(decoder=True)):
        found = getattr(part, "quantization_config", None)
        if found is not None:
            settings: Any = found if isinstance(found, Mapping) else getattr(found, "to_dict", dict)()
            bits = settings.get("load_in_8bit") or settings.get("load_in_4bit")
            method = settings.get("quant_method") or ("bitsandbytes" if bits else "")
            return str(getattr(method, "value", method))
    return None


def require_reader(config: Any, folder: Path) -> None:
    """Raise unless transformers knows how a folder's weights are quantised, and the package for it is there.

    Raises:
        ConfigError: for a way that it does not know, where it would read the weights as if they were plain.
        UnsupportedError: when the package is missing; says how it is installed.
    """
    method = quantised_by(config)
    if method is None:
        return
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    if method not in KNOWN and not method.startswith("bitsandbytes"):
        what = f"quant_method in quantization_config of {folder / 'config.json'}"
        raise ConfigError(complaint(what, "be one that transformers reads", method, suggestion(method, KNOWN)))
    package = _READERS.get(method)
    if package is not None and find_spec(_IMPORTED.get(package, package)) is None:
        raise UnsupportedError(
            complaint(f"the quantised weights in {folder}", f"find the package that reads {method!r}",
                      f"no {package}", f"run pip install {package}")
        )  # fmt: skip


def require_attention(name: str | None) -> None:
    """Raise ConfigError unless an ``attn_implementation`` is one that transformers knows; None is right.

    A kernel of the hub, ``owner/name``, is code that transformers would fetch: whoever trusts it loads the model.
    """
    if name is None:
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(key for key in map(str, ALL_ATTENTION_FUNCTIONS.valid_keys()) if "|" not in key)]
    if name not in known:
        hint = suggestion(name, known)
        raise ConfigError(complaint("attn_implementation of a model", "be one that transformers has", name, hint))


def require_devices(device_map: str | Mapping[str, Any] | None, config: Any) -> None:
    """Look at the devices of a device map, and at the modules that it names: transformers would pass over wrong ones.

    Args:
        device_map: as transformers takes it; None is right.
        config: of the model, which is built without weights where the map names modules.

    Raises:
        UnsupportedError: when a device is not there.
        ConfigError: when the model has no such module, or some of it is given no device.
    """
    named = device_map if isinstance(device_map, Mapping) else {"": device_map}
    for device in dict.fromkeys(map(str, named.values())):
        if device_map is not None and device not in SPREADS:
            _require_present(device)
    if set(named) == {""}:
        return
    import torch
    from transformers import AutoModelForImageTextToText

    auto_model: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model = auto_model.from_config(copy.deepcopy(config))
    weights = [name for name, _ in model.named_parameters()]
    modules = [name for name, _ in model.named_modules()]
    for name in named:
        if name not in modules and name not in weights:
            close, outer = nearest(name, modules), ", ".join(one for one in modules if one and one.count(".") < 2)
            hint = f"Did you mean {close!r}?" if close else f"they begin with {outer}"
            raise ConfigError(complaint("each key of device_map", "be a module of the model", name, hint))
    prefixes = tuple(f"{key}." if key else "" for key in named)
    left = next((name for name in weights if not f"{name}.".startswith(prefixes)), "")
    if left:
        hint = "name all of them, or give '' a device for the rest"
        raise ConfigError(complaint("device_map", f"give every module a device, and gives none to {left}", hint=hint))


def _require_present(device: str) -> None:
    """Raise UnsupportedError for a device that torch does not find; a number is one of its accelerators."""
    import torch

    kind, _, number = (f":{device}" if device.isdigit() else device).partition(":")
    if kind in ("cpu", "disk") and number in ("", "0"):
        return
    there = torch.accelerator.current_accelerator()
    count = 0 if there is None else torch.accelerator.device_count()
    if there is None or kind not in ("", there.type) or int(number or 0) >= count:
        found = "none beside the CPU" if there is None else f"{there.type}:0 to {there.type}:{count - 1}"
        hint = f"torch finds {found}"
        raise UnsupportedError(complaint("each device of device_map", "be present", device, hint))


def require_whole(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise DataError unless a checkpoint holds the weights that its config asks for, and no others.

    Transformers would draw at random what is missing, and leave out what is too many: with a config of fewer layers
    than were trained, some would not run. What it ignores for a family, and weights that are tied, it does not list.
    """
    for key, must in (
        ("missing_keys", "hold all weights that its config asks for; these are missing"),
        ("mismatched_keys", "hold weights of the sizes that its config asks for"),
        ("unexpected_keys", "hold no weights that its config has no place for"),
    ):
        names = sorted(one if isinstance(one, str) else one[0] for one in info.get(key) or ())
        if names:
            got = names if len(names) <= _NAMED else [*names[:_NAMED], f"and {len(names) - _NAMED} more"]
            raise DataError(
                complaint(f"the checkpoint in {folder}", must, ", ".join(got),
                          "copy config.json and all weights of one model; trim() takes what you load yourself")
            )  # fmt: skip
