"""The errors of a load test. Each message is a sentence for the person who started it.

LoadTestError           something outside the command line went wrong   exit code 1
+-- UsageError          the command line or a file it names is wrong    exit code 2
    +-- Unreachable     no connection can be made to --url              exit code 2
"""


class LoadTestError(Exception):
    """The test could not be carried out; the message says what to change."""

    exit_code = 1


class UsageError(LoadTestError):
    """The command line or a file is wrong; the message says what to change."""

    exit_code = 2


class Unreachable(UsageError):
    """No connection can be made to the service; the message says why and what to change."""
