"""What a GPU does to the numbers: fingerprints, the audit, compiled and captured calls.

    python benchmarks/gpu_numerics.py --device cuda --out rows.json

Fingerprints of the suite's reference cases: whether a second pass has the same bits,
and how far the outputs are from those of the CPU. The audit of log-probabilities:
whether decisions keep their probability in other batches. Tiny policies and losses,
compiled by `torch.compile` and captured by `CudaGraphModule`, against the eager call.
"""

from __future__ import annotations

import copy
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor.config
from gpu_rows import (
    Rows,
    compare,
    largest_difference,
    read_arguments,
    tabletop_policy,
)
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import CudaGraphModule, InteractionType, set_interaction_type
from torch import Tensor, nn
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.objectives import ChunkPPOLoss, recompute_log_probs
from torchrl_vla.policies import FlowSDENoise
from torchrl_vla.profiling import fingerprint_forward
from torchrl_vla.profiling.run_environment import describe_run
from torchrl_vla.testing import check_log_prob_consistency

sys.path.insert(0, str(Path(__file__).parent.parent / "test" / "support"))
from reference_fingerprints import CASES, make_case

NOISY = ("tiny-flow", "tiny-diffusion")
NOT_CUDA = "not run: no CUDA device"


def describe_machine(rows: Rows, device: str) -> None:
    """Add what the numbers depend on."""
    facts = {name: str(value) for name, value in describe_run().items()}
    facts |= {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    facts["float32 matrix products"] = torch.get_float32_matmul_precision()
    facts["TF32 in convolutions"] = str(torch.backends.cudnn.allow_tf32)
    if torch.device(device).type == "cuda":
        found = torch.cuda.get_device_properties(torch.device(device))
        facts["gpu"] = f"{found.name}, {found.total_memory / 1e9:.0f} GB"
        facts["cudnn"] = str(torch.backends.cudnn.version())
    for name, value in facts.items():
        rows.add("machine", fact=name, value=value)


def leaves(answer: object) -> Tensor:
    """Return all float numbers of an answer in one vector, on the CPU."""
    assert isinstance(answer, TensorDictBase)
    found = [
        value.detach().flatten().float().cpu()
        for _, value in sorted(answer.flatten_keys(".").items())
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    return torch.cat(found)


def fingerprints(rows: Rows, device: str, cases: tuple[str, ...]) -> None:
    """Add a row for each reference case."""
    for name in cases:
        with rows.trial("fingerprints", case=name):
            for part, (module, batch) in make_case(name).items():
                if part == "forward":  # the same noise on every device
                    batch["noise_seed"] = torch.arange(len(batch))
                there, here = copy.deepcopy(module).to(device), batch.to(device)
                first, second = (fingerprint_forward(there, here) for _ in range(2))
                with torch.no_grad():
                    torch.manual_seed(0)
                    expected = leaves(module(batch.copy()))
                    torch.manual_seed(0)
                    found = leaves(there(here.copy()))
                rows.add(
                    "fingerprints",
                    case=f"{name} {part}",
                    again_equal=first.output_fingerprint == second.output_fingerprint,
                    output=first.output_fingerprint[:12],
                    operators=first.operator_fingerprint[:12],
                    from_cpu=(
                        "other noise"
                        if part == "loss" and name in NOISY
                        else largest_difference(found, expected)
                    ),
                )


def audit(rows: Rows, device: str, n: int) -> None:
    """Add a row for each head that has log-probabilities."""
    for head in ("gaussian", "tokens", "flow", "diffusion"):
        with rows.trial("log-probability audit", head=head):
            env, policy = acting(head, device, n)
            env = TransformedEnv(env, MultiAction(policy.chunk_size))
            with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
                rollout = env.rollout(3, policy, break_when_any_done=False)
            decisions = rollout.reshape(-1)
            found = check_log_prob_consistency(
                policy, decisions, tolerance=math.inf, batch_sizes=(None, 1, 3, 64)
            )
            size = max(1, len(decisions) // 3)
            recompute_log_probs(policy, decisions, minibatch_size=size)
            decisions["advantage"] = torch.ones(len(decisions), 1, device=device)
            with torch.no_grad():
                loss = ChunkPPOLoss(policy)
                parts = [loss(part)["max_ratio"] for part in decisions.split(size)]
            rows.add(
                "log-probability audit",
                head=head,
                decisions=found.n_decisions,
                different=found.n_different,
                ratio_error=found.ratio_error,
                element_error=found.element_error,
                kl=found.kl,
                clip_fraction=found.clip_fraction,
                ratio_after_recomputing=torch.stack(parts).max().item(),
            )


def acting(head: str, device: str, n: int) -> tuple[TabletopEnv, nn.Module]:
    """Return an environment, and a stochastic policy for it."""
    env = TabletopEnv(n, image_size=32, seed=0)
    policy = tabletop_policy(head, 4, 64)
    if head == "flow":
        policy.noise = FlowSDENoise(0.5)
    return env.to(device), policy.to(device).eval()


def calls(rows: Rows, device: str, repeats: int, backend: str) -> None:
    """Add rows of calls that are compiled and captured."""
    for head in ("regression", "flow"):
        env, policy = acting(head, device, 1)
        if head == "flow":
            policy.noise = None
        data = env.reset().select(*policy.in_keys)

        def act(module: Callable, data: TensorDict = data) -> Callable[[], Tensor]:
            @torch.no_grad()
            def run() -> Tensor:
                with set_interaction_type(InteractionType.DETERMINISTIC):
                    return module(data.copy())["action_chunk"]

            return run

        what = f"TinyVLA, {head}, batch 1"
        ways(rows, what, policy, act, device, repeats, backend)
    # Compiled code draws other random numbers unless it is told to draw eager's.
    torch._inductor.config.fallback_random = True
    for name in ("tiny-regression", "tiny-flow"):
        module, batch = make_case(name)["loss"]
        module, batch = module.to(device), batch.to(device)

        def descend(call: Callable, module=module, batch=batch) -> Callable[[], Tensor]:
            def run() -> Tensor:
                module.zero_grad(set_to_none=True)
                torch.manual_seed(0)
                loss = call(batch.copy())["loss_bc"]
                loss.backward()
                grads = [
                    p.grad.flatten() for p in module.parameters() if p.grad is not None
                ]
                return torch.cat([loss.detach().reshape(1), *grads])

            return run

        what = f"{name} loss, forward and backward"
        ways(rows, what, module, descend, device, repeats, backend, captures=False)


def ways(
    rows: Rows,
    what: str,
    module: nn.Module,
    wrap: Callable[[Callable], Callable[[], Tensor]],
    device: str,
    repeats: int,
    backend: str,
    captures: bool = True,
) -> None:
    """Add a row for each way to call a module."""
    table = "compiled and captured calls"
    expected = wrap(module)()
    is_cuda = torch.device(device).type == "cuda"
    made: dict[str, Callable[[], Callable]] = {
        "eager": lambda: module,
        "torch.compile": lambda: torch.compile(module, backend=backend, dynamic=False),
    }
    if captures:
        made["CudaGraphModule"] = lambda: CudaGraphModule(module, warmup=2)
    for way, make in made.items():
        cells = {"what": what, "way": way}
        if way == "CudaGraphModule" and not is_cuda:
            rows.add(table, **cells, error=NOT_CUDA)
            continue
        with rows.trial(table, **cells):
            run = wrap(make())
            for _ in range(3):  # CudaGraphModule captures in the third call
                run()
            compare(rows, table, run, expected, device, repeats, **cells)


def main() -> None:
    given = read_arguments(__doc__)
    rows, tiny = Rows(given.out), given.rehearse
    # Compiled code draws the numbers that eager code draws.
    torch._inductor.config.fallback_random = True
    describe_machine(rows, given.device)
    audit(rows, given.device, 4 if tiny else 64)
    fingerprints(rows, given.device, CASES[:2] if tiny else CASES)
    calls(rows, given.device, 2 if tiny else 20, "eager" if tiny else "inductor")


if __name__ == "__main__":
    main()
