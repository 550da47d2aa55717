"""Models of the Hugging Face Hub, by id: huggingface_hub's own settings say what is downloaded, and where it lies.

``HF_HUB_CACHE`` is where snapshots lie; under ``HF_HUB_OFFLINE`` nothing is fetched. What a snapshot lacks is looked
for here, because transformers would name a file of the cache and not what to do. Of a repository, only the files that
transformers reads are fetched: none of its code, and no second copy of its weights.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from tokentrim.errors import WHOLE, DataError, TokentrimError, UnknownNameError, complaint, reason_of

_SPELLING: Final = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w.][\w./-]*))?", re.A)
_DESCRIBING: Final = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHTS: Final = (("model.safetensors", "model*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin"))
"""Weights in one file, and a pattern of it and its shards; the first kind that is there is read."""
_BELOW: Final = "*/*"  # files in folders of a repository: other formats of the same model
_NAMED: Final = 3  # files of a kind


class HubModel(NamedTuple):
    """A repository of the hub at one revision, written ``owner/name`` or ``owner/name@revision``.

    Attributes:
        id: owner and name.
        revision: a branch, a tag or a commit.
    """

    id: str
    revision: str = "main"

    @classmethod
    def spelt(cls, text: str) -> HubModel | None:
        """The one that a text names; None where it can name none."""
        found = _SPELLING.fullmatch(text)
        if found is None or "--" in text or ".." in text:
            return None
        return cls(found["id"], found["revision"] or "main")

    def __str__(self) -> str:
        return self.id if self.revision == "main" else f"{self.id}@{self.revision}"

    @property
    def command(self) -> str:
        """The shell line that downloads it."""
        return f"hf download {self.id}" + ("" if self.revision == "main" else f" --revision {self.revision}")


def snapshot(model: HubModel, *, weights: bool) -> Path:
    """The folder of a model's files, which are downloaded where they are not in the cache yet.

    Within one process a branch stays at the commit that it was first seen at, which is the folder's name.

    Args:
        model: which one.
        weights: also its weights; otherwise its config and its processor's files alone.

    Raises:
        UnknownNameError: when the hub has no such repository or revision, as far as one may see.
        DataError: when something is neither in the cache nor may or can be downloaded; says the line that does it.
    """
    from huggingface_hub import constants

    return _snapshot(model, weights, constants.HF_HUB_CACHE)


@cache
def _snapshot(model: HubModel, weights: bool, where: str) -> Path:
    if not weights:
        folder = _downloaded(model, model.revision, _DESCRIBING)
        lacks = [] if (folder / "config.json").is_file() else ["config.json"]
    else:
        folder = _snapshot(model, False, where)
        for _, pattern in _WEIGHTS:
            if _lacking_weights(folder):
                _downloaded(model, folder.name, (pattern,))
        lacks = _lacking_weights(folder)
    if lacks:
        more = " and more" if len(lacks) > _NAMED else ""
        raise _not_whole(model, f"the snapshot {folder} lacks {', '.join(lacks[:_NAMED])}{more}; ")
    return folder


def _lacking_weights(folder: Path) -> list[str]:
    """Files of weights that a snapshot should have and has not."""
    for single, _ in _WEIGHTS:
        index = folder / f"{single}.index.json"
        if index.is_file():
            try:
                shards = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            except (ValueError, LookupError, AttributeError, TypeError):
                return []  # transformers says what is wrong with it
            return sorted(name for name in shards if not (folder / name).is_file())
    return [] if any((folder / single).is_file() for single, _ in _WEIGHTS) else [_WEIGHTS[0][0]]


def _downloaded(model: HubModel, revision: str, patterns: tuple[str, ...]) -> Path:
    """The snapshot's folder, with the files of these patterns as far as the cache or the hub has them."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(model.id, revision=revision, allow_patterns=list(patterns), ignore_patterns=_BELOW)
        )
    except errors.LocalEntryNotFoundError as cause:
        raise _not_whole(model, "", cause) from cause
    except errors.GatedRepoError as cause:
        raise DataError(
            complaint(f"the model {str(model)!r}", "be open to you", hint=f"accept its terms on its page, "
                      f"https://huggingface.co/{model.id}, then hf auth login")
        ) from cause  # fmt: skip
    except errors.RevisionNotFoundError as cause:
        raise UnknownNameError(
            complaint(f"the revision of model {model.id!r}", "be a branch, a tag or a commit of it", model.revision)
        ) from cause
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as cause:
        raise UnknownNameError(
            complaint("the model", "be a registered name, a folder that exists, or a repository of the hub that "
                      "you may read", str(model), "check its spelling; a private one needs hf auth login")
        ) from cause  # fmt: skip
    except TokentrimError:
        raise
    except Exception as cause:  # the network, the disk, and whatever serves files
        raise DataError(
            complaint(f"the model {str(model)!r}", "download", hint=f"{reason_of(cause, WHOLE)}; try {model.command}")
        ) from cause


def _not_whole(model: HubModel, lacks: str, cause: Exception | None = None) -> DataError:
    """The error for what is not in the cache, or not whole, and was not downloaded."""
    from huggingface_hub import constants

    why = "its repository lacks it"
    if constants.HF_HUB_OFFLINE:
        why = "nothing may be downloaded (HF_HUB_OFFLINE)"
    elif cause is not None:
        why = f"the hub could not be reached ({reason_of(cause.__cause__ or cause, WHOLE)})"
    must = f"lie in the cache, {constants.HF_HUB_CACHE}, or in a folder of that name, because {why}"
    hint = f"{lacks}run {model.command} where the network may be used"
    return DataError(complaint(f"the model {str(model)!r}", must, hint=hint))
