"""The command line. Only it, `progress.py` and the demo print.

Heavy modules are imported inside the commands, so that `dimvl --help` is fast. Results go to stdout, progress and
messages to stderr. Exit codes: 0 success; 1 something was skipped or found damaged; 2 an error in the command or its
files; 130 and 143 interrupted; 141 the reader of stdout closed it. In a run with several processes rank 0 prints;
errors that only another rank knows are printed with its number.
"""

import logging
import os
import signal
import sys
import time

from dimvl import cpu
from dimvl.cli.app import app
from dimvl.cli.output import OutputClosed, standard_streams
from dimvl.errors import Interrupted, NotFiniteError, OtherRankError, UserError
from dimvl.showing import visible

# The order of `dimvl --help`.
# isort: off
import dimvl.cli.demo
import dimvl.cli.frames
import dimvl.cli.stores
import dimvl.cli.concepts
import dimvl.cli.planning
import dimvl.cli.profiling
import dimvl.cli.training
import dimvl.cli.bootstrapping
import dimvl.cli.watching
import dimvl.cli.reporting
import dimvl.cli.scoring
import dimvl.cli.comparing
import dimvl.cli.study
import dimvl.cli.exporting
import dimvl.cli.prediction
import dimvl.cli.pushing
import dimvl.cli.choosing
import dimvl.cli.classifying
import dimvl.cli.aligning
import dimvl.cli.grounding
import dimvl.cli.searching
import dimvl.cli.browsing
import dimvl.cli.serving
import dimvl.cli.doctoring  # noqa: F401
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2, never in a traceback."""
    cpu.configure()
    rank = os.environ.get("RANK", "0")  # set by launchers of several processes
    if "LOCAL_RANK" in os.environ:  # DeepSpeed's launcher also passes it as an option
        sys.argv[1:] = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]
    prefix = "" if rank == "0" else f"rank {rank}: "
    handler = _Messages()
    handler.setFormatter(_OneLine(f"{prefix}%(levelname)s: %(message)s"))
    level = logging.ERROR if prefix else logging.WARNING  # all ranks have the same data and warnings
    logging.basicConfig(handlers=[handler], level=level)
    with standard_streams():
        try:
            _run(prefix)
        except SystemExit as done:
            if "RANK" not in os.environ:
                raise
            # Threads of torch's process group may abort an exiting Python, and the exit code would be lost.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(done.code if isinstance(done.code, int) else int(done.code is not None))


class _Messages(logging.Handler):
    """Writes to what standard error is at that time: progress shown in place puts lines above itself."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _OneLine(logging.Formatter):
    """Messages may contain names from outside; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging gives it
        return visible(super().formatMessage(record))


def _run(prefix: str) -> None:
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # all results are written, or it is an error
    except OutputClosed:
        sys.exit(128 + signal.SIGPIPE)  # as a program that this signal ends
    except UserError as error:
        _fail(error, 2, prefix)
    except OtherRankError as error:
        _fail(error, error.code, prefix)
    except NotFiniteError as error:
        _fail(error, 1, prefix)
    except Interrupted as error:
        _fail(error, 128 + error.signal_number, prefix)


def _fail(error: UserError | OtherRankError | NotFiniteError | Interrupted, code: int, prefix: str) -> None:
    if prefix and error.reported:
        time.sleep(1)  # rank 0 reports it, and a launcher kills all ranks once one has exited
    else:
        print(f"error: {prefix}{visible(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
        logging.getLogger(__name__).debug("where this error is", exc_info=error)  # with --verbose
    sys.exit(code)
