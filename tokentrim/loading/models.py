"""Models: found by their name, described by their config, and loaded whole or refused."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tokentrim.contracts.load_options import DeviceName, DTypeName, require_placement
from tokentrim.counting.published import PRESETS, REPOSITORIES
from tokentrim.counting.shape import MOST_LAYERS, ModelShape
from tokentrim.errors import (
    WHOLE,
    ConfigError,
    DataError,
    TokentrimError,
    UnknownNameError,
    UnsupportedError,
    complaint,
    reason_of,
    suggestion,
)
from tokentrim.loading.hub import HubModel, snapshot
from tokentrim.loading.prompts import prepare_tokenizer
from tokentrim.loading.weights import quantised_by, require_attention, require_devices, require_reader, require_whole
from tokentrim.plugins.loader import registry
from tokentrim.reading import utf8

if TYPE_CHECKING:
    from tokentrim.contracts.adapter import Adapter

_LISTED: Final = 8
_NOT_IN_WHEELS: Final = ("testbed-plain",)  # pyproject.toml leaves it out
_GENERATION: Final = "generation_config.json"
_MOST_BYTES: Final = 1 << 24  # of a JSON file that describes a model
_DEPTHS: Final = ("layers", "depth", "blocks", "experts", "labels")
"""How names of numbers end that say how many parts a model has: transformers makes a list of so many."""
_UNTRUSTED: Final = {"local_files_only": True, "trust_remote_code": False}
_EXTRAS: Final = (("smolvlm", "smolvlm"), ("torchvision", "qwen"), ("accelerate", "parallel"))
"""What transformers speaks of when a library is missing, and our extras that bring it."""
_LOADING: Final = threading.RLock()  # what is set for all of transformers while something is loaded


class Loaded(NamedTuple):
    """A model ready to run, and the processor that makes its inputs."""

    model: Any
    processor: Any


def hub_model(name_or_folder: str | Path) -> HubModel | None:
    """The model of the hub that a text names: ``owner/name`` or ``owner/name@revision``.

    None for whatever else it names: a registered name or a path that exists comes first.
    """
    if not isinstance(name_or_folder, str) or name_or_folder in registry("model") or os.path.exists(name_or_folder):
        return None
    return HubModel.spelt(name_or_folder)


def unknown_model(what: str, name: str, names: Iterable[str], must: str = "be a registered name") -> UnknownNameError:
    """The error for a name that may mean a model; says so where a checkout of the source would have it."""
    why = "this model comes with a checkout of tokentrim's source, and not with a wheel. "
    hint = suggestion(name, names)
    return UnknownNameError(complaint(f"the {what}", must, name, why + hint if name in _NOT_IN_WHEELS else hint))


def resolve_folder(name_or_folder: str | Path, *, weights: bool = False) -> Path:
    """The folder of a registered model, the folder itself, or that of a model of the hub.

    Args:
        name_or_folder: in this order a registered name, a path, an id of the hub, perhaps with ``@revision``.
        weights: of a model of the hub fetch the weights, too, not only config and processor.

    Raises:
        UnknownNameError: when the text is none of these.
        DataError: when the folder holds no model, or the hub's cannot be had.
    """
    models = registry("model")
    folder, hub = Path(name_or_folder), hub_model(name_or_folder)
    if isinstance(name_or_folder, str) and name_or_folder in models:
        folder = Path(models.get(name_or_folder)())
    elif hub is not None:
        folder = snapshot(hub, weights=weights)
    elif not os.path.exists(folder):  # no error for what can be no name
        name = str(name_or_folder)
        must = "be a registered name, a model folder, or an id of the hub such as llava-hf/llava-1.5-7b-hf"
        if name in REPOSITORIES:
            known = f"it is a preset of 'tokentrim plan', without weights; its id on the hub is {REPOSITORIES[name]}"
            raise UnknownNameError(complaint("the model", must, name, known))
        raise unknown_model("model", name, models.names(), must)
    try:
        inside = sorted(folder.iterdir()) if folder.is_dir() else []
        odd = [path.name for path in inside if path.exists() and not (path.is_file() or path.is_dir())]
    except OSError as cause:
        raise DataError(complaint(f"the model folder {folder}", "be readable", hint=str(cause))) from cause
    if not (folder / "config.json").is_file():
        names = [path.name for path in inside[:_LISTED]] if folder.is_dir() else "no folder"
        raise DataError(
            complaint(f"the model folder {folder}", "hold a config.json", names, "pass the folder of from_pretrained")
        )
    if odd:
        raise DataError(complaint(f"the model folder {folder}", "hold files, and no pipes or devices", odd))
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's ``config.json``.

    Raises:
        DataError: when it is not readable JSON, or names no model_type.
    """
    path = folder / "config.json"
    data = _json(path)
    if not isinstance(data, dict) or not isinstance(data.get("model_type"), str):
        raise DataError(complaint(f"the model's {path}", "name a model_type", hint="save it with save_pretrained"))
    for name, value in _settings(data):
        if name.endswith(_DEPTHS) and isinstance(value, int | float) and value > MOST_LAYERS:
            raise ConfigError(complaint(f"{name} in {path}", f"be at most {MOST_LAYERS}", value))
        if name.endswith("_implementation") and (isinstance(value, dict) or "/" in str(value)):
            raise ConfigError(
                complaint(f"{name} in {path}", "name no code that would be fetched", value, "take it out of the file")
            )
    return data


