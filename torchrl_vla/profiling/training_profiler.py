"""Profiler of a training's steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, TextIO

import torch
from torch import nn
from torchrl.data import ReplayBuffer

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla.errors import ArgumentTypeError, SettingsError
from torchrl_vla.profiling.device_meter import DeviceMeter
from torchrl_vla.profiling.forward_fingerprint import (
    ForwardFingerprint,
    write_fingerprint,
)
from torchrl_vla.profiling.json_files import sorted_json
from torchrl_vla.profiling.operator_recording import (
    ACTIVE,
    WAIT,
    WARMUP,
    OperatorRecording,
)
from torchrl_vla.profiling.profile_options import ProfileMode, ProfileOptions
from torchrl_vla.profiling.reference_batch import float_images, reference_rows
from torchrl_vla.profiling.run_environment import describe_run
from torchrl_vla.profiling.step_timings import (
    SAMPLES_FILE,
    SUMMARY_FILE,
    StepSample,
    read_step_samples,
    summarize_steps,
)

_DATALOADING, _OTHER = "dataloading", "other"
_clock = time.perf_counter


class StepTracker(Protocol):
    """Times of a step that a training measured itself, as LeRobot's tracker has them.

    Each is a number of seconds or a meter with the number at ``val``.
    """

    update_s: object
    dataloading_s: object


class TrainingProfiler:
    """Record where the time of a training's steps goes.

    Sections of a step (``forward``, ``backward``, ``grad_clip``, ``optimizer``, those
    of a loop of your own) and ``other`` add up to ``total_update_s``; fetching a batch
    is ``dataloading_s``. Every step is on the disk when it ends, so a killed process
    leaves those before. The modes ``summary`` and ``trace`` also run PyTorch's profiler
    over steps 4 to 9.

    Note:
        On an accelerator a section waits for the device when it begins and when it
        ends, so that it holds the device's work and not its launch. And PyTorch's
        profiler slows the steps it watches: times of ``timing`` are those of a
        training, times of ``summary`` and ``trace`` are larger.

    Args:
        folder: receives ``step_samples.jsonl``, ``step_timing_summary.json``, and in
            ``summary`` and ``trace`` ``torch_tables/`` and ``torch_traces/``.
        mode: ``"timing"``, ``"summary"`` or ``"trace"``; for ``"off"`` use None in
            place of a profiler.
        warmup_steps: steps at the start of a process that the statistics keep apart.

    Raises:
        SettingsError: there is no such mode.

    Examples:
        >>> import tempfile
        >>> profiler = TrainingProfiler(tempfile.mkdtemp(), warmup_steps=0)
        >>> with profiler.running():
        ...     for step in range(1, 10):
        ...         with profiler.measured_step(step), profiler.section("forward"):
        ...             _ = torch.ones(3).sum()
        >>> [sample.step for sample in read_step_samples(profiler.folder)][-1]
        9
    """

    def __init__(
        self,
        folder: Path | str,
        mode: ProfileMode = "timing",
        warmup_steps: int = WAIT + WARMUP,
    ) -> None:
        if ProfileOptions(mode).profile_mode == "off":
            raise SettingsError(
                "TrainingProfiler: expected a mode of ('timing', 'summary', 'trace'), "
                "got 'off'. Pass None in place of a profiler."
            )
        self.folder, self.mode = Path(folder), mode
        self.warmup_steps = warmup_steps
        self._device = torch.device("cpu")
        self._meter = DeviceMeter(None)
        self._samples: TextIO | None = None
        self._operators: OperatorRecording | None = None
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}
        self._inside: set[str] = set()
        self._count = 0

    @classmethod
    def from_options(
        cls, options: ProfileOptions, training_folder: Path | str
    ) -> TrainingProfiler | None:
        """Return the profiler that options ask for, None where profiling is off."""
        if options.profile_mode == "off":
            return None
        return cls(options.folder_in(training_folder), options.profile_mode)

    @property
    def records_operators(self) -> bool:
        """Whether the mode also records operators and fingerprints."""
        return self.mode != "timing"

    @contextmanager
    def running(self, device: torch.device | str = "cpu") -> Iterator[TrainingProfiler]:
        """Start, and finalize also after an error."""
        self.start(device)
        try:
            yield self
        finally:
            self.finalize()

    def start(self, device: torch.device | str = "cpu") -> None:
        """Create the folder and begin to record.

        Args:
            device: where the training runs.
        """
        self._device = device = torch.device(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._meter = DeviceMeter.of(device)
        self._meter.begin()
        self._samples = (self.folder / SAMPLES_FILE).open("a", encoding="utf-8")
        self._count = 0
        if self.records_operators:
            traces = self.mode == "trace"
            self._operators = OperatorRecording(self.folder, device, traces=traces)
            self._operators.start()

    def record_deterministic_forward(
        self, module: nn.Module, buffer: ReplayBuffer, batch_size: int
    ) -> ForwardFingerprint:
        """Fingerprint a module on the first rows of a buffer, before the training.

        Args:
            module: a loss; stays in its mode.
            buffer: its rows ``0 .. batch_size - 1`` are taken, with its transforms; a
                shorter one begins again.
            batch_size: rows of the reference batch.

        Raises:
            SchemaError: the buffer is empty.
        """
        batch = buffer[reference_rows(len(buffer), batch_size)]
        parameter = next(module.parameters(), None)
        batch = float_images(batch)
        if parameter is not None:
            batch = batch.to(parameter.device)
        made = write_fingerprint(module, batch, self.folder)
        if parameter is not None and parameter.device.type == "cuda":
            torch.cuda.empty_cache()  # the training gets the memory back
        return made

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Measure a region of a step, also when it raises.

        Regions of one name are summed over a step. One inside another is measured too,
        and counts as part of the outer one.
        """
        self._meter.synchronize()
        if self._open:
            self._inside.add(name)
        self._open.append(name)
        started = _clock()
        try:
            yield
        finally:
            self._meter.synchronize()
            spent = _clock() - started
            self._open.pop()
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
            self._calls[name] = self._calls.get(name, 0) + 1

    @contextmanager
    def measured_step(self, step: int) -> Iterator[None]:
        """Measure a step from its batch to its end, and record it.

        A step that raises is not recorded.
        """
        self._meter.synchronize()
        started = _clock()
        try:
            yield
        except BaseException:
            self._forget()
            raise
        self._meter.synchronize()
        total = _clock() - started
        fetching = self._seconds.pop(_DATALOADING, 0.0)
        self._record(step, total - fetching, fetching)

    def step(self, step: int, tracker: StepTracker) -> None:
        """Record a step whose times the training measured itself.

        Args:
            step: its number.
            tracker: gives ``update_s`` and ``dataloading_s``.

        Raises:
            ArgumentTypeError: they are neither numbers nor meters.
        """
        fetching = _seconds_of("dataloading_s", tracker.dataloading_s)
        self._record(step, _seconds_of("update_s", tracker.update_s), fetching)

    @contextmanager
    def timed_calls(self, owner: object, method: str, section: str) -> Iterator[None]:
        """Measure every call of an object's method as a section.

        Args:
            owner: e.g. a policy or an environment.
            method: its name, e.g. ``"forward"``.
            section: name of the section.
        """
        original = getattr(owner, method)

        def timed(*arguments: object, **options: object) -> object:
            with self.section(section):
                return original(*arguments, **options)

        own = vars(owner)
        before = own.get(method)
        own[method] = timed
        try:
            yield
        finally:
            del own[method]
            if before is not None:
                own[method] = before

    def finalize(self) -> None:
        """Write the summary and the tables; a second call changes nothing."""
        if self._samples is None:
            return
        self._samples.close()
        self._samples = None
        self._forget()
        if self._operators is not None:
            self._operators.stop()
            self._operators = None
        summary = {
            "profile_mode": self.mode,
            "warmup_steps": self.warmup_steps,
            "environment": describe_run(self._device),
            **summarize_steps(read_step_samples(self.folder)),
            **self._meter.peaks(),
        }
        write_text(self.folder / SUMMARY_FILE, sorted_json(summary))
        needed = WAIT + WARMUP + ACTIVE
        if self._count < needed:
            warnings.warn(
                f"TrainingProfiler: expected at least {needed} steps, got "
                f"{self._count}: {WAIT + WARMUP} warm up and {ACTIVE} are measured. "
                f"What is in {str(self.folder)!r} is incomplete. Profile more steps.",
                stacklevel=2,
            )

    def _record(self, step: int, total: float, fetching: float) -> None:
        if self._samples is None:
            raise RuntimeError(
                f"TrainingProfiler: expected step {step} after start() and before "
                "finalize(), got it outside. Use `with profiler.running():`."
            )
        self._count += 1
        outer = [s for name, s in self._seconds.items() if name not in self._inside]
        sections = dict(self._seconds)
        if outer:
            sections[_OTHER] = total - sum(outer)
        sample = StepSample(
            step,
            self._count <= self.warmup_steps,
            total,
            fetching,
            sections,
            dict(self._calls),
            sorted(self._inside & sections.keys()),
            self._meter.memory(),
        )
        self._samples.write(sample.to_json_line())
        self._samples.flush()  # a killed process leaves what was flushed
        self._forget()
        if self._operators is not None:
            self._operators.step()

    def _forget(self) -> None:
        self._seconds.clear()
        self._calls.clear()
        self._inside.clear()


