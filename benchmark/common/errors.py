"""The exceptions of dmlbench, and the exit codes of its command line."""

from __future__ import annotations

EXIT_FAILED_CELLS, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class UserError(Exception):
    """An error that the user can correct: bad input, a missing file, an unusable folder.

    The message is one line that says what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


class DamagedError(UserError):
    """A stored file that is not what was written: a run sets it aside and does its work again.

    Attributes:
        reason: the file and what is wrong with it; the message adds the remedy.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[DamagedError], tuple[str, str]]:
        """For other processes."""
        return type(self), (self.reason, self.remedy)


class CellError(Exception):
    """A training or a measurement that cannot give a number (a non-finite loss, a broken model).

    The run stores the cell as failed, continues with the others and exits with code 1.
    """


class Terminated(KeyboardInterrupt):
    """The signal SIGTERM, which batch schedulers send: the run ends as it does after Ctrl-C."""
