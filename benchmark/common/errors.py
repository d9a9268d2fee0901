"""The kinds of failure dmlbench tells apart, and the exit codes they lead to."""

from __future__ import annotations

EXIT_FAILED_CELLS, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, an unusable folder.

    The message is one line that says what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


class CellError(Exception):
    """A cell that cannot yield a number (a non-finite loss, a broken model).

    The sweep stores the cell as failed, goes on with the others and exits with code 1.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch scheduler sends it: the run ends as if by Ctrl-C."""
