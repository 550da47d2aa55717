"""Is a model fit to judge pruning? `python -m tokentrim.testbed.check --model NAME_OR_FOLDER`; --help says the rest."""

import sys

from tokentrim.errors import complaint


def main() -> int:
    """Command line. What checks lies beside what trains, which only the repository has."""
    try:
        from tokentrim.testbed.training.check import main as check
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("tokentrim.testbed.training"):
            raise
        hint = "a wheel has the models, the repository also has what trained and checks them"
        print(complaint("the check of the testbed's models", "be run from the repository", hint=hint), file=sys.stderr)
        return 2
    return check()


if __name__ == "__main__":
    sys.exit(main())
