"""Every model family that an adapter of ours serves, by name."""

from __future__ import annotations

from tests import families, qwen

FAMILIES: dict[str, families.Family] = {
    **families.FAMILIES,
    **{family.name: family for family in (qwen.Qwen2VL(), qwen.Qwen25VL(), qwen.Qwen3VL(), qwen.Qwen3VLMoe())},
}
