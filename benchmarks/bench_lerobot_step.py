"""Samples per second of a training step: ours on LeRobot's policies, and LeRobot's own.

    OMP_NUM_THREADS=1 python benchmarks/bench_lerobot_step.py
    python benchmarks/bench_lerobot_step.py --device cuda

Both train one network of LeRobot's (ACT with its ResNet, and a narrow SmolVLA) on one
batch: LeRobot preprocesses it and calls the policy as `lerobot-train` does, ours goes
through `LeRobotLoss`. Backward, clipping and AdamW are the same. From one seed both
losses must be equal bit for bit first.

Needs the extra `lerobot`.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import time
from collections.abc import Callable

import torch
from contest import check_equal, print_head, print_rows, read_options, time_in_turns
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import AdamW

from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.recipes import fit_lerobot_policy
from torchrl_vla.recipes.lerobot_backbones import make_tiny_smolvla
from torchrl_vla.recipes.lerobot_training import make_lerobot_targets
from torchrl_vla.recipes.profile_case import make_profile_dataset


def make_policies() -> dict[str, LeRobotPolicyWrapper]:
    """Return untrained policies by name."""
    dataset = make_profile_dataset()
    config = {"chunk_size": 16, "n_action_steps": 8, "dim_model": 128, "n_heads": 4}
    config["pretrained_backbone_weights"] = None
    torch.manual_seed(0)
    return {
        "ACT": fit_lerobot_policy("act", dataset, config=config),
        "SmolVLA, narrow": make_tiny_smolvla(dataset),
    }


def make_batch(policy: LeRobotPolicyWrapper, size: int) -> TensorDictBase:
    """Return a batch with targets, in robot space."""
    dataset = make_profile_dataset()
    targets = make_lerobot_targets(policy, dataset)
    return dataset.replay_buffer(size, transform=targets, seed=0).sample()


def lerobot_batch(
    policy: LeRobotPolicyWrapper, batch: TensorDictBase
) -> dict[str, object]:
    """Return what LeRobot's loader would give: frames before preprocessing."""
    texts = policy.instructions.decode(batch["language_instruction"])
    return {
        "observation.image": batch["observation", "image"].float() / 255,
        "observation.state": batch["observation", "state"],
        "action": batch["action_chunk"],
        "action_is_pad": batch["action_is_pad"],
        "task": texts,
    }


def compare(
    name: str, policy: LeRobotPolicyWrapper, size: int, device: str, rounds: int
) -> None:
    """Print the rows of one policy."""
    policy = policy.to(device)
    network = policy.policy.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=1e-5)
    module = LeRobotLoss(policy, train_on_padding=True).train()
    batch = make_batch(policy, size)
    frames = lerobot_batch(policy, batch)

    def own() -> Tensor:
        return network(policy.pipeline.preprocessor(dict(frames)))[0]

    def ours() -> Tensor:
        return module(batch)["loss_lerobot"]

    losses = {}
    for who, loss in {"LeRobot": own, "ours": ours}.items():
        torch.manual_seed(0)
        losses[who] = loss().detach().cpu()
    check_equal(name, losses)

    def step(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()

    def clock() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if device != "cpu" else time.process_time()

    runs = {"LeRobot": lambda: step(own), "ours": lambda: step(ours)}
    times = time_in_turns(runs, rounds, clock=clock)
    columns = {
        who: (f"{1e3 * size * len(t) / sum(t):.0f}",) for who, t in times.items()
    }
    title = f"{name}, batch {size}"
    title = title if device == "cpu" else f"{title}, {device}"
    print_rows(title, times, "LeRobot", columns)


def main() -> None:
    given = read_options(__doc__, device=True)
    torch.set_num_threads(1)
    print("Training steps of LeRobot's policies, 1 thread; equal losses: checked")
    print_head("LeRobot", "samples/s")
    for name, policy in make_policies().items():
        sizes = (4,) if given.quick else (8, 32)
        for size in sizes:
            rounds = 1 if given.quick else 9
            compare(name, policy, size, given.device, rounds)


if __name__ == "__main__":
    main()
