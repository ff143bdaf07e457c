"""Compare a LeRobot checkpoint in our executor with LeRobot's own loop.

    pip install -e '.[lerobot]'
    OMP_NUM_THREADS=1 python benchmarks/bench_lerobot_policy.py

An untrained ACT (chunks of 100, 50 executed, as LeRobot's default) is executed for a
hundred steps by LeRobot's preprocess, select_action, postprocess loop and by
MultiStepActorWrapper around LeRobotPolicyWrapper. Both must first give the same
actions. LeRobot normalizes every observation; here only those that a chunk is made of
are touched, so with images most of the time of a served step is gone.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from tensordict import TensorDict

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import LeRobotPolicyWrapper, make_lerobot_policy
from torchrl_vla.schema import FeatureStatistics, RobotDatasetMetadata

STATE_DIM, ACTION_DIM = 14, 14


def make_policy(side: int) -> LeRobotPolicyWrapper:
    torch.manual_seed(0)
    samples = torch.randn(100, STATE_DIM)
    statistics = FeatureStatistics.from_samples(samples)
    metadata = RobotDatasetMetadata(
        "aloha", action_statistics=statistics, state_statistics=statistics
    )
    policy = make_lerobot_policy(
        "act",
        metadata,
        image_sizes={"top": (3, side, side), "wrist": (3, side, side)},
        config={
            "chunk_size": 100,
            "n_action_steps": 50,
            "dim_model": 64,
            "n_heads": 4,
            "dim_feedforward": 128,
            "pretrained_backbone_weights": None,
        },
    )
    policy.eval()
    return policy


def observe(steps: int, rows: int, side: int) -> list[TensorDict]:
    def image() -> torch.Tensor:
        return torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8)

    return [
        TensorDict(
            {
                "observation": {
                    "state": torch.randn(rows, STATE_DIM),
                    "image": {"top": image(), "wrist": image()},
                },
                "is_init": torch.full((rows, 1), step == 0),
            },
            batch_size=[rows],
        )
        for step in range(steps)
    ]


@torch.no_grad()
def run_lerobot(
    policy: LeRobotPolicyWrapper, observations: list[TensorDict]
) -> torch.Tensor:
    network, own = policy.policy, policy.pipeline
    network.reset()
    actions = []
    for td in observations:
        batch = {"observation.state": td["observation", "state"]}
        for name, image in td["observation", "image"].items():
            batch[f"observation.images.{name}"] = image.to(torch.float32) / 255
        action = network.select_action(own.preprocessor(batch))
        actions.append(own.postprocessor(action))
    return torch.stack(actions)


@torch.no_grad()
def run_ours(
    policy: LeRobotPolicyWrapper, observations: list[TensorDict]
) -> torch.Tensor:
    actor = MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps)
    actions, carried = [], None
    for td in observations:
        td = td.copy()
        if carried is not None:
            td["decision_index"] = carried
        td = actor(td)
        carried = td["decision_index"]
        actions.append(td["action"])
    return torch.stack(actions)


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    steps, rounds = (100, 7) if not quick else (4, 1)
    print(f"LeRobot's ACT, {steps} steps of an episode, 1 thread")
    print_head("LeRobot")
    sizes = [(1, 96), (8, 96), (1, 240)] if not quick else [(1, 32), (2, 32)]
    for rows, side in sizes:
        policy, observations = make_policy(side), observe(steps, rows, side)
        results = {
            "LeRobot": run_lerobot(policy, observations),
            "ours": run_ours(policy, observations),
        }
        title = f"B={rows}, 2x{side}x{side}"
        check_equal(title, results)
        times = time_in_turns(
            {
                "LeRobot": lambda p=policy, o=observations: run_lerobot(p, o),
                "ours": lambda p=policy, o=observations: run_ours(p, o),
            },
            rounds,
        )
        print_rows(title, times, "LeRobot")


if __name__ == "__main__":
    main()
