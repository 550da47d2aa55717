"""``python -m tokentrim.bench``: short for ``tokentrim bench``."""

import sys

from tokentrim.cli import app

if __name__ == "__main__":
    app(["bench", *sys.argv[1:]], prog_name="tokentrim")
