"""A stand-in for an accelerator: the torch device ``sim``, made of CPU tensors.

A tensor of it cannot be mixed with CPU tensors, as one of a GPU cannot: what works on it is very
likely to work on a GPU, and what computes on the wrong device raises. Its numbers are the CPU's,
so a run on it must agree with a run on the CPU.

``install`` makes the device known to PyTorch, in this process and until it ends. It uses PyTorch's
experimental backend in Python: each tensor is an empty one of the device ("wrapper"), which stands
for a CPU tensor ("inner"), and a fallback does every operation on the inner tensors. A wrapper
always claims to be contiguous. Where the inner one is not, PyTorch must not compute strides from
the wrapper's, so operations that make views are given whole here; any other that arrives as
``as_strided`` is refused rather than wrong.

It does not stand in for cuDNN, CUDA graphs, streams, memory, NCCL or speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration

NAME = "sim"
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
INDEX_TYPES = (torch.int32, torch.int64, torch.uint8, torch.bool)
VIEWS = (
    *("alias", "detach", "diagonal", "expand", "permute", "select.int", "slice.Tensor"),
    *("split.Tensor", "split_with_sizes", "squeeze", "squeeze.dim", "squeeze.dims", "t"),
    *("transpose.int", "unbind.int", "unfold", "unsqueeze"),
)
FACTORIES = ("arange", "arange.start", "arange.start_step")
WHOLE = ("index.Tensor",)  # PyTorch would compute strides for it too
COMPUTING = ("dmlbench", "spawn_main", "default_worker")  # in the command of a process, a worker
PURGE = 2000  # wrappers made between two clearings of the table below

_inner: dict[int, tuple[StorageWeakRef, torch.Tensor]] = {}
"""Storage of a wrapper -> its inner tensor. Copies that PyTorch makes of a wrapper, as those that
it saves for the backward pass, share the storage."""
_libraries: list[torch.library.Library] = []  # what is registered is undone when these are deleted


class Wrapper(torch.Tensor):
    """A tensor of the device ``sim`` that stands for ``inner``, a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # a result on the CPU is no Wrapper
    made = 0

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made = torch._C._acc.create_empty_tensor(inner.shape, inner.dtype)
        made.__class__ = cls
        return made

    def __init__(self, inner: torch.Tensor) -> None:
        storage = self.untyped_storage()
        _inner[storage._cdata] = (StorageWeakRef(storage), inner)
        Wrapper.made += 1
        if Wrapper.made % PURGE == 0:
            for key in [key for key, (kept, _) in _inner.items() if kept.expired()]:
                del _inner[key]

    def __format__(self, spec: str) -> str:
        return format(inner_of(self), spec)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return inner_of(self).__reduce_ex__(protocol)  # as one reads it with map_location="cpu"


class Generator(torch.Generator):
    """Random numbers of a device; those of ``sim`` are the CPU's."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        on_sim = torch.device(device).type == NAME
        made: Generator = super().__new__(cls, "cpu" if on_sim else device)
        made.on_sim = on_sim
        return made

    @property
    def device(self) -> torch.device:
        """The device that it was made for."""
        return torch.device(NAME, 0) if self.on_sim else super().device


class SameGenerator(TorchFunctionMode):
    """Refuses random numbers of one device from a generator of another, as CUDA does."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        found = function(*arguments, **(named or {}))
        generator = (named or {}).get("generator")
        if generator is not None and isinstance(found, torch.Tensor):
            expected, given = found.device.type, generator.device.type
            if expected != given:
                raise RuntimeError(
                    f"Expected a '{expected}' device type for generator but found '{given}'"
                )
        return found


class Backend(backend_registration._DummyBackendModule):
    """The module ``torch.sim``."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """The precisions of ``torch.autocast``."""
        return [torch.bfloat16, torch.float16]


def install() -> None:
    """Make the device known to PyTorch; calling it again does nothing."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([everything, aten])
    everything.fallback(_fallback, "PrivateUse1")
    for name in VIEWS:
        aten.impl(name, _view(name), "PrivateUse1")
    for name in WHOLE:
        aten.impl(name, partial(_fallback, _operation(name)), "PrivateUse1")
    for name in FACTORIES:
        aten.impl(name, _arange, "PrivateUse1")
    aten.impl("as_strided", _as_strided, "PrivateUse1")
    aten.impl("convolution_overrideable", _convolution, "PrivateUse1")
    aten.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")


@contextmanager
def strict_generators() -> Iterator[None]:
    """Within the block ``torch.Generator("sim")`` works, and is for tensors of ``sim`` only."""
    plain = torch.Generator
    torch.Generator = Generator  # type: ignore[misc]
    try:
        with SameGenerator():
            yield
    finally:
        torch.Generator = plain  # type: ignore[misc]


def startup(folder: Path) -> list[Path]:
    """Folders; a Python process that has them in PYTHONPATH knows the device from its start."""
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        f"if any(part in word for word in sys.orig_argv for part in {COMPUTING}):\n"
        "    from tests.accelerator import install, strict_generators\n"
        "    install()\n"
        "    kept = strict_generators()\n"
        "    kept.__enter__()\n"
    )
    return [folder, Path(__file__).resolve().parent.parent]


