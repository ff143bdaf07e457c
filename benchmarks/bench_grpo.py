"""Run one GRPO iteration with our recipe, with TorchRL's, and in plain torch.

    OMP_NUM_THREADS=1 python benchmarks/bench_grpo.py

The task and all sizes are those of TorchRL's toy recipe: two action dimensions, chunks
of four, 64 bins, a camera of 16 pixels, episodes of at most six decisions in groups of
four, minibatches of 64, one epoch. Everyone trains the layers of TorchRL's ``TinyVLA``.
An iteration is collecting, comparing within groups, and the optimizer steps.

- "ours" is ``Rollouts``, ``GRPO`` and ``Learner`` of ``torchrl_vla.recipes``.
- "plain torch" (``grpo_plain.py``) is the same maths without keys, specs, checks or
  transforms; the seeds of its episodes are drawn beforehand.
- "TorchRL, N rows" is put together from the classes of its recipe (``Collector``,
  ``MultiAction``, ``ActionTokenizerTransform``, ``SuccessReward``, ``MCAdvantage``,
  ``ClipPPOLoss``), in this process: the recipe itself starts five. With one row it is
  the recipe's own environment. That cannot group more rows, so these step ours.

First, everyone must give the same log-probabilities, advantages and loss, and plain
torch the weights of ours after two iterations. In the timing the learning rate is next
to 0, so that every round does the same work. Milliseconds of CPU time per thousand
decisions of whole episodes; "used" is their share that was learned from.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from contest import print_head, print_rows, read_quick, time_in_turns
from grpo_contestants import OurGRPO, PeerGRPO, peer_advantage, peer_loss, peer_policy
from grpo_plain import (
    ACTION_DIM,
    GROUP,
    HORIZON,
    KEEP,
    MAX_DECISIONS,
    STATE_DIM,
    Decisions,
    Network,
    PlainGRPO,
)
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor, nn

from torchrl_vla.objectives import GRPOAdvantage

WARM_UP = 3  # rounds of time_in_turns that do not count


def check_close(title: str, results: dict[str, Tensor]) -> None:
    """Refuse contestants that compute other things."""
    (first, expected), *others = results.items()
    for name, result in others:
        if not torch.allclose(result, expected, rtol=1e-4, atol=1e-5):
            raise AssertionError(f"{title}: {name} and {first} disagree.")


def make_pair(policy: nn.Module, rows: int, lr: float) -> tuple[OurGRPO, PlainGRPO]:
    """Return ours and plain torch with networks of their own and equal weights."""
    ours = OurGRPO(Network(copy.deepcopy(policy)), rows, lr)
    scaling, state = ours.space.action_scaling, ours.space.state_scaling
    space = (state.loc, state.scale, scaling.loc, scaling.scale)
    network = Network(copy.deepcopy(policy))
    return ours, PlainGRPO(network, rows, lr, ours.texture, space)


def check_iterations(policy: nn.Module, rows: int) -> None:
    """Let ours and plain torch learn from the same random numbers."""
    ours, plain = make_pair(policy, rows, lr=1e-3)
    for iteration in (1, 2):
        seeds = ours.seeds(iteration)
        torch.manual_seed(iteration)
        mine = ours(iteration)
        torch.manual_seed(iteration)
        if plain(seeds) != mine:
            raise AssertionError("decisions: ours and plain torch disagree.")
    weights = [
        nn.utils.parameters_to_vector(n.parameters()) for n in networks_of(ours, plain)
    ]
    check_close("weights", dict(zip(("ours", "plain torch"), weights)))


def networks_of(ours: OurGRPO, plain: PlainGRPO) -> tuple[Network, Network]:
    return ours.policy.network, plain.network


def check_losses(policy: nn.Module, rows: int) -> None:
    """Compare log-probabilities and losses of decisions that were wholly executed."""
    ours, plain = make_pair(policy, rows, lr=1e-3)
    decisions = ours.rollouts.collect(1).reshape(-1)
    decisions = decisions[decisions["next", "is_executed"].all(-1)]
    peer = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(0)
    for weights in zip(*(n.parameters() for n in (*networks_of(ours, plain), peer))):
        noise = 0.02 * torch.randn(weights[0].shape, generator=generator)
        for weight in weights:  # as after some steps, so that ratios are not 1
            weight.data.add_(noise)
    advantage = torch.randn(len(decisions), 1, generator=generator)
    decisions.set("advantage", advantage)
    told = to_peer(decisions)
    batch = to_plain(decisions)
    new = plain.network(batch.image, batch.state).log_softmax(-1)
    new = new.gather(-1, batch.tokens.unsqueeze(-1)).sum((-3, -2, -1))
    tokens = decisions["action_tokens"]
    log_probs = {
        "ours": ours.policy.log_prob(decisions),
        "plain torch": new,
        "TorchRL": peer.get_dist(told).log_prob(tokens),
    }
    check_close("log-probabilities", log_probs)
    losses = {
        "ours": ours.learner.loss(decisions)["loss_objective"],
        "plain torch": plain.loss(batch, advantage.squeeze(-1)),
        "TorchRL": peer_loss(peer)(told)["loss_objective"],
    }
    check_close("loss", losses)


def to_peer(decisions: TensorDictBase) -> TensorDictBase:
    """Return decisions as TorchRL's policy and loss read them."""
    told = decisions.select("observation", "advantage")
    told["language_instruction"] = NonTensorStack(*["track the target"] * len(told))
    told["vla_action", "tokens"] = decisions["action_tokens"]
    told["vla_action", "log_probs"] = decisions["log_probs"]
    return told


