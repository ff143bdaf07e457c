"""Fingerprints of the suite's reference cases.

``python test/support/reference_fingerprints.py`` (``make fingerprints``) writes those
of this environment to ``test/profiling/fingerprints`` anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.profiling import fingerprint_forward, reference_rows
from torchrl_vla.profiling.run_environment import describe_run
from torchrl_vla.recipes import make_cloning_loss, make_policy, make_space
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
)

FOLDER = Path(__file__).parents[1] / "profiling" / "fingerprints"
CASES = (
    "tiny-regression",
    "tiny-gaussian",
    "tiny-tokens",
    "tiny-flow",
    "tiny-diffusion",
)
ROWS = 4


def make_dataset() -> DemonstrationDataset:
    """Return two episodes with images, states and two instructions."""
    table = InstructionTable(["reach the red block", "reach the blue block"])
    count, length = 10, 5
    ramp = torch.arange(count * 2).view(count, 2) / 20
    pixels = torch.arange(count * 3 * 16 * 16) * 7 % 256
    metadata = RobotDatasetMetadata(
        "reference",
        action_dim=2,
        state_dim=2,
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        action_statistics=FeatureStatistics.from_samples(ramp - 0.5),
        state_statistics=FeatureStatistics.from_samples(ramp),
    )
    episode = torch.arange(count) // length
    frames = TensorDict(
        {
            "observation": {
                "state": ramp,
                "image": pixels.view(count, 3, 16, 16).to(torch.uint8),
            },
            "language_instruction": table.ids[episode],
            "action": ramp - 0.5,
            "episode_index": episode,
            "frame_index": torch.arange(count) % length,
        },
        [count],
    )
    return DemonstrationDataset(frames, metadata, table)


def make_case(name: str) -> dict[str, tuple[torch.nn.Module, TensorDict]]:
    """Return a policy in evaluation mode and a loss in training mode, with batches."""
    head = name.removeprefix("tiny-")
    dataset = make_dataset()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policies = [
            make_policy(dataset, chunk_size=3, head=head, hidden=16, depth=1)
            for _ in range(2)
        ]
    space = make_space(dataset.metadata, head)
    buffer = dataset.replay_buffer(
        ROWS, transform=make_training_transform(policies[0], space, dataset.storage)
    )
    batch = buffer[reference_rows(len(buffer), ROWS)]
    observation = batch.select("observation", "language_instruction")
    return {
        "forward": (policies[0].eval(), observation),
        "loss": (make_cloning_loss(policies[1].train()), batch),
    }


def environment_name() -> str:
    """Return the file name of this environment's fingerprints."""
    facts = describe_run()
    torch_version = str(facts["torch"]).split("+")[0]
    return f"torch-{torch_version}_{facts['threads']}-thread_{facts['cpu_capability']}"


def make_fingerprints() -> dict[str, dict[str, str]]:
    """Return the hashes of every case."""
    found = {}
    for name in CASES:
        for part, (module, batch) in make_case(name).items():
            made = fingerprint_forward(module, batch)
            found[f"{name} {part}"] = {
                "output_fingerprint": made.output_fingerprint,
                "operator_fingerprint": made.operator_fingerprint,
            }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    facts = {"machine": describe_run()["machine"], "cases": make_fingerprints()}
    path = FOLDER / f"{environment_name()}.json"
    path.write_text(json.dumps(facts, indent=4) + "\n")
    print(f"wrote {path.name}")
