"""Loading what users name: models by registered name or folder, their shapes alone, and images by file.

Nothing here reaches the network: a model is a folder. Download one with ``hf download`` and pass its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from tokentrim.counting.published import PRESETS
from tokentrim.counting.shape import ModelShape
from tokentrim.errors import DataError, UnknownNameError, UnsupportedError, complaint, suggestion, unknown_name
from tokentrim.plugins.loader import registry

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from tokentrim.contracts.adapter import Adapter

DeviceName: TypeAlias = Literal["auto", "cpu", "cuda"]
DTypeName: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
_SAMPLED_BYTES: Final = 1 << 20
_LISTED: Final = 8
_GREY_OF_16_BITS: Final = ("PNG", "PPM")
"""Formats whose grey values Pillow may hand out as integers of 32 bits, though white is 65535."""


class Loaded(NamedTuple):
    """A model ready to run, and the processor that makes its inputs."""

    model: Any
    processor: Any


def resolve_folder(name_or_folder: str | Path) -> Path:
    """The folder of a registered model, or the folder itself.

    Raises:
        UnknownNameError: when the text is neither a registered name nor an existing path.
        DataError: when the folder holds no model.
    """
    models = registry("model")
    folder = Path(name_or_folder)
    if isinstance(name_or_folder, str) and name_or_folder in models:
        folder = Path(models.get(name_or_folder)())
    elif not folder.exists():
        raise UnknownNameError(
            complaint("the model", "be a registered name or a model folder", str(name_or_folder),
                      suggestion(str(name_or_folder), models.names()))
        )  # fmt: skip
    if not (folder / "config.json").is_file():
        inside = sorted(path.name for path in folder.iterdir())[:_LISTED] if folder.is_dir() else "no folder"
        raise DataError(
            complaint(f"the model folder {folder}", "hold a config.json", inside, "pass the folder of from_pretrained")
        )
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
    return data


def _json(path: Path) -> Any:
    """What one of a model's JSON files holds.

    Raises:
        DataError: when it is not readable JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise DataError(complaint(f"the model's {path}", "be readable JSON", hint=str(cause))) from cause


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


def shape_of(model: str | Path) -> ModelShape:
    """The shape of a model, looked up in this order: preset, registered model, folder with a ``config.json``.

    A folder's shape comes from its config alone, by its adapter's arithmetic; weights need not be there. What happens
    to an image's size comes from its ``preprocessor_config.json`` where that says more than the config.

    Args:
        model: a name, or a folder.

    Raises:
        UnknownNameError: when it is none of these; suggests the nearest name.
        DataError: when the folder holds no readable ``config.json``.
        UnsupportedError: when no adapter serves the folder's model family.
    """
    name = str(model)
    if name in PRESETS:
        return PRESETS[name]
    models = registry("model")
    if name not in models and not Path(model).exists():
        raise unknown_name("model", name, [*PRESETS, *models.names()])
    folder = resolve_folder(model)
    model_type: str = read_config(folder)["model_type"]
    adapter: Adapter = registry("adapter").get(require_supported(model_type, f"model {name!r}"))()
    from transformers import AutoConfig  # after the checks above, because it takes seconds to import

    label = name if name in models else folder.resolve().name
    shape = adapter.shape(AutoConfig.from_pretrained(folder, local_files_only=True), name=label)
    return adapter.preprocessed(shape, _preprocessor(folder))


def _preprocessor(folder: Path) -> dict[str, Any]:
    """Settings of a folder's image processor; empty where it has none.

    Raises:
        DataError: when they are not readable JSON.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            data = _json(folder / name)
            found: Any = data.get("image_processor", data) if isinstance(data, dict) else {}
            return found if isinstance(found, dict) else {}
    return {}


def load_model(name_or_folder: str | Path, device: DeviceName = "auto", dtype: DTypeName = "auto") -> Loaded:
    """A model and its processor, from a registered name or a folder.

    Args:
        name_or_folder: see :func:`resolve_folder`.
        device: auto takes a GPU where there is one.
        dtype: auto takes the one that the model was saved in.

    Raises:
        UnknownNameError: when there is no such model.
        UnsupportedError: when no adapter serves its family, or the device is not there.
        DataError: when its files are broken.
    """
    folder = resolve_folder(name_or_folder)
    require_supported(read_config(folder)["model_type"], f"model {str(name_or_folder)!r}")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    target = device_of(device)
    auto_model: Any = AutoModelForImageTextToText
    auto_processor: Any = AutoProcessor
    number = "auto" if dtype == "auto" else getattr(torch, dtype)
    try:
        with _quiet():
            model = auto_model.from_pretrained(folder, dtype=number, local_files_only=True)
            processor = auto_processor.from_pretrained(folder, local_files_only=True)
    except Exception as cause:  # transformers raises whatever the broken file led to
        raise DataError(
            complaint(f"the model in {folder}", "load", hint=f"{type(cause).__name__}: {_first_line(cause)}")
        ) from cause
    if getattr(processor, "tokenizer", None) is None:
        raise DataError(
            complaint(f"the model in {folder}", "come with a processor", type(processor).__name__,
                      "copy processor_config.json or preprocessor_config.json and the tokenizer's files into it")
        )  # fmt: skip
    _prepare_tokenizer(processor.tokenizer)
    return Loaded(model.to(target).eval(), processor)


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
    """Transformers' own progress bars off, and back as they were."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _prepare_tokenizer(tokenizer: Any) -> None:
    """Left padding, so that every row of a batch ends where its answer begins."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def on_device(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Model inputs where the model is, floating-point ones in its number format."""
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}


