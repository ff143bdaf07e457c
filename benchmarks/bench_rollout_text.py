"""Measure what the instruction costs in a rollout: none, ids, text, and the peer.

    OMP_NUM_THREADS=1 python benchmarks/bench_rollout_text.py

Rolls ToyVLAEnv out with a policy that does nothing. The baseline is the same
environment without the instruction leaf; ratios are against it, measured in turns.
TorchRL's environment (text only) is the peer; its states must equal ours first.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import torch
from contest import read_quick, record_ratios
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import EnvBase
from torchrl.envs.custom import ToyVLAEnv as PeerToyVLAEnv

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.schema import InstructionTable

STEPS = 16


class MuteToyVLAEnv(ToyVLAEnv):
    """ToyVLAEnv without the instruction leaf."""

    def _make_specs(self) -> None:
        super()._make_specs()
        spec = self.observation_spec
        del spec["language_instruction"]
        self.observation_spec = spec

    def _instruct(self, out: TensorDict) -> None:
        """Write nothing."""


def make_rollout(env: EnvBase) -> TensorDictBase:
    action = torch.full(env.full_action_spec["action"].shape, 0.25)
    return env.rollout(STEPS, lambda td: td.set("action", action))


def time_rollout(env: EnvBase) -> float:
    """Milliseconds per step."""
    start = time.perf_counter()
    make_rollout(env)
    return (time.perf_counter() - start) / STEPS * 1e3


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    state = "observation", "state"
    print(f"ToyVLAEnv, 16 px, 1 thread, {STEPS}-step rollouts; ms per step")
    print(f"{'':<22} {'median':>8}   against no text: min, median, max")
    for batch, repeats in ((2, 1),) if quick else ((1, 21), (16, 21), (256, 9)):
        envs = {
            "no text": MuteToyVLAEnv(batch_size=[batch], seed=0),
            "ids": ToyVLAEnv(
                batch_size=[batch], seed=0, instructions=InstructionTable()
            ),
            "text": ToyVLAEnv(batch_size=[batch], seed=0),
            "text, TorchRL": PeerToyVLAEnv(batch_size=[batch], seed=0),
        }
        states = [make_rollout(env)[state] for env in envs.values()]
        if not all(torch.equal(states[0], other) for other in states[1:]):
            raise AssertionError("the environments disagree on the state.")
        measured = {name: [] for name in envs}
        for _ in range(repeats):
            for name, run in ((n, partial(time_rollout, e)) for n, e in envs.items()):
                measured[name].append(run())
        for name, times in measured.items():
            ratios = [a / b for a, b in zip(times, measured["no text"])]
            record_ratios(f"B={batch}: {name}", ratios, "no text")
            print(
                f"B={batch:<4} {name:<15} {statistics.median(times):8.3f}   "
                f"{min(ratios):6.2f} {statistics.median(ratios):6.2f} "
                f"{max(ratios):6.2f}"
            )


if __name__ == "__main__":
    main()
