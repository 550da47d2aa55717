"""Tasks that are kept elsewhere, registered as families: looked up, and imported, when one is asked for."""

from tokentrim.hookspecs import Register, hookimpl
from tokentrim.tasks.names import PATTERN


@hookimpl
def tokentrim_tasks(register: Register) -> None:
    """Register ``lmms:NAME``, and the tasks in files."""
    register(
        "lmms",
        "tokentrim.harness.tasks:LMMS",
        family=True,
        summary="a task of lmms-eval, by its name or YAML file, such as lmms:gqa; needs the extra lmms",
    )
    register(
        "file",
        "tokentrim.tasks.files:FILES",
        family=True,
        pattern=PATTERN,
        members="FILE.jsonl",
        summary="questions in a file (.jsonl, .json, .csv, .tsv, .parquet) or FOLDER/; FILE@METRIC, FILE#GROUP",
    )