def prompt_inputs(processor: Any, questions: Sequence[str], images: Sequence[Sequence[Any]]) -> Any:
    """Model inputs of a batch of single-turn questions, left-padded, through the processor's own chat template.

    Args:
        processor: as :func:`load_model` returns it.
        questions: one text per row.
        images: the images of each row, in front of its text.

    Raises:
        DataError: when the processor refuses them.
    """
    turns = [single_turn(question, len(shown)) for question, shown in zip(questions, images, strict=True)]
    return conversation_inputs(processor, turns, images)


def single_turn(question: str, n_images: int) -> tuple[dict[str, Any], ...]:
    """A conversation of one user turn: images, then text."""
    content = [*({"type": "image"} for _ in range(n_images)), {"type": "text", "text": question}]
    return ({"role": "user", "content": content},)


def conversation_inputs(
    processor: Any, conversations: Sequence[Sequence[Mapping[str, Any]]], images: Sequence[Sequence[Any]]
) -> Any:
    """Model inputs of a batch of conversations, left-padded, each up to where the model's answer begins.

    Args:
        processor: as :func:`load_model` returns it.
        conversations: per row its turns, ``{"role": ..., "content": [...]}``, of ``{"type": "text", "text": ...}`` and
            ``{"type": "image"}``.
        images: the images of each row, in the order of their places.

    Raises:
        DataError: when the processor refuses them.
    """
    texts = [_chat(processor, turns) for turns in conversations]
    begin = processor.tokenizer.bos_token
    # Some chat templates write the begin token themselves; a second one changes the answers.
    written = begin is not None and texts[0].startswith(begin)
    try:
        return processor(
            text=texts,
            images=[list(shown) for shown in images] if any(map(len, images)) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not written,
        )
    except Exception as cause:  # processors differ in what they raise
        raise DataError(
            complaint("the prompt", "be accepted by the model's processor", texts[:3],
                      f"{type(cause).__name__}: {_first_line(cause)}")
        ) from cause  # fmt: skip


def _chat(processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as text; a model without a chat template gets its placeholders and the plain words of one turn."""
    if getattr(processor, "chat_template", None) is None:
        if len(turns) != 1:
            raise DataError(
                complaint("a conversation of several turns", "meet a model with a chat template",
                          [turn["role"] for turn in turns], "save a chat_template with the model's processor")
            )  # fmt: skip
        return "".join(
            f"{processor.image_token}\n" if part["type"] == "image" else part["text"] for part in turns[0]["content"]
        )
    return processor.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False)


def load_image(path: str | Path) -> Image.Image:
    """An image file as RGB, as viewers show it: see :func:`as_shown`.

    Raises:
        DataError: when it is missing or cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as file:
            return as_shown(file)
    except FileNotFoundError as cause:
        raise DataError(complaint("the image", "be an existing file", str(path), "check the path")) from cause
    except Exception as cause:  # Pillow's readers raise whatever the broken file led to
        raise DataError(
            complaint("the image", "be readable", str(path), f"{_first_line(cause)}; re-save it as PNG or JPEG")
        ) from cause


def as_shown(image: Image.Image) -> Image.Image:
    """An image as RGB of 8 bits, turned as its EXIF tag says.

    Raises:
        DataError: for grey values whose white is unknown (integers of 32 bits, floating-point numbers).
    """
    from PIL import Image, ImageOps

    if image.mode == "F" or (image.mode == "I" and image.format not in _GREY_OF_16_BITS):
        raise DataError(
            complaint("an image's grey values", "have 8 or 16 bits", f"mode {image.mode}", "scale them to 0..255")
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # convert would cut off all that is above 255
        import numpy as np

        image = Image.fromarray((np.asarray(image).astype(np.float64) * (255 / 65535)).round().astype(np.uint8))
    return image.convert("RGB")


def fingerprint(folder: Path) -> str:
    """Short hash of a model's files: names, sizes, and the first and last MiB of each; enough to notice new weights."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            continue
        size = path.stat().st_size
        total.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            total.update(file.read(_SAMPLED_BYTES))
            file.seek(max(0, size - _SAMPLED_BYTES))
            total.update(file.read(_SAMPLED_BYTES))
    return total.hexdigest()[:16]


def _first_line(cause: BaseException) -> str:
    """The first line of a message, or the class where there is none."""
    return str(cause).strip().split("\n", 1)[0].rstrip(".") or type(cause).__name__
