"""The adapters that come with tokentrim: one model family per file, registered like a stranger's."""

from tokentrim import Register, hookimpl


@hookimpl
def tokentrim_adapters(register: Register) -> None:
    """Register every adapter of this package by name; nothing is imported until a model has to be recognised."""
    register(
        "llava",
        "tokentrim_adapters.llava:LlavaAdapter",
        model_types=("llava",),
        summary="LLaVA 1.5 and its kin: one image grid of fixed size, CLIP tower, MLP projector",
    )
    register(
        "llava-next",
        "tokentrim_adapters.llava_next:LlavaNextAdapter",
        model_types=("llava_next",),
        summary="LLaVA-NeXT (1.6): thumbnail and tiles of any-resolution images, line ends",
    )
    register(
        "llava-next-video",
        "tokentrim_adapters.llava_next_video:LlavaNextVideoAdapter",
        model_types=("llava_next_video",),
        summary="LLaVA-NeXT-Video: images as in LLaVA-NeXT, pooled frames",
    )
    register(
        "llava-onevision",
        "tokentrim_adapters.llava_onevision:LlavaOnevisionAdapter",
        model_types=("llava_onevision",),
        summary="LLaVA-OneVision: any-resolution images with a limit, several images, videos",
    )
    register(
        "qwen-vl",
        "tokentrim_adapters.qwen_vl:QwenVLAdapter",
        model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
        summary="Qwen2-VL, Qwen2.5-VL, Qwen3-VL: native resolution, M-RoPE, images and videos",
    )
    register(
        "generic",
        "tokentrim_adapters.generic:GenericAdapter",
        model_types=(),
        fallback=True,
        summary="any other model with the usual seams, if it passes the self-test on a small copy",
    )
