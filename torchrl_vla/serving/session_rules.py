"""Rules that a client has to meet when it opens a session."""

from __future__ import annotations

from torchrl_vla.errors import SessionRefusedError
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.schema.compatibility import acting_differences
from torchrl_vla.serving.server_manifest import ServerManifest

_RATE = "control_frequency_hz"


def check_robot_of_client(
    manifest: ServerManifest, robot: RobotDatasetMetadata | None
) -> list[str]:
    """Refuse a client whose robot would be driven wrongly; return what is to be warned.

    Names and order of actions and states, units, references, cameras, sizes and limits
    have to agree. Another control rate is a warning: the client may resample.

    Args:
        manifest: of the server.
        robot: of the client; None = undeclared.

    Returns:
        Warnings, one sentence each.

    Raises:
        SessionRefusedError: lists every difference by the name of its field.

    Examples:
        >>> policy = RobotDatasetMetadata("trained", action_names=("x", "y"))
        >>> manifest = ServerManifest("p", 4, 2, (), (), metadata=policy)
        >>> robot = RobotDatasetMetadata("arm", action_names=("y", "x"))
        >>> check_robot_of_client(manifest, robot)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SessionRefusedError: PolicyServer: expected a robot of \
'trained', got 'arm' with 1 difference(s), server against client:
          - action_names: ('x', 'y') against ('y', 'x') (dimensions in another order)
        Correct the metadata, or convert at the client (--convert).
    """
    served = manifest.metadata
    if served is None:
        return []
    if robot is None:
        return [
            f"The client declares no robot, so that nothing is compared with "
            f"{served.dataset_id!r}: pass robot=env.metadata."
        ]
    found = acting_differences(served, robot)
    hard = [line for line in found if not line.startswith(_RATE)]
    if hard:
        lines = "\n  - ".join(hard)
        raise SessionRefusedError(
            f"PolicyServer: expected a robot of {served.dataset_id!r}, got "
            f"{robot.dataset_id!r} with {len(hard)} difference(s), server against "
            f"client:\n  - {lines}\nCorrect the metadata, or convert at the client "
            "(--convert)."
        )
    return [f"{line}." for line in found if line.startswith(_RATE)]


def serving_capacity(
    inference_s: float,
    *,
    requests_per_s: float,
    chunk_size: int,
    rate_hz: float,
    round_trip_s: float = 0.0,
) -> int:
    """Return how many robots one server drives without any of them waiting.

    The server may be busy for four fifths of the time, and an answer has to arrive
    before half of the chunk has been executed: ``N = min(0.8 / (r t), (H dt / 2 - RTT)
    / t)``.

    Args:
        inference_s: ``t``, time of one policy call, seconds.

    Keyword Args:
        requests_per_s: ``r``, requests per robot and second.
        chunk_size: ``H``, actions per chunk.
        rate_hz: ``1 / dt``, control steps per second.
        round_trip_s: ``RTT``, of the network, seconds.

    Raises:
        ValueError: a number is not positive.

    Source: the capacity rule of LeRobot's design of remote inference.

    Examples:
        >>> serving_capacity(0.1, requests_per_s=2, chunk_size=50, rate_hz=30)
        4
        >>> serving_capacity(0.1, requests_per_s=0.5, chunk_size=16, rate_hz=32)
        2
    """
    numbers = (inference_s, requests_per_s, chunk_size, rate_hz)
    if min(numbers) <= 0 or round_trip_s < 0:
        raise ValueError(
            "serving_capacity: expected positive numbers, got inference_s, "
            f"requests_per_s, chunk_size, rate_hz = {numbers} and round_trip_s = "
            f"{round_trip_s}. Measure them."
        )
    by_load = 0.8 / (requests_per_s * inference_s)
    by_delay = (chunk_size / rate_hz / 2 - round_trip_s) / inference_s
    return max(0, int(min(by_load, by_delay) + 1e-9))
