"""What a calibration has measured so far: a search that was stopped asks again, and finds its questions answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from tokentrim.runs.files import clear, read_json, reading, write_json


class CalibrationState:
    """Measurements by key, in a file beside the one that is to be written. Every change is one atomic rename.

    A search is a function of its options and of what it measures, so this is all that going on needs. Keys change
    whenever a value may, so measurements stay good for a search with other options, too.
    """

    def __init__(self, out: Path) -> None:
        """Open the state of a calibration, or begin one.

        Args:
            out: the schedule file that is to come.

        Raises:
            ResultsError: when there is a file that tokentrim did not write, or that cannot be read.
        """
        self.path: Final = out.with_name(f".{out.name}.state.json")
        clear(self.path.parent)
        self._measured: dict[str, float] = self._read()
        self.found: Final = len(self._measured)

    def measured(self, key: str, measure: Callable[[], float]) -> float:
        """The measurement ``key``, taken now unless it was before.

        Args:
            key: changes whenever the measurement's value may.
            measure: takes it.
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
        write_json(self.path, {"measured": self._measured})

    def remove(self) -> None:
        """Forget everything: the schedule is written."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, float]:
        if not self.path.exists():
            return {}
        remedy = "remove the file, or choose another --out"
        data = read_json(self.path, remedy)
        with reading(self.path, remedy):
            return {key: float(value) for key, value in data["measured"].items()}
