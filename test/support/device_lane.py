"""The suite on another device: where tensors of tests are created, what stays out."""

from __future__ import annotations

import functools
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torchrl.envs import EnvBase

_TESTS = str(Path(__file__).parents[1])
_CPU_ONLY = Path(__file__).with_name("cpu_only.txt")
_FROM_DATA = {"tensor", "as_tensor", "asarray"}


class TestsOnDevice(TorchFunctionMode):
    """Create the tensors of tests and the parameters of modules on ``device``.

    A default device would hide the fault that is looked for: a tensor that the library
    creates without a device lies on the CPU for a user, and so it does here. Only what
    a test creates itself, and what the constructor of a module creates (a user moves
    it by ``.to(device)``), goes to ``device``.
    """

    is_paused = False

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.is_paused:
            return func(*args, **kwargs)
        if func is torch.Tensor.numpy and _is_called_by_a_test(sys._getframe(1)):
            return args[0].cpu().numpy(**kwargs)
        if (
            func in _constructors()
            and kwargs.get("device") is None
            and "out" not in kwargs
            and not (func.__name__ in _FROM_DATA and isinstance(args[0], torch.Tensor))
            and _is_created_by_a_test(sys._getframe(1))
        ):
            if kwargs.get("generator") is not None:  # the numbers of the CPU's
                return func(*args, **kwargs).to(self.device)
            kwargs["device"] = self.device
            if func.__name__ in _FROM_DATA:
                return getattr(torch, func.__name__)(*args, **kwargs)
        return func(*args, **kwargs)


def begin(name: str) -> None:
    """Run this process's tests, and the imports of their files, on a device."""
    if name == "rehearsal":
        import rehearsal_device

        rehearsal_device.register()
    device = torch.device(name)
    torch.compile = _skip_compilation
    torch.from_numpy = functools.partial(_from_numpy, torch.from_numpy, device)
    kind = type(EnvBase)
    make = kind.__call__
    kind.__call__ = lambda cls, *args, **kwargs: _make_env(
        make, device, cls, *args, **kwargs
    )
    run = threading.Thread.run
    threading.Thread.run = lambda thread: _run_on_device(run, thread, device)
    TestsOnDevice(device).__enter__()


@contextmanager
def created_on_the_cpu():
    """In this block tests create their tensors on the CPU, and move them by hand."""
    TestsOnDevice.is_paused = True
    try:
        yield
    finally:
        TestsOnDevice.is_paused = False


def _run_on_device(run, thread, device) -> None:
    with TestsOnDevice(device):  # a mode is of one thread
        run(thread)


def _from_numpy(convert, device, array):
    tensor = convert(array)
    is_moved = not TestsOnDevice.is_paused and _is_called_by_a_test(sys._getframe(1))
    return tensor.to(device) if is_moved else tensor


def _make_env(make, device, cls, *args, **options):
    """Move an environment of tensors that a test makes; simulators stay on the CPU."""
    env = make(cls, *args, **options)
    is_moved = not TestsOnDevice.is_paused and _is_called_by_a_test(sys._getframe(2))
    return env.to(device) if is_moved and _is_of_tensors(cls) else env


def _is_of_tensors(cls: type) -> bool:
    own = ("torchrl_vla.envs.toy", "torchrl_vla.envs.tabletop")
    return cls.__module__.startswith(own) or not cls.__module__.startswith("torchrl")


def mark_cpu_only(items) -> None:
    """Mark what ``cpu_only.txt`` lists: a file or a test a line, and the reason."""
    for line in _CPU_ONLY.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            place, reason = line.split(maxsplit=1)
            for item in items:
                if item.nodeid.startswith(place):
                    item.add_marker(pytest.mark.cpu_only(reason=reason))


def _skip_compilation(*_args, **_kwargs):
    """Stand in for ``torch.compile``, which traces no mode that reads its callers."""
    pytest.skip("torch.compile is checked on the device by benchmarks/gpu_day.sh")


@functools.cache
def _constructors():
    return _device_constructors() | {torch.scalar_tensor}


@functools.cache
def _kind(file: str) -> str:
    if Path(file).name in ("device_lane.py", "rehearsal_device.py"):
        return "other"
    if file.startswith(("<doctest", _TESTS)):
        return "test"
    parts = Path(file).parts
    is_library = {"torchrl_vla", "torchrl", "tensordict"} & set(parts)
    return "library" if is_library else "other"


def _is_created_by_a_test(frame) -> bool:
    in_library = False
    while frame is not None:
        code = frame.f_code
        if _constructs_module(frame):
            return True
        kind = _kind(code.co_filename)
        if kind == "test":
            return not in_library
        in_library |= kind == "library"
        frame = frame.f_back
    return False


def _is_called_by_a_test(frame) -> bool:
    while _kind(frame.f_code.co_filename) == "other" and frame.f_back is not None:
        frame = frame.f_back
    return _kind(frame.f_code.co_filename) == "test"


def _constructs_module(frame) -> bool:
    code = frame.f_code
    if "torchrl_vla/testing/" in code.co_filename:  # plays on the CPU
        return False
    if code.co_name == "__init__":
        return isinstance(frame.f_locals.get("self"), nn.Module)
    if code.co_argcount and code.co_varnames[0] == "cls":
        made = frame.f_locals.get("cls")
        return isinstance(made, type) and issubclass(made, nn.Module)
    return False
