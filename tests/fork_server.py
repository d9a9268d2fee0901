"""A fork server: a process that has imported all modules and forks for each ``dmlbench``.

Imports are most of what a short command costs. The fork server makes them once and runs nothing of
dmlbench; each command is a fork of it, a real process with its own folder, arguments and exit code.
Plugins are first looked for by the command. Scripts of Python run in the same way.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = ("__main__", "make", "ray_cluster")  # are started, or need an extra
SOURCE = Path(__file__).parents[1] / "src"
START = 600  # seconds: the first command waits for the imports, on a loaded machine for minutes


def environment(*folders: Path) -> dict[str, str]:
    """The environment of a process of one thread that finds ``folders`` and the tested dmlbench.

    In a second work tree that is not the installed one.
    """
    path = os.pathsep.join(map(str, (*folders, SOURCE)))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class ForkServer:
    """The process from which commands are forked; ``environment`` is that of the commands."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, arguments: tuple[str, ...], cwd: Path, timeout: float, installed: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and wait for its end."""
        return self.start(arguments, cwd, installed).wait(timeout)

    def python(self, script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the lines of a script in a file of ``cwd``, and wait for its end."""
        (cwd / "script.py").write_text(script)
        return self.run(("script.py",), cwd, START)

    def start(
        self, arguments: tuple[str, ...], cwd: Path, installed: Path | None = None
    ) -> Command:
        """Start a command, with the packages of the folder ``installed`` besides.

        It is the script of that name where the first of the ``arguments`` ends with .py.
        """
        folder = tempfile.TemporaryDirectory()
        out, err = Path(folder.name) / "out", Path(folder.name) / "err"
        order = {"arguments": arguments, "cwd": str(cwd), "out": str(out), "err": str(err)}
        if installed:
            order["installed"] = str(installed)
        return Command(self, self.order(order, START), arguments, folder)

    def order(self, order: dict[str, Any], timeout: float) -> int:
        """Tell the process what to do, and return its answer, a number."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], timeout)[0]:
            process.kill()
            raise subprocess.TimeoutExpired(str(order), timeout)
        return int(process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Command:
    """A command that was started."""

    fork_server: ForkServer
    pid: int
    arguments: tuple[str, ...]
    folder: tempfile.TemporaryDirectory[str]

    def send_signal(self, number: int) -> None:
        """Send it a signal; it has not been waited for, so the number is still its own."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and return its exit code and what it printed."""
        code = self.fork_server.order({"wait": self.pid}, timeout)
        out, err = (Path(self.folder.name) / name for name in ("out", "err"))
        done = subprocess.CompletedProcess(self.arguments, code, out.read_text(), err.read_text())
        self.folder.cleanup()
        return done


def _serve() -> None:
    import click  # noqa: F401
    import faiss  # noqa: F401
    import filelock  # noqa: F401
    import matplotlib.backends.backend_pdf
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import msgspec  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.dataset
    import pyarrow.pandas_compat
    import pyarrow.parquet  # noqa: F401
    import rich.progress
    import rich.table  # noqa: F401
    import safetensors.torch  # noqa: F401
    import scipy.special  # noqa: F401
    import torch.utils.data  # noqa: F401
    import torchvision  # noqa: F401
    import yaml  # noqa: F401

    import dmlbench

    for module in pkgutil.walk_packages(dmlbench.__path__, "dmlbench."):
        if not module.name.endswith(PROGRAMS):
            importlib.import_module(module.name)
    gc.freeze()  # a collection in a child would copy every page
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        elif not (answer := os.fork()):
            os._exit(_command(order))
        print(answer, flush=True)


def _command(order: dict[str, Any]) -> int:
    """Do in the forked process the same as ``python -m dmlbench``, or ``python SCRIPT.py``."""
    os.chdir(order["cwd"])
    if folder := order.get("installed"):
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join((folder, os.environ["PYTHONPATH"]))
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(order[name], os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    script = order["arguments"] and order["arguments"][0].endswith(".py")
    sys.argv = order["arguments"] if script else ["dmlbench", *order["arguments"]]
    code = 0
    try:
        if script:
            sys.path[0] = str(Path.cwd())
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            from dmlbench.cli.main import main

            main(prog_name="dmlbench")
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve()
