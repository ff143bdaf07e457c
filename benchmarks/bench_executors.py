"""Compare the executors with TorchRL's MultiStepActorWrapper in one process.

    OMP_NUM_THREADS=1 python benchmarks/bench_executors.py

First ours of the same name: both execute the same actor and must first produce the
same actions. Then, alternating between the two: the cost of a step that serves from
the cache, of a step that re-plans for everyone and for a quarter of the environments,
and the bytes that one step of a rollout stores. Times include the actor's own where it
is asked.

Then every member of the family ("step" rows) against TorchRL's open loop on the same
episodes, the actor's time left out: microseconds of the control thread's CPU time per
step, over whole episodes, re-planning included. The actor foresees the future
correctly, so that whatever they mix, delay or align, all must execute the same.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from contest import read_quick, record_ratios
from executor_family import FAMILY, Player, draw_begins
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.modules import MultiStepActorWrapper as PeerWrapper

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.schema import InstructionTable

HORIZON, ACTION_DIM, STATE_DIM = 16, 7, 8
IN_KEYS = [("observation", "state")]
IN_KEYS_ALL = [*IN_KEYS, ("observation", "image"), "language_instruction"]


def make_executor(in_keys: list) -> TensorDictModule:
    ahead = torch.arange(1.0, HORIZON + 1).unsqueeze(-1) / 100

    def plan(state: torch.Tensor, *unused: object) -> torch.Tensor:
        return state[..., None, :ACTION_DIM] + ahead

    return TensorDictModule(plan, in_keys=in_keys, out_keys=["action_chunk"])


def make_observation(batch: int, instruction: str) -> TensorDict:
    td = TensorDict(
        {
            "observation": {
                "state": torch.rand(batch, STATE_DIM),
                "image": torch.zeros(batch, 3, 64, 64, dtype=torch.uint8),
            },
            "is_init": torch.ones(batch, 1, dtype=torch.bool),
        },
        batch_size=[batch],
    )
    if instruction == "text":
        td["language_instruction"] = NonTensorStack(*["push the block"] * batch)
    else:
        td["language_instruction"] = torch.full((batch,), 7)
    return td


def time_serve(executor: Callable, td: TensorDictBase) -> float:
    """Microseconds per step served from the cache."""
    first = torch.ones_like(td["is_init"])
    later = torch.zeros_like(first)
    spent = 0.0
    for _ in range(20):
        td["is_init"] = first
        executor(td)
        td["is_init"] = later
        start = time.perf_counter()
        for _ in range(HORIZON - 1):
            executor(td)
        spent += time.perf_counter() - start
    return spent / (20 * (HORIZON - 1)) * 1e6


def time_replan(executor: Callable, td: TensorDictBase, rows: slice) -> float:
    """Microseconds per step that re-plans for the given rows, actor included."""
    td["is_init"] = torch.ones_like(td["is_init"])
    executor(td)
    due = torch.zeros_like(td["is_init"])
    due[rows] = True
    td["is_init"] = due
    start = time.perf_counter()
    for _ in range(10):
        executor(td)
    return (time.perf_counter() - start) / 10 * 1e6


def compare(
    title: str, measure: Callable, in_keys: list, make_td: Callable, rounds: int
) -> None:
    ours = MultiStepActorWrapper(make_executor(in_keys), n_steps=HORIZON)
    peer = PeerWrapper(make_executor(in_keys), n_steps=HORIZON)
    our_td, peer_td = make_td(), make_td()
    peer_td.update(our_td.clone())
    pairs = []
    with torch.no_grad():
        for _ in range(3):  # warm up, in pairs so that both share the machine's noise
            measure(ours, our_td), measure(peer, peer_td)
        for _ in range(rounds):
            pairs.append((measure(ours, our_td), measure(peer, peer_td)))
    if not torch.equal(ours(our_td)["action"], peer(peer_td)["action"]):
        raise AssertionError(f"{title}: the executors disagree on the action.")
    report(title, pairs, "us")


def report(title: str, pairs: list[tuple[float, float]], unit: str) -> None:
    ratios = [peer / ours for ours, peer in pairs]
    record_ratios(title, ratios, "ours")
    mine, theirs = (statistics.median(column) for column in zip(*pairs))
    print(
        f"{title:<56} {mine:10.1f} {theirs:10.1f} {unit:<6}"
        f"{min(ratios):7.2f} {statistics.median(ratios):7.2f} {max(ratios):7.2f}"
    )


def check_equal_actions(batch: int) -> tuple[TensorDictBase, TensorDictBase]:
    """Roll both out from one seed, episodes of 11 steps; refuse different actions."""
    rollouts = []
    for wrapper in (MultiStepActorWrapper, PeerWrapper):
        env = ToyVLAEnv(
            ACTION_DIM,
            STATE_DIM,
            max_steps=11,
            batch_size=[batch],
            seed=0,
            instructions=InstructionTable(),
        )
        env = TransformedEnv(env, InitTracker())
        policy = wrapper(make_executor(IN_KEYS), n_steps=HORIZON)
        with torch.no_grad():
            rollouts.append(env.rollout(40, policy, break_when_any_done=False))
    ours, peer = rollouts
    if not torch.equal(ours["action"], peer["action"]):
        raise AssertionError("the executors executed different actions.")
    return ours, peer


def executor_bytes(rollout: TensorDictBase) -> int:
    """Bytes per step and environment that the executor put into the rollout."""
    environment = {"observation", "language_instruction", "episode_seed", "next"}
    environment |= {"done", "terminated", "truncated", "is_init"}
    kept = rollout.exclude(*environment)
    return kept.bytes() // rollout.numel()


def compare_family(title: str, begins: torch.Tensor, rounds: int) -> None:
    """Let every executor play the same episodes, and TorchRL's open loop beside."""
    peer = Player(lambda actor: PeerWrapper(actor, n_steps=HORIZON))
    players = {name: Player(make, **how) for name, (make, how) in FAMILY.items()}
    for player in (peer, *players.values()):
        player.check(begins)
    times = {name: [] for name in players}
    for _ in range(rounds):
        theirs = peer.play(begins)
        for name, player in players.items():
            times[name].append((player.play(begins), theirs))
    for name, pairs in times.items():
        report(f"step, {title}, {name}", pairs, "us")
    for player in (peer, *players.values()):
        player.close()


