"""Run transformers' own tests as they are and under ``apply(model, "none")``, and compare what passes.

``python tests/generate/under_none.py CHECKOUT TESTS... [pytest's own options]``

CHECKOUT is a checkout of transformers at the installed version (the package brings no tests along); TESTS are test
files in it. A test that passes alone and fails under ``none`` makes the exit code 1, and so does a run in which no
model was under ``none`` at all. Models without an adapter run as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
SWITCH, COUNT = "TOKENTRIM_UNDER_NONE", "calls of generate under none: "


def pytest_configure(config: Any) -> None:
    """As a plugin of the second run: put every model under ``none`` when its ``generate`` is first called."""
    if os.environ.get(SWITCH) != "1":
        return
    from transformers import GenerationMixin

    from tokentrim import apply
    from tokentrim.errors import AdapterError

    config.under_none = 0
    generate = GenerationMixin.generate

    def under_none(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "generate" in self.__dict__:  # under none already
            return generate(self, *args, **kwargs)
        try:
            apply(self, "none")
        except AdapterError:
            return generate(self, *args, **kwargs)
        config.under_none += 1
        return self.generate(*args, **kwargs)

    GenerationMixin.generate = under_none  # type: ignore[method-assign]


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Say how many models were under ``none``."""
    if hasattr(config, "under_none"):
        terminalreporter.write_line(f"{COUNT}{config.under_none}")


def outcomes(checkout: Path, arguments: Sequence[str], *, under_none: bool) -> tuple[dict[str, str], int]:
    """Test -> ``passed``, ``failed`` or ``skipped``; and how many models were under ``none``."""
    report = checkout / f".under-none-{os.getpid()}.xml"
    path = os.pathsep.join(str(ROOT / part) for part in (".", "strategies", "adapters", "tests/generate"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "under_none", "-q", f"--junitxml={report}", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": path, SWITCH: "1" if under_none else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.is_file():
        sys.stderr.write(done.stdout[-3000:] + done.stderr[-3000:])
        return {}, 0
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        state = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = state
    report.unlink()
    seen = [line.removeprefix(COUNT) for line in done.stdout.splitlines() if line.startswith(COUNT)]
    return found, int(seen[0]) if seen else 0


def main(arguments: Sequence[str]) -> int:
    """Compare the two runs; the exit code."""
    if len(arguments) < 2 or not Path(arguments[0]).is_dir():
        sys.stderr.write(f"{__doc__}\n")
        return 2
    checkout = Path(arguments[0]).resolve()
    plain, _ = outcomes(checkout, arguments[1:], under_none=False)
    pruned, models = outcomes(checkout, arguments[1:], under_none=True)
    lost = sorted(name for name, state in plain.items() if state == "passed" and pruned.get(name) != "passed")
    for name in lost:
        print(f"passes without tokentrim only: {name}")
    passed = sum(state == "passed" for state in plain.values())
    print(f"{passed} of {len(plain)} tests pass without tokentrim, {passed - len(lost)} of them under none as well")
    print(f"{models} models were under none")
    return 1 if lost or not plain or not models else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
