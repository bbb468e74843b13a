"""The exceptions that end a command with a sentence instead of a traceback."""


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a value.

    The message is one clear sentence with the name, the value and the remedy. The command line prints it without a
    traceback and exits with code 2. Where a run has several processes, `told` says that all of them know of it.
    """

    told = False


class NotFiniteError(Exception):
    """A loss or gradient is not finite: every rank stops without saving. The command line exits with code 1."""

    told = True


class OtherRankError(Exception):
    """Another process of the run failed or is gone. The command line exits with the code given."""

    told = True

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop and did, its state saved
    """The run got SIGTERM or SIGINT and saved a checkpoint. The command line exits with 128 + the signal's number."""

    told = True

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
