"""Fingerprint of one forward pass: its outputs and its operators."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDictBase
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla.profiling.json_files import sorted_json
from torchrl_vla.profiling.operator_recording import operator_table
from torchrl_vla.profiling.run_environment import describe_run

FINGERPRINT_FILE = "deterministic_forward.json"
OPERATORS_FILE = "deterministic_forward_ops.txt"
_DIGITS = 8


@dataclass(frozen=True)
class ForwardFingerprint:
    """Outputs and operators of one forward pass with fixed random numbers.

    Args:
        seed: of PyTorch's, NumPy's and Python's random numbers.
        reference_batch_size: rows of the batch.
        operators: one entry per operator, sorted by name: ``key``, ``count``,
            ``cpu_time_total_us``.
        operator_fingerprint: SHA-256 of names and counts. The same hash means the same
            calls.
        outputs: ``loss`` (the sum of the entries that begin with ``loss``, or None) and
            ``output_dict``: shape, dtype, hash, sum and mean of every tensor.
        output_fingerprint: SHA-256 of ``outputs``. The same hash means the same result,
            bit for bit.
        environment: facts that the numbers depend on, see ``describe_run``.
    """

    seed: int
    reference_batch_size: int
    operators: Sequence[Mapping[str, object]]
    operator_fingerprint: str
    outputs: Mapping[str, object]
    output_fingerprint: str
    environment: Mapping[str, object]

    def to_json(self) -> str:
        """Return the fingerprint as JSON."""
        return sorted_json(asdict(self))

    @classmethod
    def from_json(cls, path: Path | str) -> ForwardFingerprint:
        """Read a fingerprint from a file.

        Raises:
            FileNotFoundError: there is no such file.
            SchemaError: it is none of ``deterministic_forward.json``.
        """
        remedy = "Fingerprint the module again."
        origin = Origin.of_file("ForwardFingerprint", Path(path), remedy)
        with origin.reading(f"{FINGERPRINT_FILE} of a profile"):
            return cls(**json.loads(read_text(origin, Path(path))))


def fingerprint_forward(
    module: nn.Module, tensordict: TensorDictBase, seed: int = 0
) -> ForwardFingerprint:
    """Fingerprint a module's forward pass, to see whether a change is a no-op.

    The same output hash means a bit-identical result, the same operator hash the same
    calls of operators. A speed-up keeps the first and may change the second; a
    numerical regression changes the first. Compare fingerprints of one environment
    only, as :func:`compare_profiles` does.

    The module stays in its training or evaluation mode, its buffers (the statistics of
    a batch normalization) get their values back, and random numbers outside are not
    moved on.

    Args:
        module: a policy or a loss; returns a tensordict, a mapping, a tensor, or
            ``(loss, mapping)`` as LeRobot's policies do.
        tensordict: what it reads; not changed.

    Keyword Args:
        seed: of the random numbers.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> layer = TensorDictModule(nn.Linear(2, 1), ["x"], ["y"])
        >>> batch = TensorDict(x=torch.ones(3, 2), batch_size=[3])
        >>> first = fingerprint_forward(layer, batch)
        >>> again = fingerprint_forward(layer, batch)
        >>> first.output_fingerprint == again.output_fingerprint
        True
    """
    return _fingerprint(module, tensordict, seed)[0]


def write_fingerprint(
    module: nn.Module, tensordict: TensorDictBase, folder: Path, seed: int = 0
) -> ForwardFingerprint:
    """Fingerprint a forward pass, and write it beside the table of its operators."""
    made, averages = _fingerprint(module, tensordict, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FINGERPRINT_FILE, made.to_json())
    columns = ("self_device_time_total", "self_cuda_time_total")
    on_device = made.environment["device"] != "cpu"
    table = operator_table(averages, columns if on_device else ("cpu_time_total",))
    write_text(folder / OPERATORS_FILE, table or "")
    return made


def _fingerprint(
    module: nn.Module, tensordict: TensorDictBase, seed: int
) -> tuple[ForwardFingerprint, object]:
    device = _device_of(module)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with (
        _seeded(seed, device),
        _kept_buffers(module),
        torch.no_grad(),
        profile(activities=activities, acc_events=True) as recorded,
    ):
        answer = module(tensordict.copy())
    averages = recorded.key_averages()
    outputs = _summarize_answer(answer)
    operators = sorted(_operators(averages, device), key=lambda e: str(e["key"]))
    counts = [(entry["key"], entry["count"]) for entry in operators]
    made = ForwardFingerprint(
        seed=seed,
        reference_batch_size=tensordict.numel(),
        operators=operators,
        operator_fingerprint=_hash_json(counts),
        outputs=outputs,
        output_fingerprint=_hash_json(outputs),
        environment=describe_run(device),
    )
    return made, averages


def _device_of(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all random numbers, then restore them."""
    python, array = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            _seed_all(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(array)


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Give buffers that a forward pass writes their values back."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _operators(averages: object, device: torch.device) -> Iterator[dict[str, object]]:
    for event in averages:  # type: ignore[attr-defined]
        if event.key.startswith("["):  # such as [memory], no operator
            continue
        entry: dict[str, object] = {
            "key": event.key,
            "count": event.count,
            "cpu_time_total_us": round(event.cpu_time_total, _DIGITS),
        }
        if device.type == "cuda":
            entry["self_cuda_time_total_us"] = round(device_time(event), _DIGITS)
        yield entry


def device_time(event: object) -> float:
    """Return the microseconds of an event on its device, under either of its names."""
    match event:
        case object(self_device_time_total=time):
            return time
        case object(self_cuda_time_total=time):
            return time
    return 0.0


def _summarize_answer(answer: object) -> dict[str, object]:
    """Return the summaries of the loss and of all outputs."""
    loss: Any = None
    outputs: Any = answer
    match answer:
        case (Tensor() as loss, rest):
            outputs = rest
        case TensorDictBase():
            outputs = _leaves(answer)
            parts = [value for name, value in outputs.items() if name[:4] == "loss"]
            loss = sum(parts) if parts else None
    return {"loss": summarize(loss), "output_dict": summarize(outputs)}


def _leaves(tensordict: TensorDictBase) -> dict[str, Any]:
    """Return the leaves by their nested keys, joined with dots."""
    found: dict[str, Any] = {}
    for key, value in tensordict.items(True, True):
        name = key if type(key) is str else ".".join(key)
        match value:
            case NonTensorData() | NonTensorStack():
                value = value.tolist()
        found[name] = value
    return found


def summarize(value: object) -> object:
    """Return what a fingerprint keeps of a value: of a tensor, the hash of its bytes.

    Examples:
        >>> summarize(torch.ones(2))["sum"]
        2.0
        >>> summarize({"a": [1, None]})
        {'a': [1, None]}
    """
    match value:
        case Tensor():
            return _summarize_tensor(value)
        case TensorDictBase():
            return summarize(_leaves(value))
        case dict():
            return {str(name): summarize(entry) for name, entry in value.items()}
        case list() | tuple():
            return [summarize(entry) for entry in value]
        case None | str() | int() | float() | bool():
            return value
    return repr(value)


def _summarize_tensor(value: Tensor) -> dict[str, object]:
    value = value.detach().cpu().contiguous()
    summary: dict[str, object] = {
        "shape": list(value.shape),
        "dtype": str(value.dtype),
        "numel": value.numel(),
    }
    if value.dtype == torch.bfloat16:  # NumPy has no such number
        value = value.float()
    raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
    summary["sha256"] = hashlib.sha256(raw).hexdigest()
    if value.numel() and not value.is_complex():
        numbers = value.double()
        summary["sum"] = round(numbers.sum().item(), _DIGITS)
        summary["mean"] = round(numbers.mean().item(), _DIGITS)
    return summary


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