def main() -> None:
    quick = read_quick(__doc__)
    rounds = 1 if quick else 21
    torch.set_num_threads(1)
    ours, peer = check_equal_actions(16)
    print(f"H={HORIZON}, A={ACTION_DIM}, 1 thread; equal actions over 40 steps: yes")
    print(f"{'':<56} {'ours':>10} {'TorchRL':>10} {'unit':<6} ratio min  median  max")
    sizes = executor_bytes(ours), executor_bytes(peer)
    report("executor's bytes per rollout step", [sizes], "B")
    for batch in (2,) if quick else (1, 16, 256):
        compare(
            f"serve, B={batch}",
            time_serve,
            IN_KEYS,
            lambda batch=batch: make_observation(batch, "id"),
            rounds,
        )
    for batch in (2,) if quick else (1, 16, 256):
        for name, in_keys, instruction in (
            ("state", IN_KEYS, "id"),
            ("image + text", IN_KEYS_ALL, "text"),
        ):
            compare(
                f"re-plan all, {name}, B={batch}",
                lambda executor, td: time_replan(executor, td, slice(None)),
                in_keys,
                lambda batch=batch, i=instruction: make_observation(batch, i),
                rounds,
            )
    for batch in (4,) if quick else (16, 256):
        for instruction in ("text", "id"):
            quarter = slice(0, batch // 4)
            compare(
                f"re-plan a quarter, image + {instruction}, B={batch}",
                lambda executor, td, rows=quarter: time_replan(executor, td, rows),
                IN_KEYS_ALL,
                lambda batch=batch, i=instruction: make_observation(batch, i),
                rounds,
            )
    for title, rows, chance in (
        ("B=1", 1, 0.0),
        ("B=64", 64, 0.0),
        ("B=64, random ends", 64, 0.05),
    ):
        begins = draw_begins(
            8 if quick else 64, min(rows, 4) if quick else rows, chance
        )
        compare_family(title, begins, rounds)


if __name__ == "__main__":
    main()
