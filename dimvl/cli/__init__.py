"""The command line. Only here does dimvl print.

Everything heavy is imported inside the commands, so that `dimvl --help` answers at once. Results go to stdout, progress
and messages to stderr. Exit codes: 0 done; 1 something was left out or found wrong; 2 a mistake in what was given;
130 and 143 interrupted.
"""

import logging
import os
import sys

from dimvl.cli.app import app
from dimvl.errors import Interrupted, NotFiniteError, UserError

# The order of `dimvl --help`.
# isort: off
import dimvl.cli.demo
import dimvl.cli.stores
import dimvl.cli.training
import dimvl.cli.scoring
import dimvl.cli.prediction  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2, never in a traceback."""
    # Two torch threads that spin while waiting slow each other down 10 times and more on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except NotFiniteError as error:
        _fail(error, 1)
    except Interrupted as error:
        _fail(error, 128 + error.signal_number)


def _fail(error: Exception, code: int) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
