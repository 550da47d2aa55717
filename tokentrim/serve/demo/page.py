"""The page itself, laid out with gradio; nothing is fetched from anywhere, and nobody is told of it."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from tokentrim.config.specs import Budget
from tokentrim.errors import ConfigError, TokentrimError, UnsupportedError, complaint, reason_of
from tokentrim.serve.demo import render
from tokentrim.serve.demo.asking import Asking
from tokentrim.testbed import BUSY, MODELS
from tokentrim.testbed.busy.tasks import TASKS as BUSY_TASKS
from tokentrim.testbed.tasks import TASKS

if TYPE_CHECKING:
    from PIL import Image

_EXAMPLES: Final = ("list-all", "color", "where", "count-color")  # the testbed's tasks
_BUSY_EXAMPLES: Final = ("busy-describe", "busy-color", "busy-where", "busy-sign")
_FONT: Final = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
_MONO: Final = ("ui-monospace", "Cascadia Mono", "Menlo", "DejaVu Sans Mono", "monospace")
_LARGEST: Final = "64mb"
_KEPT_FOR: Final = 3600  # seconds that an uploaded picture lies in the temporary folder, at most twice
_SHARES: Final = (("visual tokens", "layer_mean_ratio"), ("visual KV", "kv_ratio"),
                  ("visual KV that is read", "kv_read_ratio"), ("prefill FLOPs", "flops_ratio"))  # fmt: skip
# The colours of report.html, on light and on dark paper, by the theme's names for what has them.
_COLOURS: Final = {
    ("#ffffff", "#14171c"): "body_background_fill background_fill_primary block_background_fill input_background_fill",
    ("#f5f6f8", "#1c2027"): "background_fill_secondary button_secondary_background_fill block_label_background_fill",
    ("#1b2028", "#e7eaf0"): "body_text_color block_title_text_color button_secondary_text_color block_label_text_color",
    ("#565d6b", "#a6aebc"): "body_text_color_subdued block_info_text_color input_placeholder_color",
    ("#d9dde4", "#333a45"): "border_color_primary block_border_color button_secondary_border_color",
    ("#8a919e", "#6d7583"): "input_border_color",
    ("#0b5cad", "#7db8ff"): "button_primary_background_fill slider_color loader_color border_color_accent "
    "input_border_color_focus checkbox_background_color_selected",
    ("#094a8c", "#a3cdff"): "button_primary_background_fill_hover",
    ("#ffffff", "#10141a"): "button_primary_text_color",
}


def require_gradio() -> None:
    """Raise UnsupportedError unless the library that makes the page is there."""
    if find_spec("gradio") is None:
        hint = "run pip install 'tokentrim-vlm[demo]'"
        raise UnsupportedError(complaint("tokentrim demo", "find gradio", None, hint))


def require_free(host: str, port: int) -> None:
    """Raise ConfigError when nothing can listen there, before a model is loaded."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as cause:
        hint = f"{reason_of(cause)}: name another --port or --host"
        raise ConfigError(complaint("the address of tokentrim demo", "be free", f"{host}:{port}", hint)) from cause


def open_page(asking: Asking, chosen: str, host: str, port: int) -> Any:
    """Serve the page until its ``close()``, in a thread of its own.

    Args:
        asking: answers.
        chosen: the strategy that stands there first.
        host: address to listen at.
        port: of it.

    Raises:
        UnsupportedError: without gradio.
    """
    require_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import, too
    gradio: Any = importlib.import_module("gradio")
    page = _laid_out(gradio, asking, chosen)
    style = (resources.files("tokentrim.serve.demo") / "page.css").read_text(encoding="utf-8")
    colours = {
        f"{name}{way}": colour
        for pair, names in _COLOURS.items()
        for way, colour in zip(("", "_dark"), pair, strict=True)
        for name in names.split()
    }
    page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
        theme=gradio.themes.Base(font=_FONT, font_mono=_MONO, radius_size="sm").set(**colours), css=style,
        footer_links=[], max_file_size=_LARGEST, ssr_mode=False, mcp_server=False, pwa=False,
        enable_monitoring=False, run_history=False,
    )  # fmt: skip
    return page


