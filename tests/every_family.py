"""Every model family that an adapter of ours serves, by name."""

from __future__ import annotations

from tests import families, gemma, native, qwen, tiled

FAMILIES: dict[str, families.Family] = {
    **families.FAMILIES,
    **{family.name: family for family in (qwen.Qwen2VL(), qwen.Qwen25VL(), qwen.Qwen3VL(), qwen.Qwen3VLMoe())},
    **{family.name: family for family in (tiled.SmolVLM(), tiled.InternVL(), native.Mistral3(), native.Glm4v())},
    gemma.Gemma3.name: gemma.Gemma3(),
}
