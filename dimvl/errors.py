"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake in what the user gave: a file, an option, a value.

    The message is one clear sentence with the name, the value and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """
