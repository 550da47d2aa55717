"""Names that transformers, accelerate and torch keep to themselves, all that the library knows of them, and their uses.

Whoever follows a new release looks here first; ``attention.py`` and ``sharding.py`` beside it use some too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

PRIVATE_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "_attn_implementation": "transformers.PreTrainedConfig",
        "_attn_implementation_internal": "transformers.PreTrainedConfig",
        "_compiled_call_impl": "torch.nn.Module",
        "_device_mesh": "transformers.PreTrainedModel",
        "_dynamo": "torch",
        "_forward_hooks": "torch.nn.Module",
        "_forward_hooks_always_called": "torch.nn.Module",
        "_forward_hooks_with_kwargs": "torch.nn.Module",
        "_forward_pre_hooks": "torch.nn.Module",
        "_forward_pre_hooks_with_kwargs": "torch.nn.Module",
        "_from_config": "transformers.PreTrainedModel",
        "_get_candidate_generator": "transformers.GenerationMixin",
        "_hf_hook": "accelerate.hooks",
        "_orig_mod": "torch._dynamo.eval_frame",
        "_torchdynamo_orig_callable": "torch._dynamo.eval_frame",
        "_tp_size": "transformers.PreTrainedModel",
    }
)
"""Each private name, with the class or module whose source has it."""

HOOKS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "_forward_pre_hooks": ("_forward_pre_hooks_with_kwargs",),
        "_forward_hooks": ("_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    }
)
"""Attributes of a module that hold its hooks by number, with those that hold what is said of them."""

GUESS_MAKER: Final = "_get_candidate_generator"
"""Method of a model that makes what guesses tokens ahead."""

ORIGINAL: Final = "_orig_mod"
"""Attribute of a compiled module that holds the one that was not compiled."""


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, past its hooks."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return compiled or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model inside the wrappers that a user may pass instead, and whether one of them compiles it.

    Known are PEFT's (every forward ends in their inner model), distributed data parallel, and ``torch.compile``.
    """
    compiled, inner = False, model
    while True:
        if ORIGINAL in dict(inner.named_children()):
            inner, compiled = getattr(inner, ORIGINAL), True
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            inner = getattr(inner, "get_base_model")()  # noqa: B009
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        else:
            return inner, compiled


def built(model_class: Any, config: Any, **options: Any) -> Any:
    """Make a model of a class from its config, with random weights (in public the auto classes alone can)."""
    return model_class._from_config(config, **options)


def compiler() -> Any:
    """What torch compiles with: its settings have no public door."""
    return torch._dynamo  # pyright: ignore[reportPrivateUsage]


def device_of(module: nn.Module) -> Any:
    """Where a module runs: what accelerate says, or where its weights are."""
    hooks = [getattr(part, "_hf_hook", None) for part in module.modules()]  # of itself, or of the parts with weights
    for one in (one for hook in hooks for one in getattr(hook, "hooks", (hook,))):
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return next((parameter.device for parameter in module.parameters()), None)


def attention_settings(config: Any) -> dict[str, Any]:
    """What a config says of the attention implementation, wherever it keeps that."""
    return {name: value for name, value in vars(config).items() if name.startswith("_attn")}


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Let configs name ``function`` as their attention; it is handed no mask, and makes its own."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None
