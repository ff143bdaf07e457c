"""An accelerator without hardware: tensors of a second device, computed on the CPU."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)
from torchrl.envs import DeviceCastTransform

NAME = "rehearsal"
aten = torch.ops.aten

# Operators of which the host needs the result before it goes on.
_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "repeat_interleave",
    "bincount",
}
# The host finds a wrong index, of a dimension or a whole number, itself.
_HOST_INDEX_CHECKS = {"select", "slice", "squeeze", "unsqueeze", "transpose", "size"}
_METADATA = {
    aten.dim.default,
    aten.is_contiguous.default,
    aten.is_contiguous.memory_format,
    aten.is_non_overlapping_and_dense.default,
    aten.is_strides_like_format.default,
    aten.numel.default,
    aten.size.default,
    aten.storage_offset.default,
    aten.stride.default,
    aten.sym_is_contiguous.default,
    aten.sym_numel.default,
    aten.sym_size.default,
    aten.sym_storage_offset.default,
    aten.sym_stride.default,
}
# CUDA takes these arguments from the host, each as a copy.
_KERNELS_GENERATORS: list[torch.Generator | None] = []
_COPIES = {"copy_", "_to_copy"}
_HOST_INDICES = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
}
_HOST_SCALARS = {"fill_", "fill", "masked_fill", "masked_fill_", "where", "index_fill_"}


class HostWait(NamedTuple):
    """An operator for which the host waits for the device."""

    operator: str


class RehearsalTensor(torch.Tensor):
    """A tensor on the device ``rehearsal``; its numbers lie in a CPU tensor.

    It behaves as one on CUDA does: together with a CPU tensor of one dimension or more
    it raises, it takes no CPU generator and is no NumPy array.
    """

    inner: torch.Tensor
    is_cuda = True
    waits: list[HostWait] = []

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> RehearsalTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
            dispatch_sizes_strides_policy="sizes",
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"RehearsalTensor({self.inner})"

    def __reduce_ex__(self, protocol):
        return _on_rehearsal, (self.inner, self.requires_grad)

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in _METADATA:
            return func(args[0].inner, *args[1:])
        return _compute(func, args, kwargs or {})


def _on_rehearsal(inner: torch.Tensor, requires_grad: bool) -> RehearsalTensor:
    return RehearsalTensor(inner).requires_grad_(requires_grad)


def _leaves(values):
    for value in values:
        if type(value) in (tuple, list) or isinstance(value, (tuple, list)):
            yield from _leaves(value)
        elif isinstance(value, dict):
            yield from _leaves(value.values())
        else:
            yield value


def _compute(func, args, kwargs):
    name = func._schema.name.removeprefix("aten::")
    leaves = list(_leaves([args, kwargs]))
    to_device = kwargs.get("device")
    is_made_there = to_device is not None and torch.device(to_device).type == NAME
    on_device = any(type(value) is RehearsalTensor for value in leaves)
    if on_device or is_made_there:
        _check_devices(func, name, args, leaves)
    leaves_it = on_device and to_device is not None and not is_made_there
    is_copied_out = name == "copy_" and on_device and not _is_here(args[0])
    if (name in _WAITS and on_device) or leaves_it or is_copied_out:
        RehearsalTensor.waits.append(HostWait(name))
    if name in _HOST_INDICES and any(
        v is not None and v.dtype in (torch.bool, torch.uint8) for v in args[1]
    ):
        RehearsalTensor.waits.append(HostWait("nonzero"))
    stays = to_device is None or is_made_there
    if is_made_there:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if "pin_memory" in kwargs:
        kwargs = {**kwargs, "pin_memory": None}
    inner_args, inner_kwargs = tree_map(_unwrap, (args, kwargs))
    try:
        out = func(*inner_args, **inner_kwargs)
    except IndexError as error:
        if on_device and name not in _HOST_INDEX_CHECKS:
            raise RuntimeError(f"device-side assert triggered: {error}") from error
        raise
    if stays:
        out = tree_map(_wrap, out)
    if not on_device or not stays:
        return out
    if name == "copy_" and type(args[0]) is not RehearsalTensor:
        return args[0]
    return return_and_correct_aliasing(func, args, kwargs, out)


def _check_devices(func, name, args, leaves) -> None:
    pointwise = torch.Tag.pointwise in func.tags
    if name in _COPIES:
        return
    for value in leaves:
        if isinstance(value, torch.Generator) and not _is_ours(value):
            raise RuntimeError(
                f"Expected a '{NAME}' device type for generator but found 'cpu'"
            )
        if not isinstance(value, torch.Tensor) or type(value) is RehearsalTensor:
            continue
        if value.ndim == 0 and (pointwise or name in _HOST_SCALARS | _HOST_INDICES):
            continue
        is_index = name in _HOST_INDICES and any(value is v for v in args[1])
        if is_index and type(args[0]) is RehearsalTensor:
            RehearsalTensor.waits.append(HostWait("index from the host"))
            continue
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two "
            f"devices, {NAME}:0 and cpu! ({name}, {tuple(value.shape)})"
        )


def _is_ours(generator: torch.Generator) -> bool:
    if _KERNELS_GENERATORS and _KERNELS_GENERATORS[-1] is None:
        _KERNELS_GENERATORS[-1] = generator
    return any(generator is known for known in _KERNELS_GENERATORS)


def _is_here(value) -> bool:
    return type(value) is RehearsalTensor


def _unwrap(value):
    return value.inner if type(value) is RehearsalTensor else value


def _wrap(value):
    return RehearsalTensor(value) if type(value) is torch.Tensor else value


def _fallback(func, *args, **kwargs):
    return _compute(func, args, kwargs)


@contextmanager
def host_waits():
    """The operators in this block for which the host waits for the device."""
    before, RehearsalTensor.waits = RehearsalTensor.waits, []
    try:
        yield RehearsalTensor.waits
    finally:
        RehearsalTensor.waits = before


class RehearsalGenerator(torch.Generator):
    """A generator of the device; its numbers are the CPU's."""

    def __new__(cls, device=None):
        return super().__new__(cls)

    @property
    def device(self) -> torch.device:
        return torch.device(f"{NAME}:0")


