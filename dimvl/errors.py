"""The exceptions that end a command with one sentence instead of a traceback.

In a run of several processes, `reported` says that rank 0 prints the error, so that the other ranks need not.
"""

from dimvl.showing import visible

LONGEST = 2000
"""Characters of a message, a screen full; of a longer one, which quotes what it was given, the middle is left out."""


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a value.

    The message is one clear sentence with the name, the value and the remedy. The command line prints it without a
    traceback and exits with code 2. Each line of it can be printed, whatever it
    quotes.
    """

    reported = False

    def __init__(self, message: object = "") -> None:
        text = "\n".join(map(visible, str(message).split("\n")))
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


class NotFinitePredictionError(UserError):
    """A prediction is not a finite number, for damaged weights or regions."""

    def __init__(self) -> None:
        super().__init__(
            "the model's predictions are not finite numbers; check that the features of the regions are, and restore "
            "the model from a copy of its folder"
        )


class NotFiniteError(Exception):
    """A loss or gradient is not finite: every rank stops without saving. The command line exits with code 1."""

    reported = True


class OtherRankError(Exception):
    """Another process of the run failed or was lost. The command line exits with the given code."""

    reported = True

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interrupted(Exception):  # noqa: N818 - not an error: the run was asked to stop and did so, its state saved
    """The run got SIGTERM or SIGINT and saved a checkpoint. The command line exits with 128 + the signal's number."""

    reported = True

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
