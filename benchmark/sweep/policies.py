"""The values of ``--resume`` and ``--executor``. Imports nothing: ``dmlbench --help`` is quick."""

from __future__ import annotations

DONE, FAILED, STALE, TO_DO = "done", "failed", "stale", "to do"
KEPT_STATUSES = {  # policy of --resume -> statuses of cells that a run keeps as they are
    "retry-failed": (DONE,),
    "only-missing": (DONE, FAILED),
    "always": (DONE, FAILED, STALE),
    "never": (),
}
EXECUTORS = ("local", "ray")
