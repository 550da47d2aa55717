"""The testbed's models and tasks, registered like a stranger's."""

from functools import partial

from tokentrim.hookspecs import Register, hookimpl
from tokentrim.testbed import MODELS, model_folder


@hookimpl
def tokentrim_models(register: Register) -> None:
    """Register the shipped models. Importing the testbed package costs nothing, so the targets are functions."""
    summaries = {
        "testbed": "12 layers, trained with visual-token dropout; the default model",
        "testbed-plain": "6 layers, never saw a picture with missing tokens",
        "testbed-qwen2.5-vl": "Qwen2.5-VL: dynamic resolution, windowed tower, M-RoPE; 14 layers",
        "testbed-llava-next": "LLaVA-NeXT: coarse picture and tiles, ends of lines; 14 layers",
        "testbed-busy": "busy pictures: textures, clutter, large things and small print; 12 layers, 256 visual tokens",
    }
    for name in MODELS:
        register(name, partial(model_folder, name), summary=summaries[name])


@hookimpl
def tokentrim_tasks(register: Register) -> None:
    """Register the tasks, the plain ones also in several sizes; a renderer is imported when one is asked for."""
    summaries = {
        "color": "the colour of an object",
        "what": "what an object of a colour is",
        "count-color": "how many objects of a colour there are",
        "count-all": "how many objects there are",
        "at": "what lies at a place",
        "where": "the place of an object",
        "list-all": "all objects of the picture",
        "list-where": "all objects of the picture with their places",
    }
    for name, summary in summaries.items():
        register(name, f"tokentrim.testbed.tasks:TASKS[{name}]", summary=summary)
    for name, summary in summaries.items():
        target = f"tokentrim.testbed.tasks:TASKS_SIZES[{name}-sizes]"
        register(f"{name}-sizes", target, summary=f"{summary}; pictures of three sizes")
    busy = {
        "busy-ground": "the material in a corner",
        "busy-there": "whether there is a large thing of a kind",
        "busy-color": "the colour of a large thing",
        "busy-left": "whether one large thing is left of another",
        "busy-count-large": "how many large things there are",
        "busy-sign": "the letters of a sign",
        "busy-digit": "the digit on a large thing",
        "busy-mark": "the colour of the mark on a large thing",
        "busy-count-small": "how many small things of a kind there are",
        "busy-where": "the place of a small thing",
        "busy-describe": "large things, grounds, small things",
        "busy-signs": "the letters of three signs",
    }
    for name, summary in busy.items():
        register(name, f"tokentrim.testbed.busy.tasks:TASKS[{name}]", summary=f"busy pictures: {summary}")
