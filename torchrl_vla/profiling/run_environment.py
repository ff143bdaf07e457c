"""Facts of the machine and the software that times and numbers depend on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

#: Facts that must agree for two results to be compared bit by bit.
NUMERIC_FACTS = (
    *("torch", "device", "threads", "cpu_capability"),
    *("deterministic", "matmul_precision"),
)
#: Facts that must agree for two times to be compared.
TIMING_FACTS = (*NUMERIC_FACTS, "machine")


def describe_run(device: torch.device | str = "cpu") -> dict[str, object]:
    """Return the facts of this process that times and numbers depend on.

    Args:
        device: where the numbers are computed.

    Examples:
        >>> describe_run()["torch"] == torch.__version__
        True
    """
    device = torch.device(device)
    name = device.type
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "torch": torch.__version__,
        "tensordict": version("tensordict"),
        "torchrl": version("torchrl"),
        "python": platform.python_version(),
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "machine": f"{_cpu_name()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _cpu_name() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
