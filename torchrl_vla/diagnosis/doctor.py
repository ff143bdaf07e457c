"""Parity doctor: does a policy act on what it was trained on?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, Transform

from torchrl_vla.data import Demonstrations
from torchrl_vla.diagnosis.acting_path import ActingPath
from torchrl_vla.diagnosis.declared_differences import (
    check_timestamps,
    compare_environment,
    compare_metadata,
    compare_statistics,
)
from torchrl_vla.diagnosis.finding import STAGES, Finding, in_order, refusal
from torchrl_vla.diagnosis.open_loop_error import (
    Latency,
    OpenLoopError,
    measure_error,
)
from torchrl_vla.diagnosis.parity_checks import compare_paths, stages_without_data
from torchrl_vla.diagnosis.parity_trace import (
    REFUSALS,
    episode_rows,
    sample_rows,
    trace,
)
from torchrl_vla.diagnosis.recorded_environment import Observe, RecordedEnvironment
from torchrl_vla.schema import SpaceError
from torchrl_vla.spaces import ModelSpace

_EPISODES, _STEPS = 4, 12


@dataclass(frozen=True)
class Diagnosis:
    """Result of :func:`diagnose`; prints itself, and writes itself as JSON.

    Args:
        findings: by stage; empty = training and acting agree.
        frames: number of recorded frames that went through both paths.
        error: open-loop error; None = the policy cannot be called.
        latency: of one policy call; None likewise.
        without_data: stages at which there was nothing to compare.

    Examples:
        >>> Diagnosis((), 48).exit_code
        0
    """

    findings: tuple[Finding, ...]
    frames: int
    error: OpenLoopError | None = None
    latency: Latency | None = None
    without_data: tuple[str, ...] = ()

    @property
    def first(self) -> Finding | None:
        """The difference at the first stage; None = there is none."""
        return next(iter(self.findings), None)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages at which the two paths differ, in order."""
        return tuple(dict.fromkeys(finding.stage for finding in self.findings))

    @property
    def exit_code(self) -> int:
        """0 = no difference, 1 = there are some."""
        return 1 if self.findings else 0

    def to_json(self) -> str:
        """Return all of it as JSON."""
        values = {
            "parity": not self.findings,
            "frames": self.frames,
            "stages": [stage for stage in STAGES if stage not in self.without_data],
            "stages_without_data": list(self.without_data),
            "findings": [{**asdict(f), "remedy": f.remedy} for f in self.findings],
            "error": self.error and asdict(self.error),
            "latency": self.latency and asdict(self.latency),
        }
        return json.dumps(values, indent=2)

    def __str__(self) -> str:
        lines = [f"{self.frames} recorded frames went through training and acting."]
        if self.first is None:
            count = len(STAGES) - len(self.without_data)
            lines.append(f"No difference at any of {count} stages.")
        else:
            lines.append(f"They part at: {self.first.stage}")
            lines += [f"  {finding}" for finding in self.findings]
        if self.without_data:
            lines.append(f"Nothing to compare: {', '.join(self.without_data)}")
        lines += [str(part) for part in (self.error, self.latency) if part is not None]
        return "\n".join(lines)


def diagnose(
    policy: Path | str | TensorDictModuleBase,
    dataset: Demonstrations,
    env: EnvBase | None = None,
    *,
    space: ModelSpace | None = None,
    held_out: Demonstrations | None = None,
    observe: Observe | None = None,
    training: Transform | None = None,
) -> Diagnosis:
    """Find the first stage at which a policy's acting differs from its training.

    Recorded frames of the training data go through the training path (the dataset's
    buffer, the transforms of ``train_behavior_cloning`` or LeRobot's processors with
    the dataset's statistics) and, as if a robot sent them, through the acting path (the
    executor, its spaces and the transforms of its environment). What the policy reads
    must be equal, and where the policy answers with the training's target, the
    executor must send the recorded action. What checkpoint, dataset and environment
    declare is compared as well.

    Args:
        policy: a checkpoint, ours or LeRobot's; ``"module:function"``; an executor; or
            a policy.
        dataset: that the policy was trained on.
        env: where it will act: its metadata, instructions and first observation are
            compared with the dataset's. It is reset.

    Keyword Args:
        space: of a policy or executor that is an object: the one it was trained in.
        held_out: episodes that training did not see, for the open-loop error; None =
            that on the dataset's own.
        observe: what the robot's code does to an observation ``[N]`` before the
            executor reads it; None = nothing.
        training: made the training's targets of sampled frames; None = what
            ``make_training_transform`` builds.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        SchemaError: it can't be loaded, or the executor holds no policy.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import collect
        >>> from torchrl_vla.envs import TabletopEnv
        >>> from torchrl_vla.recipes import make_policy
        >>> env = TabletopEnv(2, image_size=16)
        >>> folder = tempfile.mkdtemp() + "/reach"
        >>> data = collect(env, env.make_expert(), 2, folder=folder, progress=False)
        >>> policy = make_policy(data, chunk_size=3, hidden=8, depth=1)
        >>> diagnose(policy, data, space=ModelSpace(data.metadata)).stages
        ()
        >>> float_images = lambda td: td.set(
        ...     ("observation", "image"), td["observation", "image"].float()
        ... )
        >>> space = ModelSpace(data.metadata)
        >>> diagnose(policy, data, space=space, observe=float_images).first.stage
        'image range'
    """
    rows = episode_rows(dataset, _EPISODES, _STEPS)
    frames = sample_rows(dataset, rows).transpose(0, 1)
    recorded = RecordedEnvironment(
        frames, dataset.metadata, dataset.instructions, observe
    )
    try:
        path = ActingPath.open(policy, recorded, space)
    except SpaceError as mismatch:
        message = " ".join(str(mismatch).split()).rstrip(".")
        return Diagnosis((Finding("normalization", message, "policy, space"),), 0)
    chain = trace(path, dataset, rows, recorded, training)
    without_data = stages_without_data(chain, path, dataset)
    found = [*compare_paths(chain, path, dataset), *check_timestamps(dataset)]
    if path.metadata is not None:
        source = "checkpoint, dataset"
        found += compare_metadata(path.metadata, dataset.metadata, source)
        causes = list(compare_statistics(path.metadata, dataset, source))
        if any(cause.stage == "action representation" for cause in causes):
            # Another reference has other statistics: that is no fault of its own.
            found = [f for f in found if not f.is_of_actions("normalization")]
        found += causes
    if env is not None:
        declared = compare_environment(dataset, frames.reshape(-1), env)
        found += [f for f in declared if f.stage not in without_data]
    found += _unexplained(chain.refusals, found)
    error = latency = None
    try:
        error, latency = measure_error(
            path, held_out or dataset, held_out=held_out is not None
        )
    except REFUSALS as failure:
        refused = [refusal(failure, "policy on recorded frames")]
        found += _unexplained(refused, found)
    return Diagnosis(in_order(found), rows.numel(), error, latency, without_data)


def _unexplained(refusals: list[Finding], found: list[Finding]) -> Iterator[Finding]:
    """Yield the refusals of stages at which nothing else was found."""
    stages = {finding.stage for finding in found}
    for finding in refusals:
        if finding.stage not in stages and not (
            finding.stage == "policy call" and stages
        ):
            stages.add(finding.stage)
            yield finding
