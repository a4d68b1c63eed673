"""The ways a load test refuses to go on; each message is a sentence for whoever ran it.

LoadTestError           something outside the command line went wrong   exit code 1
+-- UsageError          the command line or a file it names is wrong    exit code 2
"""


class LoadTestError(Exception):
    """The test could not be carried out; the message says what to change."""

    exit_code = 1


class UsageError(LoadTestError):
    """What was asked for cannot be run as asked; the message says what to change."""

    exit_code = 2