def _laid_out(gr: Any, asking: Asking, chosen: str) -> Any:
    """The page, not yet served."""
    examples = _examples(asking)
    with gr.Blocks(title="tokentrim", analytics_enabled=False, delete_cache=(_KEPT_FOR, _KEPT_FOR)) as page:
        gr.HTML(render.head(asking.about))
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    examples[0][0], label="Picture", type="filepath", sources=["upload", "clipboard"], height=260,
                    buttons=[], alt_text="the picture that is asked about", elem_classes="tt-picture",
                )  # fmt: skip
                # As it was uploaded: tokentrim's own reader says what is wrong with a file, in tokentrim's words.
                picture.preprocess = _as_uploaded
                question = gr.Textbox(examples[0][1], label="Question", info=_language(asking.name), max_length=4000)
                scenes = gr.Dataset(components=[picture, question], samples=examples, type="index", label="Examples",
                                    elem_id="tt-examples")  # fmt: skip
                strategy = gr.Dropdown(list(asking.served), value=chosen, label="Strategy", info=asking.served[chosen])
                matched = gr.Checkbox(asking.is_matched(chosen), label="At a budget (off: its own settings)",
                                      interactive=asking.knob(chosen) is not None)  # fmt: skip
                with gr.Row():
                    share = gr.Slider(5, 100, value=50, step=1, label="Budget, %", buttons=[], min_width=170)
                    measure = gr.Dropdown(_SHARES, value=_measure(asking, chosen), label="of unpruned", min_width=170)
                with gr.Accordion("More", open=False):
                    longest = gr.Slider(1, 256, value=64, step=1, label="Longest answer, tokens", buttons=[])
                    repeats = gr.Slider(0, 9, value=3, step=1, label="Timed runs of each", buttons=[])
                button = gr.Button("Ask both", variant="primary")
            with gr.Column(scale=3, min_width=300):
                result = gr.HTML(render.WAITING, elem_classes="tt-result")
                gr.HTML(render.strategies(asking.served, asking.refused))

        def ask(file: Any, text: str, name: str, match: bool, percent: float, of: str, most: int,
                times: int) -> Iterator[str]:  # fmt: skip
            try:
                budget = Budget.model_validate({of: percent / 100}) if match and asking.knob(name) else None
                for found in asking.both(file, text, name, budget, most, times):
                    yield render.beside(found)
            except TokentrimError as error:
                yield render.wrong(error)
            except Exception as error:  # a model's settings lead it to whatever it raises
                yield render.wrong(RuntimeError(f"the run with strategy {name!r} failed: {reason_of(error)}"))

        def choose(name: str) -> tuple[Any, Any, Any]:
            there = gr.Checkbox(value=asking.is_matched(name), interactive=asking.knob(name) is not None)
            return gr.Dropdown(info=asking.served[name]), there, _measure(asking, name)

        hidden = {"api_visibility": "private"}
        at_once = {**hidden, "show_progress": "hidden", "queue": False}
        # Values, and not gr.Examples, whose updates would make the picture's field anew, without its reader.
        scenes.click(examples.__getitem__, scenes, [picture, question], **at_once)
        strategy.change(choose, strategy, [strategy, matched, measure], **at_once)
        asked = [picture, question, strategy, matched, share, measure, longest, repeats]
        # One at a time, and never two on the model.
        gr.on([button.click, question.submit], ask, asked, result, concurrency_limit=1, show_progress="minimal",
              scroll_to_output=True, **hidden)  # fmt: skip
    return page


def _as_uploaded(file: Any) -> str | None:
    """Where a picture lies; None without one."""
    return file and file.path


def _measure(asking: Asking, name: str) -> str:
    """The share that a strategy's budget usually is of."""
    return "kv_ratio" if asking.is_temporal(name) else "layer_mean_ratio"


def _language(model: str) -> str:
    """What can be asked."""
    return "This model knows rendered scenes, and questions like these." if model in MODELS else "In your own words."


def _examples(asking: Asking) -> list[list[Image.Image | str]]:
    """Pictures of the testbed, with questions that the model understands."""
    busy = asking.name == BUSY
    asked = [BUSY_TASKS[name] for name in _BUSY_EXAMPLES] if busy else [TASKS[name] for name in _EXAMPLES]
    samples = [task.samples("test", place + 1)[place] for place, task in enumerate(asked)]
    plain = "What do you see, and where?"
    return [[one.images[0], one.question if asking.name in MODELS else plain] for one in samples]
