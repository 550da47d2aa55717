"""Options that several commands share, each with one spelling and one line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; anything for people goes to stderr.")]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy", "-s", help="A registered name, inline YAML such as '{name: fastv, k: 3}', or a YAML file."
    ),
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with a strategy, perhaps a model.")]
MaybeModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A registered model, a folder, or an id of the hub; default: testbed."),
]
Model = Annotated[str, typer.Option("--model", "-m", help="A registered model, a folder, or an id of the hub.")]
Structure = Annotated[str | None, typer.Option("--structure", help="Line ends of tiled images: keep or prune.")]
Images = Annotated[list[Path] | None, typer.Option("--image", "-i", help="Image file; may be repeated.")]
Video = Annotated[Path | None, typer.Option("--video", help="Instead of images: a video, or a folder of frames.")]
Frames = Annotated[int, typer.Option("--frames", help="Frames of the video, at equal distances.", min=1)]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer.", min=1)]


def strategies(default: str) -> Any:
    """An option that takes several strategies, and what it is without them."""
    return typer.Option(
        "--strategies", "--strategy", "-s",
        help=f"Names, inline YAML or YAML files, with commas between, or repeat; default: {default}.",
    )  # fmt: skip


Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks", "--task", "-t",
        help="Names or files of questions (mine.jsonl, mine.csv@anls), with commas between, or repeat; "
        "default: those of the shipped comparison.",
    ),
]  # fmt: skip
Device = Annotated[str | None, typer.Option("--device", help="auto (the default), cpu or cuda.")]
DType = Annotated[
    str | None,
    typer.Option("--dtype", help="auto, as it was saved (the default), float32, bfloat16 or float16."),
]
Attention = Annotated[
    str | None,
    typer.Option("--attn-implementation", help="Of transformers: sdpa, eager, ...; default: the model's own choice."),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="Instead of --device: auto, balanced, sequential, a device, or inline YAML "
        "such as '{model.vision_tower: cuda:0, ...}'.",
    ),
]
Format = Annotated[
    list[str] | None,
    typer.Option("--format", help="Reports to write: md, csv, json, html, png; default: all. Repeat, or use commas."),
]
