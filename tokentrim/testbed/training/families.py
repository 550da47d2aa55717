"""The architectures that the testbed trains, by the name that `train --model` takes."""

from typing import Any, Final

from tokentrim.testbed.training.busy.model import BUSY
from tokentrim.testbed.training.family import LLAVA, TestbedFamily
from tokentrim.testbed.training.llava_next import NEXT
from tokentrim.testbed.training.qwen import QWEN

FAMILIES: Final[dict[str, TestbedFamily]] = {family.name: family for family in (LLAVA, QWEN, NEXT, BUSY)}


def family_of(model: Any) -> TestbedFamily:
    """The family of a loaded model, by its configuration.

    Raises:
        ValueError: for a model of another architecture.
    """
    kinds = {"llava": LLAVA, "qwen2_5_vl": QWEN, "llava_next": NEXT}
    kind = model.config.model_type
    if kind not in kinds:
        raise ValueError(f"model type of a testbed model must be one of {', '.join(kinds)}; got {kind!r}")
    if kind == "llava" and model.config.vision_config.image_size == BUSY.canvases[0].height:
        return BUSY
    return kinds[kind]
