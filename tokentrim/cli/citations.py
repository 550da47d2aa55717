"""BibTeX of what a run stands on: from the docstrings of strategies and adapters, and our own CITATION.cff.

A docstring cites by fenced ``bibtex`` blocks. Where an adapter serves several families, an entry with
``keywords={model_type}`` is cited for that family alone.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import tokentrim
from tokentrim.config.yaml_reader import load_yaml
from tokentrim.errors import ConfigError, PluginError, complaint
from tokentrim.plugins.loader import DISTRIBUTION, registry

BLOCK: Final = re.compile(r"```bibtex\n(.*?)```", re.DOTALL)
_HEAD: Final = re.compile(r"@(\w+)\s*\{\s*([^\s,{}]+)\s*,")


@dataclass(frozen=True)
class Reference:
    """One entry of a bibliography.

    Attributes:
        key: its citation key.
        bibtex: the whole entry.
        cited_by: what it is cited for, such as ``"strategy 'st3'"``.
    """

    key: str
    bibtex: str
    cited_by: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The title's letters and digits, by which the same work is known under two keys."""
        return re.sub(r"[\W_]+", "", self.field("title")).lower()

    def field(self, name: str) -> str:
        """The text of a field, without its outer braces; "" where there is none."""
        found = re.search(rf"[\s,{{]{name}\s*=\s*", self.bibtex)
        if found is None:
            return ""
        rest = self.bibtex[found.end() :]
        return rest[1 : _closing(rest)] if rest.startswith("{") else re.split(r"[,\n}]", rest)[0].strip(' "')


def references_in(text: str | None, cited_by: str, whom: str = "") -> list[Reference]:
    """The references in the ``bibtex`` blocks of a docstring, in their order.

    Raises:
        PluginError: when an entry does not end, or has no key.
    """
    found: list[Reference] = []
    for block in BLOCK.findall(inspect.cleandoc(text or "")):
        rest = block.strip()
        while rest:
            head = _HEAD.match(rest)
            end = _closing(rest[head.end(1) :]) + head.end(1) if head is not None else -1
            if head is None or end < head.end(1):
                raise PluginError(
                    complaint(
                        f"the bibtex block of {whom or cited_by}", "consist of entries '@type{key, ...}'", rest[:60]
                    )
                )
            found.append(Reference(head[2], rest[: end + 1], (cited_by,)))
            rest = rest[end + 1 :].strip()
    return found


def _closing(text: str) -> int:
    """Index of the brace that closes the first one that is opened; -1 where none does."""
    depth = 0
    for index, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if sign == "}" and depth == 0:
            return index
    return -1


def merged(references: Iterable[Reference]) -> list[Reference]:
    """Every work once, in the order of its first mention, with all that it is cited for."""
    found: list[Reference] = []
    for reference in references:
        same = next((index for index, old in enumerate(found) if _same_work(old, reference)), None)
        if same is None:
            found.append(reference)
        else:
            both = dict.fromkeys((*found[same].cited_by, *reference.cited_by))
            found[same] = replace(found[same], cited_by=tuple(both))
    return found


def _same_work(one: Reference, other: Reference) -> bool:
    return one.key == other.key or (bool(one.title) and one.title == other.title)


@dataclass(frozen=True)
class Bibliography:
    """What something stands on.

    Attributes:
        references: every work once.
        without: what names no paper.
    """

    references: tuple[Reference, ...]
    without: tuple[str, ...]


def bibliography(sources: Iterable[str]) -> Bibliography:
    """The works that configurations and names stand on.

    Args:
        sources: each a file for ``tokentrim run`` or ``tokentrim compare``, anything that ``--strategy`` takes, or the
            name of a registered model or adapter.

    Raises:
        ConfigError: when a file is malformed.
        UnknownNameError: when a name is not registered.
        PluginError: when something's docstring holds malformed BibTeX, or cannot be imported.
    """
    found: list[Reference] = []
    without: list[str] = []
    for source in sources:
        for whom, references in _cited(source):
            found += references
            if not references and whom not in without:
                without.append(whom)
    return Bibliography(tuple(merged(found)), tuple(without))


