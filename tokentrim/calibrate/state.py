"""What a calibration has measured so far: a search that was stopped asks again, and finds its questions answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tokentrim.compare.config import digest
from tokentrim.compare.results import write_json
from tokentrim.errors import ResultsError, complaint


class State:
    """Measurements by key, beside the file that is to be written. Every change is one atomic rename.

    A search is a function of its options and of what it measures, so this is all that going on needs.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        """Open the state of a calibration, or begin one.

        Args:
            out: the schedule file that is to come.
            options: the calibration's options, as plain data.

        Raises:
            ResultsError: when the file is of other options, or is not what tokentrim wrote.
        """
        self.path: Final = out.with_name(f".{out.name}.state.json")
        self._options = options
        self._hash = digest(options)
        self._measured: dict[str, Any] = self._read()
        self.found: Final = len(self._measured)

    def measured(self, key: str, measure: Callable[[], Any]) -> Any:
        """The measurement ``key``, taken now unless it was before.

        Args:
            key: changes whenever the measurement's value may.
            measure: takes it; returns plain data.
        """
        if key not in self._measured:
            self._measured[key] = measure()
            self.write()
        return self._measured[key]

    def write(self) -> None:
        """Store what there is.

        Raises:
            ResultsError: when it cannot be written.
        """
        write_json(self.path, {"hash": self._hash, "options": self._options, "measured": self._measured})

    def remove(self) -> None:
        """Forget everything: the schedule is written."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except OSError as cause:
            raise ResultsError(
                complaint(f"{self.path}", "be readable", hint=f"{cause}; choose another --out")
            ) from cause
        try:
            data = json.loads(text)
            found, measured, before = data["hash"], dict(data["measured"]), dict(data["options"])
        except (ValueError, KeyError, TypeError) as cause:
            raise ResultsError(
                complaint(f"{self.path}", "be what tokentrim wrote there", hint=f"{cause!r}; remove the file")
            ) from cause
        if found != self._hash:
            changed = sorted(key for key in {*before, *self._options} if before.get(key) != self._options.get(key))
            raise ResultsError(
                complaint(f"{self.path}", "be of this calibration", f"one that differs in {', '.join(changed)}",
                          "choose another --out, or remove the file to begin anew")
            )  # fmt: skip
        return measured
