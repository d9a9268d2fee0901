"""Find the operation that makes a tensor of a given size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = size
        self.found: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_place(one) for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        for one in tree_leaves(result):
            if not torch.is_tensor(one) or _place(one) in given:  # a view of what was there
                continue
            if one.numel() and one.numel() % self.size == 0:
                held = one.untyped_storage().nbytes() // one.element_size()
                if held >= one.numel():  # a view that repeats its rows holds less
                    self.found = self.found or func.overloadpacket.__name__
        return result


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def largest(work: Callable[[], object], size: int) -> str | None:
    """The first operation in ``work`` whose result has a multiple of ``size`` numbers, if any."""
    sizes = _Sizes(size)
    with sizes:
        work()
    return sizes.found