def _settings(data: Any) -> Iterable[tuple[str, Any]]:
    """All that a config sets, with its name, whatever part of the model it is set for."""
    for name, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield str(name), value
        if isinstance(value, dict | list):
            yield from _settings(value)


def _json(path: Path) -> Any:
    """What one of a model's JSON files holds.

    Raises:
        DataError: when it is not readable JSON.
    """
    try:
        return json.loads(utf8(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError) as cause:
        raise DataError(complaint(f"the model's {path}", "be readable JSON", hint=reason_of(cause))) from cause


def known_model_types() -> dict[str, str]:
    """``config.model_type`` -> the adapter that serves it, over all registered adapters."""
    return {kind: entry.name for entry in registry("adapter") for kind in entry.tags.get("model_types", ())}


def require_supported(model_type: str, whom: str) -> str:
    """Name of the adapter that serves a model type: its own, or for what takes images and text the fallback.

    Raises:
        UnsupportedError: when there is none; lists the known families.
    """
    known = known_model_types()
    if model_type not in known:
        fallback = next((entry.name for entry in registry("adapter") if entry.tags.get("fallback")), None)
        if fallback is not None and _takes_images_and_text(model_type):
            return fallback
        raise UnsupportedError(
            complaint(f"the family of {whom}", "be one that an adapter recognises", model_type,
                      suggestion(model_type, known))
        )  # fmt: skip
    return known[model_type]


def _takes_images_and_text(model_type: str) -> bool:
    """Whether transformers has an image-text-to-text class for it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    return model_type in NAMES


class Described(NamedTuple):
    """A model's folder as its config describes it; its weights need not be there."""

    folder: Path
    config: Any
    adapter: Adapter
    shape: ModelShape


def describe(name_or_folder: str | Path) -> Described:
    """What a model's config says, read in the one way in which plans, checks and runs read it.

    Raises:
        UnknownNameError: when there is no such model.
        UnsupportedError: when no adapter serves its family.
        DataError: when its config cannot be read.
        ConfigError: when transformers refuses what it says.
    """
    folder, name = resolve_folder(name_or_folder), str(name_or_folder)
    served_by = require_supported(read_config(folder)["model_type"], f"model {name!r}")
    adapter: Adapter = registry("adapter").get(served_by)()
    from transformers import AutoConfig  # after the checks above, because it takes seconds to import

    with _refused(f"the model's {folder / 'config.json'}"), _quiet():
        config = AutoConfig.from_pretrained(folder, **_UNTRUSTED)
        shown = name if name in registry("model") else str(hub_model(name_or_folder) or folder.resolve().name)
        shape = adapter.shape(config, name=shown)
        if shape.vision is not None and shape.vision.n_visual < 1:
            raise ConfigError(complaint("an image of this model", "become one visual token at least", 0))
    file, settings = _preprocessor(folder)
    with _refused(f"the model's {file}"):
        return Described(folder, config, adapter, adapter.preprocessed(shape, settings))


@contextmanager
def _refused(whose: str) -> Generator[None]:
    """Turn whatever transformers or an adapter raises over a description into a ConfigError that names the file."""
    try:
        yield
    except TokentrimError as error:
        raise type(error)(f"{whose}: {error}") from error
    except Exception as cause:  # each field has its own way of being wrong
        require_fitting_torchvision()
        raise ConfigError(complaint(whose, "describe a model", hint=f"it led to {reason_of(cause, WHOLE)}")) from cause


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a model, looked up in this order: preset, registered model, folder with a ``config.json``, hub.

    A folder's shape comes from its config alone, by its adapter's arithmetic; weights need not be there. What happens
    to an image's size comes from its ``preprocessor_config.json`` where that says more than the config.

    Args:
        model: a name, a folder, or an id of the hub.

    Raises:
        UnknownNameError: when it is none of these; suggests the nearest name.
        DataError: when the folder holds no readable ``config.json``.
        ConfigError: when that describes no model; names the file.
        UnsupportedError: when no adapter serves the folder's model family.
    """
    name = str(model)
    if name in PRESETS:
        return PRESETS[name]
    models = registry("model")
    if name not in models and not os.path.exists(model) and hub_model(model) is None:
        raise unknown_model("model", name, [*PRESETS, *models.names()])
    return describe(model).shape


def _preprocessor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file with the settings of a folder's image processor, and these; empty where it has none.

    Raises:
        DataError: when they are not readable JSON.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            data = _json(folder / name)
            found: Any = data.get("image_processor", data) if isinstance(data, dict) else {}
            return folder / name, found if isinstance(found, dict) else {}
    return folder, {}


def load_model(
    name_or_folder: str | Path,
    device: DeviceName = "auto",
    dtype: DTypeName = "auto",
    *,
    attn_implementation: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> Loaded:
    """A model and its processor, from a registered name, a folder, or an id of the hub.

    Args:
        name_or_folder: see :func:`resolve_folder`.
        device: auto takes a GPU where there is one.
        dtype: auto takes the one that the model was saved in.
        attn_implementation: of transformers; None leaves the choice to the model.
        device_map: of transformers, instead of a device; layers may lie on several, or be offloaded.

    Raises:
        UnknownNameError: when there is no such model.
        UnsupportedError: when no adapter serves its family, the device or a library is not there, or it needs code of
            its own.
        ConfigError: when its config describes no model, a word is not known, or both a device and a device map are
            given.
        DataError: when its files are broken, lack weights, hold others than the config asks for, or cannot be fetched.
    """
    require_placement(device, dtype, device_map)
    require_attention(attn_implementation)
    folder, config, *_ = describe(name_or_folder)
    require_devices(device_map, config)
    require_reader(config, folder)
    if (folder / _GENERATION).is_file():
        _json(folder / _GENERATION)  # transformers would do without one that it cannot read
    target = device_of(device)
    processor = load_processor(folder)  # before gigabytes are fetched and read
    resolve_folder(name_or_folder, weights=True)
    import torch
    from transformers import AutoModelForImageTextToText

    if device_map is None and quantised_by(config) is not None:
        device_map = {"": target}  # quantised weights are packed where they are to stay
    auto_model: Any = AutoModelForImageTextToText
    with _loading(f"the model in {folder}"), _quiet():
        model, info = auto_model.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are refused below, by name
            attn_implementation=attn_implementation,
            device_map=device_map,
            **_UNTRUSTED,
        )
        require_whole(folder, info)
        model = (model.to(target) if device_map is None else model).eval()
        model.generation_config.return_dict_in_generate = (
            False  # its folder may say so, but who calls expects token ids
        )
    return Loaded(model, processor)


def load_processor(folder: Path) -> Any:
    """The processor of a model's folder, whose tokenizer pads on the left.

    Raises:
        UnsupportedError: when a library that it needs is not there or does not fit, or it needs code of its own.
        DataError: when its files are broken or missing.
    """
    with _loading(f"the processor of the model in {folder}"), _quiet():
        from transformers import AutoProcessor

        auto_processor: Any = AutoProcessor
        processor = auto_processor.from_pretrained(folder, **_UNTRUSTED)
    if getattr(processor, "tokenizer", None) is None:
        raise DataError(
            complaint(f"the model in {folder}", "come with a processor", type(processor).__name__,
                      "copy processor_config.json or preprocessor_config.json and the tokenizer's files into it")
        )  # fmt: skip
    prepare_tokenizer(processor.tokenizer)
    return processor


def require_fitting_torchvision() -> None:
    """Raise UnsupportedError for a torchvision built for another torch.

    Transformers imports it with most of what it has, and says of a broken one only that something else is missing.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision as _  # noqa: F401  # pyright: ignore
    except Exception as cause:  # an operator, a symbol or a library that is not there
        import torch

        has = f"torchvision {version('torchvision')} beside torch {torch.__version__}"
        hint = f"install both from one index, such as https://download.pytorch.org/whl/cpu; {reason_of(cause, WHOLE)}"
        raise UnsupportedError(complaint("torchvision", "be built for the torch that is here", has, hint)) from cause


@contextmanager
def _loading(whose: str) -> Generator[None]:
    """Turn whatever transformers raises while it loads into one of ours, with all that it says."""
    try:
        yield
    except TokentrimError:
        raise
    except ImportError as cause:
        require_fitting_torchvision()
        said = reason_of(cause, WHOLE)
        extra = next(
            (f"run pip install 'tokentrim-vlm[{extra}]'; " for name, extra in _EXTRAS if name in said.lower()), ""
        )
        raise UnsupportedError(complaint(whose, "find the libraries that it needs", hint=f"{extra}{said}")) from cause
    except Exception as cause:  # whatever the broken file led to
        if "trust_remote_code" in str(cause):
            raise UnsupportedError(
                complaint(whose, "need no code of its own, which is never run", hint="load it "
                          "yourself if you trust it, and pass the model to tokentrim.trim")
            ) from cause  # fmt: skip
        raise DataError(complaint(whose, "load", hint=reason_of(cause, WHOLE))) from cause


def device_of(device: DeviceName) -> str:
    """The device that is meant: auto takes a GPU where there is one.

    Raises:
        UnsupportedError: when it is not there.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UnsupportedError(complaint("device", "be present", device, "torch finds no GPU: use device cpu or auto"))
    return ("cuda" if there else "cpu") if device == "auto" else device


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Transformers' own progress bars, and its question on the terminal whether to run a folder's code, off for now.

    It asks nobody who has said no, but hands that answer not to every part of a processor.
    """
    from transformers import dynamic_module_utils
    from transformers.utils import logging

    with _LOADING:
        enabled, patience = logging.is_progress_bar_enabled(), dynamic_module_utils.TIME_OUT_REMOTE_CODE
        logging.disable_progress_bar()
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
        try:
            yield
        finally:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = patience
            if enabled:
                logging.enable_progress_bar()
