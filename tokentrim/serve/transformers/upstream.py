"""What of transformers' server is built upon: found in the installed release, or refused with those that have it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Final

from tokentrim.errors import UnsupportedError, complaint

TESTED: Final = "5.18 to 5.23"
"""Releases of transformers whose server is known to fit."""

SEAMS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "model_manager.ModelManager": {
            "__init__": ("force_model",),
            "_load_model": ("model_id_and_revision",),
            "_load_processor": ("model_id_and_revision",),
            "process_model_name": ("model_id",),
        },
        "chat_completion.ChatCompletionHandler": {
            "__init__": ("model_manager", "generation_state"),
            "handle_request": ("body", "request_id"),
            "_streaming": ("request_id",),
            "_build_completion": ("request_id", "content", "usage"),
            "_build_chunk_sse": ("request_id", "usage"),
            "_build_generation_config": ("body",),
        },
        "utils.GenerateManager": {
            "generate_streaming": ("model", "processor", "inputs", "gen_config", "request_id", "response_parser"),
            "generate_non_streaming": ("model", "processor", "inputs", "gen_config", "request_id"),
        },
        "utils.GenerationState": {"get_manager": ("model_id", "use_cb")},
    }
)
"""By class below ``transformers.cli.serving``: the methods that are called or overridden, with the parameters meant."""


def require_server() -> None:
    """Look for all that the server is built upon.

    Raises:
        UnsupportedError: when a library is missing, or a part of transformers' server that is replaced.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UnsupportedError(
            complaint(
                "tokentrim serve", "find fastapi, uvicorn and openai", hint="run pip install 'tokentrim-vlm[serve]'"
            )
        )
    missing = [seam for seam in _missing() if seam]
    if missing:
        raise UnsupportedError(
            complaint(
                "the server of transformers",
                f"have {missing[0]}",
                f"transformers {version('transformers')}",
                f"install a release that is known to fit, {TESTED}",
            )
        )


def _missing() -> list[str]:
    """The methods that are not there, or without a parameter that is meant."""
    found: list[str] = []
    for path, methods in SEAMS.items():
        module, _, name = path.partition(".")
        try:
            owner = getattr(import_module(f"transformers.cli.serving.{module}"), name)
        except (ImportError, AttributeError):
            found.append(path)
            continue
        for method, parameters in methods.items():
            there = getattr(owner, method, None)
            if there is None or not set(parameters) <= inspect.signature(there).parameters.keys():
                found.append(f"{name}.{method}({', '.join(parameters)})")
    return found
