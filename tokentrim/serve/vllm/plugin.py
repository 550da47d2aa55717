"""The entry point of ``vllm.general_plugins``: what every process of vLLM loads, and what it is then told.

Nothing of a model changes until its config says ``tokentrim``, which ``hf_overrides`` makes it say. Then the strategy
is checked while vLLM reads the config, before an engine starts, and the model's architecture becomes one of ours.
"""

# vLLM is not installed where types are checked.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from tokentrim.serve.vllm.families import SERVED


def register() -> None:
    """Register our architectures, and look at every config that vLLM reads. May be called several times."""
    from vllm import ModelRegistry
    from vllm.config import ModelConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from tokentrim.serve.vllm.limits import VllmLimits

    for family in SERVED.values():
        ModelRegistry.register_model(family.pruned, family.target)
        MODELS_CONFIG_MAP[family.pruned] = VllmLimits
    name = "get_model_arch_config"  # called once all overrides are in the config, whatever kind they are of
    seam: Callable[..., Any] = getattr(ModelConfig, name)
    if not hasattr(seam, "__wrapped__"):
        setattr(ModelConfig, name, _watching(seam))


def _watching(seam: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(seam)
    def look(model_config: Any, *args: Any, **kwargs: Any) -> Any:
        config = model_config.hf_config
        if getattr(config, "tokentrim", None) is not None:
            from tokentrim.serve.vllm.switch import switch  # it loads torch and the strategies: only where asked

            switch(config)
        return seam(model_config, *args, **kwargs)

    return look
