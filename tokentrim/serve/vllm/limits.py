"""What else of vLLM's settings a pruned model may run under; vLLM asks this once, before an engine starts."""

from __future__ import annotations

from typing import Any

from tokentrim.errors import UnsupportedError, complaint


class VllmLimits:
    """Refuses by name what was never seen to work; the two methods are those that vLLM calls."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Nothing: the strategy was checked when the config was read."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Look at a whole configuration.

        Raises:
            UnsupportedError: names the setting.
        """
        parallel, compiled = vllm_config.parallel_config, vllm_config.compilation_config
        pictures = vllm_config.model_config.multimodal_config
        own = "tokentrim" in (getattr(pictures, "mm_processor_kwargs", None) or {})
        for name, found, reason in (
            ("tensor_parallel_size", parallel.tensor_parallel_size > 1, "every process would decide by its own heads"),
            ("pipeline_parallel_size", parallel.pipeline_parallel_size > 1, "what stays is known to the first stage"),
            ("speculative_config", vllm_config.speculative_config is not None, "drafts would see other positions"),
            ("compile_mm_encoder", compiled.compile_mm_encoder, "compiled code cannot be looked at"),
            ("cudagraph_mm_encoder", compiled.cudagraph_mm_encoder, "a graph that is replayed cannot be looked at"),
            ("video_pruning_rate", bool(getattr(pictures, "video_pruning_rate", None)), "one of the two may prune"),
            ("enable_mm_embeds", bool(getattr(pictures, "enable_mm_embeds", False)), "the tower must be seen"),
            ("mm_processor_kwargs.tokentrim", own, "the server's strategy is the one in hf_overrides"),
        ):
            if found:
                must = "be left out where tokentrim prunes"
                raise UnsupportedError(complaint(f"{name} of vLLM", must, hint=reason))
