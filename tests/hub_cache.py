"""A cache of the hub on disk, as huggingface_hub lays it out, filled from a folder."""

from collections.abc import Callable
from pathlib import Path
from shutil import copy

from tokentrim.loading import resolve_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill(cache: Path, model_id: str, source: str, holds: Callable[[str], bool] = lambda name: True) -> Path:
    """Put files of a registered model into a snapshot, as links to blobs; returns its folder."""
    repository = cache / ("models--" + model_id.replace("/", "--"))
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for folder in (snapshot, blobs, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in resolve_folder(source).iterdir():
        if file.is_file() and holds(file.name):
            copy(file, blobs / file.name)
            (snapshot / file.name).symlink_to(blobs / file.name)
    return snapshot
