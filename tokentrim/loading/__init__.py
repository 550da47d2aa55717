"""Loading what users name: models by registered name, folder or id of the hub, their shapes, images, and prompts.

What the hub has is fetched as huggingface_hub's settings allow (``hub.py``); a folder needs no network. No code of a
model is run: one that needs its own is loaded by whoever trusts it, and handed to :func:`tokentrim.trim`.
"""

from tokentrim.contracts.load_options import DeviceName, DTypeName
from tokentrim.counting.published import PRESETS
from tokentrim.loading.hub import HubModel
from tokentrim.loading.models import (
    Described,
    Loaded,
    describe,
    device_of,
    hub_model,
    known_model_types,
    load_model,
    load_processor,
    read_config,
    require_fitting_torchvision,
    require_supported,
    resolve_folder,
    shape_of,
    unknown_model,
)
from tokentrim.loading.prompts import (
    chat_text,
    conversation_inputs,
    on_device,
    prompt_inputs,
    require_watching,
    single_turn,
    takes_videos,
    text_inputs,
)
from tokentrim.loading.weights import quantised_by, require_attention, require_reader
from tokentrim.reading import Video, as_shown, load_image, load_video

__all__ = [
    "PRESETS",
    "DTypeName",
    "Described",
    "DeviceName",
    "HubModel",
    "Loaded",
    "Video",
    "as_shown",
    "chat_text",
    "conversation_inputs",
    "describe",
    "device_of",
    "hub_model",
    "known_model_types",
    "load_image",
    "load_model",
    "load_processor",
    "load_video",
    "on_device",
    "prompt_inputs",
    "quantised_by",
    "read_config",
    "require_attention",
    "require_fitting_torchvision",
    "require_reader",
    "require_supported",
    "require_watching",
    "resolve_folder",
    "shape_of",
    "single_turn",
    "takes_videos",
    "text_inputs",
    "unknown_model",
]
