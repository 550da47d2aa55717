"""How a task in a file is called: ``PATH``, ``PATH#GROUP``, ``PATH@METRIC``, or ``PATH#GROUP@METRIC``."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

ENDINGS: Final = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Of the files that are read as questions. A folder is one that ends in a slash."""
PATTERN: Final = rf"(.*?({'|'.join(map(re.escape, ENDINGS))}|/))(#([^@]+))?(@(.+))?"
"""What such a name matches, whole; JSON Schema reads it alike."""
_NAME: Final = re.compile(PATTERN, re.DOTALL)


class FileName(NamedTuple):
    """The parts of a name.

    Attributes:
        path: of the file, or of a folder, with a slash at its end.
        group: the questions to ask, by their column ``group``; None: all.
        metric: how answers are scored; None: as the questions suggest.
    """

    path: str
    group: str | None = None
    metric: str | None = None

    def __str__(self) -> str:
        """The name."""
        return self.path + (f"#{self.group}" if self.group else "") + (f"@{self.metric}" if self.metric else "")


def parse(name: str) -> FileName | None:
    """The parts of a name; None where it is no file's."""
    found = _NAME.fullmatch(name)
    return None if found is None else FileName(found[1], found[4], found[6])