def to_plain(decisions: TensorDictBase) -> Decisions:
    return Decisions(
        decisions["observation", "image"],
        decisions["observation", "state"],
        decisions["action_tokens"],
        decisions["element_log_probs"],
        decisions["next", "is_executed"],
        decisions["next", "reward"].squeeze(-1),
        decisions["next", "done"].squeeze(-1),
        decisions["episode_seed"],
    )


def check_advantages(policy: nn.Module, rows: int) -> None:
    """Compare advantages of one episode per row, with random successes at its end."""
    shape = (rows, MAX_DECISIONS)
    reward, done = torch.zeros(*shape, 1), torch.zeros(*shape, 1, dtype=torch.bool)
    reward[:, -1] = (torch.rand(rows, 1) < 0.5).float()
    done[:, -1] = True
    group = torch.arange(rows).div(GROUP, rounding_mode="floor")
    batch = TensorDict(
        {
            "episode_seed": group.unsqueeze(-1).expand(shape).clone(),
            "position": torch.arange(rows * MAX_DECISIONS).view(shape),
            "next": {"reward": reward, "done": done},
        },
        batch_size=shape,
    )
    _, plain = make_pair(policy, rows, lr=1e-3)
    blank = torch.zeros(MAX_DECISIONS, rows, 1)
    seeds, position = batch["episode_seed"].T, batch["position"].T
    flat = Decisions(
        position, blank, blank, blank, blank, reward[..., 0].T, done[..., 0].T, seeds
    )
    kept, advantage = plain.judge(flat)
    found = {"plain torch": (kept.image, advantage)}
    for name, answer in (
        ("ours", GRPOAdvantage(keep=KEEP)(batch)),
        ("TorchRL", peer_advantage("episode_seed").inv(batch)),
    ):
        found[name] = answer["position"], answer["advantage"].squeeze(-1)
    results = {}
    for name, (where, value) in found.items():
        results[name] = torch.full((rows * MAX_DECISIONS,), torch.nan)
        results[name][where] = value
    check_close("advantages", {name: v.nan_to_num(99.0) for name, v in results.items()})


def seeded(run: Callable[[int], tuple[int, int]]) -> Callable[[], tuple[int, int]]:
    """Return what runs the next iteration from the random numbers of its own seed."""
    iterations = itertools.count(1)

    def run_next() -> tuple[int, int]:
        iteration = next(iterations)
        torch.manual_seed(iteration)
        return run(iteration)

    return run_next


def counted(run: Callable[[], tuple[int, int]], counts: list) -> Callable[[], None]:
    """Return a contestant that notes how much it did."""

    def note() -> None:
        counts.append(run())

    return note


def compare(policy: nn.Module, rows: int, rounds: int, single: PeerGRPO) -> None:
    ours, plain = make_pair(policy, rows, lr=1e-9)
    peer = PeerGRPO(copy.deepcopy(policy), rows, 1e-9)
    seeds = [ours.seeds(n) for n in range(1, rounds + WARM_UP + 1)]
    runs = {
        "plain torch": seeded(lambda n: plain(seeds[n - 1])),
        "ours": seeded(ours),
        f"TorchRL, {rows} rows": seeded(peer),
        "TorchRL, 1 row": single,
    }
    counts: dict[str, list] = {name: [] for name in runs}
    contestants = {name: counted(run, counts[name]) for name, run in runs.items()}
    times = time_in_turns(contestants, rounds, clock=time.process_time)
    columns = {}
    for name, spent in times.items():
        done = counts[name][WARM_UP:]
        times[name] = [ms / whole * 1e3 for ms, (whole, _) in zip(spent, done)]
        rate = 1e6 / statistics.median(times[name])
        used = sum(u for _, u in done) / sum(w for w, _ in done)
        columns[name] = (f"{rate:.0f}", f"{100 * used:.0f} %")
    print_rows(f"B={rows}", times, "plain torch", columns)


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy = peer_policy()
    checked = 8 if quick else 32
    check_iterations(policy, checked)
    check_losses(policy, checked)
    check_advantages(policy, checked)
    print(
        f"one GRPO iteration, H={HORIZON}, A={ACTION_DIM}, S={STATE_DIM}, 1 thread; "
        "equal log-probs, advantages, losses, weights: yes"
    )
    print_head("plain torch", "decis./s", "used")
    single = PeerGRPO(copy.deepcopy(policy), 1, 1e-9, episodes=8 if quick else 32)
    for rows in (8,) if quick else (32, 256):
        compare(policy, rows, 1 if quick else 11, single)


if __name__ == "__main__":
    main()
