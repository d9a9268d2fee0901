"""``torch`` and ``numpy``, imported the moment they are first used.

Attacks and defenses declare themselves to the registry when their module is imported, and
``dmlbench list`` imports them all. Importing torch takes seconds, so those modules write
``from dmlbench.common.lazy import torch`` and pay for it only when something is computed.
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