def _cited(source: str) -> Iterator[tuple[str, list[Reference]]]:
    """(what, its references) of all that a source names."""
    for kind in ("model", "adapter"):
        if source in registry(kind) and source not in registry("strategy"):
            yield _of_model(source) if kind == "model" else _of_adapter(source)
            return
    from tokentrim.compare.config import is_comparison, load_compare
    from tokentrim.config.specs import load_config, strategy_from

    if source not in registry("strategy") and os.path.isfile(source):
        if is_comparison(load_yaml(Path(source)).data):
            comparison = load_compare(Path(source))
            for method in comparison.strategies:
                yield from _of_strategy(method.chosen.strategy)
            yield from (_of_model(spec.model) for spec in comparison.models)
            return
        config = load_config(Path(source))
        yield from _of_strategy(config.chosen.strategy)
        if config.model is not None:
            yield _of_model(config.model)
        return
    yield from _of_strategy(strategy_from(source).strategy)


def _of_strategy(strategy: Any) -> Iterator[tuple[str, list[Reference]]]:
    """What a strategy stands on: its own paper, those of its parts, and the model that guides it."""
    members = [part for part in (*strategy.spatial_parts, strategy.temporal_part, strategy.attention_part) if part]
    named = strategy.name in registry("strategy")
    found = _of_class(strategy) if named else []
    for member in members:
        own = _of_class(member)
        if named:  # a method's own parts: what they cite, and no word where they cite nothing
            found += own
        elif member.name not in {other.name for other in members[: members.index(member)]}:
            yield f"strategy {member.name!r}", own
    if named:
        yield f"strategy {strategy.name!r}", merged(found)
    for part in strategy.spatial_parts:
        guide = part.wants_guide()
        if guide is not None and guide.model != "self":
            whom, references = _of_model(guide.model)
            yield f"{whom}, a guide", references


def _of_class(strategy: Any) -> list[Reference]:
    # Not an inherited docstring: a subclass that has none of its own is another method.
    return references_in(vars(type(strategy)).get("__doc__"), f"strategy {strategy.name!r}")


def _of_adapter(name: str, model_type: str | None = None) -> tuple[str, list[Reference]]:
    """The papers of the families that an adapter serves, or of one of them."""
    whom = f"adapter {name!r}"
    found = references_in(registry("adapter").get(name).__doc__, whom)
    if model_type is None:
        return whom, found
    return whom, [reference for reference in found if model_type in (reference.field("keywords") or model_type).split()]


def _of_model(name: str) -> tuple[str, list[Reference]]:
    """The paper of a model: what its own registration says, else that of its family."""
    from tokentrim.loading import read_config, require_supported, resolve_folder

    whom = f"model {name!r}"
    if name in registry("model"):
        own = references_in(registry("model").entry(name).tags.get("citation"), whom)
        if own or registry("model").entry(name).origin.distribution == DISTRIBUTION:
            return whom, own  # those that come with tokentrim are tokentrim's, whatever family they are built like
    model_type = str(read_config(resolve_folder(name))["model_type"])
    _, references = _of_adapter(require_supported(model_type, whom), model_type)
    return whom, [replace(reference, cited_by=(whom,)) for reference in references]


def of_tokentrim() -> Reference:
    """tokentrim itself, from its CITATION.cff.

    Raises:
        ConfigError: when the file is missing.
    """
    here = Path(tokentrim.__file__).parent
    # In the wheel it is a file of the package; in a checkout it lies at the root, where people and forges look for it.
    path = next((file for file in (here / "CITATION.cff", here.parent / "CITATION.cff") if file.is_file()), None)
    if path is None:
        raise ConfigError(complaint("CITATION.cff", "come with tokentrim", str(here), "reinstall tokentrim"))
    data = load_yaml(path).data
    authors = " and ".join(_author(author) for author in data["authors"])
    fields = {
        "title": data["title"],
        "author": authors,
        "version": data["version"],
        "year": str(data["date-released"])[:4] if "date-released" in data else "",
        "doi": data.get("doi", ""),
        "url": data.get("repository-code", data.get("url", "")),
        "note": f"{data['license']} licence" if "license" in data else "",
    }
    body = ",\n".join(f"  {key}={{{value}}}" for key, value in fields.items() if value)
    return Reference("tokentrim", f"@software{{tokentrim,\n{body}\n}}", ("tokentrim",))


def _author(author: dict[str, str]) -> str:
    """``Family, Given``, or a group's name kept whole by braces."""
    if "name" in author:
        return f"{{{author['name']}}}"
    return ", ".join(author[part] for part in ("family-names", "given-names") if part in author)