def is_wrapper(value: object) -> bool:
    """Return True for a tensor of the device."""
    return isinstance(value, torch.Tensor) and value.device.type == NAME


def inner_of(wrapper: torch.Tensor) -> torch.Tensor:
    """The CPU tensor that a tensor of the device stands for."""
    return _inner[wrapper.untyped_storage()._cdata][1]


def _operation(name: str) -> Any:
    """The operation ``name`` of ``aten``, with its overload behind a dot."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _each(change: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """``value`` with ``change`` done to every tensor in it."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(_each(change, one) for one in value)
    return value


def _inner_or_itself(tensor: torch.Tensor) -> torch.Tensor:
    return inner_of(tensor) if is_wrapper(tensor) else tensor


def _fallback(operation: Any, *arguments: Any, **named: Any) -> Any:
    """Do any operation on the inner tensors, after a check of the devices."""
    name, tensors = operation._schema.name, list[torch.Tensor]()
    _each(tensors.append, [*arguments, *named.values()])
    _check_devices(name, tensors)
    on_sim = any(map(is_wrapper, tensors))
    if named.get("device") is not None:
        on_sim = torch.device(named["device"]).type == NAME
        named = named | {"device": torch.device("cpu")}
    inner = [_each(_inner_or_itself, one) for one in arguments]
    for place, (value, expected) in enumerate(zip(inner, operation._schema.arguments)):  # noqa: B905
        if isinstance(value, int | float) and str(expected.type) == "Tensor":  # a tensor of no axis
            inner[place] = torch.tensor(value)
    if name == "aten::_local_scalar_dense":
        return inner[0].item()
    _check_written_view(name, tensors)
    if name in ("aten::copy_", "aten::_copy_from"):  # the latter names its source first
        source, target = (1, 0) if name == "aten::copy_" else (0, 1)
        inner[target].copy_(inner[source])
        return arguments[target]
    if name in ("aten::view", "aten::_reshape_alias"):  # contiguous is what the wrapper claims
        return Wrapper(inner[0].reshape(inner[1]))
    known = {id(inner_of(tensor)): tensor for tensor in tensors if is_wrapper(tensor)}

    def result(value: torch.Tensor) -> torch.Tensor:
        wrapper = known.get(id(value))  # an operation in place returns its argument
        if wrapper is None:
            return Wrapper(value) if on_sim else value
        if wrapper.shape != value.shape:  # an argument out= was resized
            wrapper.data = Wrapper(value)
        return wrapper

    options = {key: _each(_inner_or_itself, value) for key, value in named.items()}
    return _each(result, operation(*inner, **options))


def _check_devices(name: str, tensors: list[torch.Tensor]) -> None:
    """RuntimeError where CUDA would refuse: all but copies, scalars and indices from the CPU."""
    strangers = [tensor for tensor in tensors if not is_wrapper(tensor) and tensor.dim() > 0]
    if not strangers or len(strangers) == len(tensors) or name in COPIES:
        return
    if name in INDEXING and is_wrapper(tensors[0]):
        strangers = [tensor for tensor in strangers if tensor.dtype not in INDEX_TYPES]
    if strangers:
        devices = ", ".join(str(tensor.device) for tensor in tensors)
        raise RuntimeError(f"{name}: expected all tensors on the same device, found {devices}")


def _check_written_view(name: str, tensors: list[torch.Tensor]) -> None:
    """NotImplementedError where autograd would need the strides of a view that is written to."""
    if not name.endswith("_") or not any(tensor.requires_grad for tensor in tensors):
        return
    target = inner_of(tensors[0])
    if target.untyped_storage().nbytes() != target.numel() * target.element_size():
        raise NotImplementedError(f"{name} into a view, with gradient: use torch.stack or where")


def _view(name: str) -> Callable[..., Any]:
    operation = _operation(name)

    def viewed(x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return _each(Wrapper, operation(inner_of(x), *arguments, **named))

    return viewed


def _as_strided(x: torch.Tensor, size: Any, stride: Any, offset: int | None = None) -> Wrapper:
    inner = inner_of(x)
    if not inner.is_contiguous():
        raise NotImplementedError("as_strided of a view: add the operation to VIEWS")
    return Wrapper(inner.as_strided(size, stride, inner.storage_offset() + (offset or 0)))


def _arange(
    *arguments: Any,
    dtype: Any = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
) -> Wrapper:
    return Wrapper(torch.arange(*arguments, dtype=dtype))


def _convolution(x: torch.Tensor, weight: torch.Tensor, bias: Any, *geometry: Any) -> Wrapper:
    _check_devices("aten::convolution", [t for t in (x, weight, bias) if t is not None])
    inner = inner_of(x), inner_of(weight), _each(_inner_or_itself, bias)
    return Wrapper(torch.ops.aten.convolution(*inner, *geometry))


def _convolution_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *geometry: Any
) -> tuple[Wrapper | None, ...]:
    *others, wanted = geometry
    inner = inner_of(gradient), inner_of(x), inner_of(weight)
    biases = [weight.shape[0]]
    found = torch.ops.aten.convolution_backward(*inner, biases, *others, wanted)
    return _each(Wrapper, found)
