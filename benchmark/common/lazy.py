"""``torch`` and ``numpy`` as modules that are imported only when they are first used.

An attack or a defense enters the registry when its module is imported, and ``dmlbench list``
imports all of them. Importing torch takes seconds. Modules that contain
``from dmlbench.common.lazy import torch`` import it only when they compute something.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["np", "torch"]

if TYPE_CHECKING:
    import numpy as np
    import torch
else:

    class _LazyModule(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    torch = _LazyModule("torch")
    np = _LazyModule("numpy")
