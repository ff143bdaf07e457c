"""Synchronization and memory of the device that a training runs on."""

from __future__ import annotations

import resource
import sys
from typing import Protocol

import torch


class DeviceModule(Protocol):
    """Functions of ``torch.cuda``, or another accelerator's module, that are used."""

    def synchronize(self) -> None:
        """Wait until the device has done its work."""

    def reset_peak_memory_stats(self) -> None:
        """Begin the peaks anew."""

    def memory_allocated(self) -> int:
        """Return the bytes of tensors."""

    def memory_reserved(self) -> int:
        """Return the bytes that the allocator holds."""

    def max_memory_allocated(self) -> int:
        """Return the peak of the former since the reset."""

    def max_memory_reserved(self) -> int:
        """Return the peak of the latter since the reset."""


class DeviceMeter:
    """Wait for a device and read its memory; on the CPU there is nothing to wait for.

    Args:
        module: of the accelerator, such as ``torch.cuda``; None = the CPU.

    Examples:
        >>> meter = DeviceMeter.of(torch.device("cpu"))
        >>> meter.synchronize(), meter.memory()
        (None, {})
    """

    def __init__(self, module: DeviceModule | None) -> None:
        self._module = module

    @classmethod
    def of(cls, device: torch.device) -> DeviceMeter:
        """Return the meter of a device."""
        if device.type == "cpu":
            return cls(None)
        return cls(torch.get_device_module(device))

    def begin(self) -> None:
        """Begin the peaks anew."""
        if self._module is not None:
            self._module.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Wait until the device has done its work."""
        if self._module is not None:
            self._module.synchronize()

    def memory(self) -> dict[str, int]:
        """Return the bytes that are held now; empty on the CPU."""
        if self._module is None:
            return {}
        return {
            "allocated_bytes": self._module.memory_allocated(),
            "reserved_bytes": self._module.memory_reserved(),
        }

    def peaks(self) -> dict[str, int]:
        """Return the peaks since :meth:`begin`, and that of the process's own memory.

        The process's peak, ``peak_rss_bytes``, is since its start.
        """
        unit = 1 if sys.platform == "darwin" else 1024
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if self._module is None:
            return {"peak_rss_bytes": resident}
        return {
            "peak_rss_bytes": resident,
            "peak_memory_allocated_bytes": self._module.max_memory_allocated(),
            "peak_memory_reserved_bytes": self._module.max_memory_reserved(),
        }
