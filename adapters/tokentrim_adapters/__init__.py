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
        "smolvlm",
        "tokentrim_adapters.smolvlm:SmolVLMAdapter",
        model_types=("smolvlm", "idefics3"),
        summary="SmolVLM, Idefics3: tiles of a scaled image and a thumbnail, tagged in the text",
    )
    register(
        "internvl",
        "tokentrim_adapters.internvl:InternVLAdapter",
        model_types=("internvl",),
        summary="InternVL: tiles of a stretched image and a thumbnail",
    )
    register(
        "mistral3",
        "tokentrim_adapters.mistral3:Mistral3Adapter",
        model_types=("mistral3",),
        summary="Mistral3 (Pixtral tower): native resolution, a break behind every row",
    )
    register(
        "gemma3",
        "tokentrim_adapters.gemma3:Gemma3Adapter",
        model_types=("gemma3",),
        summary="Gemma 3: images of fixed size whose tokens see each other, two kinds of positions",
    )
    register(
        "glm4v",
        "tokentrim_adapters.glm4v:Glm4vAdapter",
        model_types=("glm4v", "glm4v_moe", "glm46v"),
        summary="GLM-4.1V, 4.5V, 4.6V: native resolution, M-RoPE, images and videos",
    )
    register(
        "generic",
        "tokentrim_adapters.generic:GenericAdapter",
        model_types=(),
        fallback=True,
        summary="any other model with the usual seams, if it passes the self-test on a small copy",
    )