class Sections:
    """Sections of a training loop, of a profiler or of none.

    Without a profiler every method returns at once: no clock is read, no file written.

    Args:
        profiler: None = profiling is off.
    """

    def __init__(self, profiler: TrainingProfiler | None = None) -> None:
        self.profiler = profiler

    def running(self, device: torch.device) -> AbstractContextManager[object]:
        """Start the profiler, and finalize it at the end."""
        if self.profiler is None:
            return _NOTHING
        return self.profiler.running(device)

    def fingerprint(
        self, module: nn.Module, buffer: ReplayBuffer, batch_size: int
    ) -> None:
        """Fingerprint the first forward pass, in the modes that do."""
        if self.profiler is not None and self.profiler.records_operators:
            self.profiler.record_deterministic_forward(module, buffer, batch_size)

    def step(self, number: int) -> AbstractContextManager[None]:
        """Measure a step."""
        if self.profiler is None:
            return _NOTHING
        return self.profiler.measured_step(number)

    def section(self, name: str) -> AbstractContextManager[None]:
        """Measure a region of a step."""
        if self.profiler is None:
            return _NOTHING
        return self.profiler.section(name)

    def calls(
        self, *methods: tuple[object, str, str]
    ) -> AbstractContextManager[object]:
        """Measure calls of methods; each is ``(owner, method, section)``."""
        stack = ExitStack()
        if self.profiler is not None:
            for method in methods:
                stack.enter_context(self.profiler.timed_calls(*method))
        return stack


_NOTHING = nullcontext()


def _seconds_of(name: str, value: object) -> float:
    """Return the seconds of a number or of a meter."""
    match value:
        case bool() | str():
            pass
        case int() | float() as number:
            return float(number)
        case object(val=int() | float() as number):
            return float(number)
    raise ArgumentTypeError(
        f"TrainingProfiler: expected a number, or a meter with a number at 'val', as "
        f"{name}, got {type(value).__name__}."
    )