class _GeneratorType(type(torch.Generator)):
    def __instancecheck__(cls, value) -> bool:
        return isinstance(value, RehearsalGenerator.__base__)


class _Generator(metaclass=_GeneratorType):
    """``torch.Generator``, which has no hook for a device written in Python."""

    def __new__(cls, device="cpu"):
        is_ours = torch.device(device).type == NAME
        if not is_ours:
            return RehearsalGenerator.__base__(device)
        made = RehearsalGenerator()
        # A kernel gets another Python object of the same generator: this one.
        _KERNELS_GENERATORS.append(None)
        torch.empty(0, device=NAME).normal_(generator=made)
        return made


class _Module(_DummyBackendModule):
    """What TorchRL and TensorDict ask the accelerator's module for."""

    def synchronize(self, device=None) -> None:
        pass

    def get_rng_state(self, device=None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None) -> None:
        torch.set_rng_state(state)


class _AsOnAccelerators(TorchFunctionMode):
    """What PyTorch does for real devices and not for one that is written in Python.

    ``tensor.data = value`` changes the device, ``new_tensor`` and lists as indices are
    copied there.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.new_tensor and type(args[0]) is RehearsalTensor:
            kwargs = {"dtype": args[0].dtype, "device": NAME, **(kwargs or {})}
            return torch.tensor(*args[1:], **kwargs)
        if func in _INDEXING and type(args[0]) is RehearsalTensor:
            args = (args[0], _indices(args[1]), *args[2:])
        if func == torch.Tensor.data.__set__ and type(args[0]) is not type(args[1]):
            value = args[1].detach().clone().requires_grad_(args[0].requires_grad)
            return torch.utils.swap_tensors(args[0], value)
        return func(*args, **(kwargs or {}))


_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


def _indices(index):
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index, device=NAME) if isinstance(index, list) else index


def register() -> None:
    """Make ``torch.device("rehearsal")`` known; once in a process."""
    global _LIBRARY
    _device_constructors()  # remembers the functions that are replaced below
    _setup_privateuseone_for_python_backend(rename=NAME, backend_module=_Module())
    _LIBRARY = torch.library.Library("_", "IMPL")
    _LIBRARY.fallback(_fallback, "PrivateUse1")
    torch.serialization.add_safe_globals([_on_rehearsal])
    torch.Generator = _Generator
    DeviceCastTransform._sync_device = staticmethod(lambda: None)
    _AsOnAccelerators().__enter__()
    # module.to(device) keeps its parameters, as it does with a real accelerator.
    torch.__future__.set_swap_module_params_on_conversion(True)
    for name in ("tensor", "as_tensor", "asarray"):
        setattr(torch, name, _from_the_host(getattr(torch, name)))


def _from_the_host(create):
    """``create`` by way of the CPU, as PyTorch itself does it."""

    @functools.wraps(create)
    def created(data, *args, device=None, requires_grad=False, **kwargs):
        if device is None or torch.device(device).type != NAME:
            if device is not None:
                kwargs["device"] = device
            if requires_grad:
                kwargs["requires_grad"] = True
            return create(data, *args, **kwargs)
        value = create(data, *args, **kwargs).to(device)
        return value.requires_grad_() if requires_grad else value

    return created
