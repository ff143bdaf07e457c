"""Steps per second of cloning and of PPO, against bare PyTorch loops.

    OMP_NUM_THREADS=1 python benchmarks/bench_bc_step.py
    python benchmarks/bench_bc_step.py --device cuda

The bare loop has the same network, targets, order of batches, clipping, AdamW, schedule
and moving average, and nothing else: chunks and normalized states lie ready in tensors.
Both start from the same weights, which are compared after
ten steps: the column says the largest difference. The network with a
state alone is so small that overheads show; that with images is the tabletop's. For PPO
both get the same decisions of a token policy with a critic. On the CPU time is that of
the processor, so that others on the machine do not count; on a GPU it is the wall's,
and a third loop shows what data on the device would save.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable

import torch
from contest import print_head, print_rows, read_options, time_in_turns
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchrl.data import ReplayBuffer

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.objectives import ChunkPPOLoss
from torchrl_vla.recipes import make_cloning_loss, make_policy, make_space
from torchrl_vla.recipes.behavior_cloning import make_training_transform
from torchrl_vla.recipes.training_loop import _Loop, constant_rate
from torchrl_vla.recipes.training_settings import TrainingSettings

CHUNK, DECAY, CLIP, LR = 8, 0.99, 1.0, 1e-4


def make_clock(device: str) -> Callable[[], float]:
    """Return the clock of a device, in s."""
    if device == "cpu":
        return time.process_time

    def clock() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


class Cloning:
    """A training of ours that takes one step per call."""

    def __init__(self, dataset: DemonstrationDataset, hidden: int, batch: int) -> None:
        torch.manual_seed(0)
        self.policy = make_policy(dataset, chunk_size=CHUNK, hidden=hidden)
        self.buffer = self.make_buffer(dataset, batch)
        self.batch, self.step = batch, 0

    def make_buffer(self, dataset: DemonstrationDataset, batch: int) -> ReplayBuffer:
        """Return the buffer of batches with targets."""
        space = make_space(dataset.metadata)
        transform = make_training_transform(self.policy, space, dataset.storage)
        return dataset.replay_buffer(batch, transform=transform, seed=0)

    def to(self, device: str) -> Cloning:
        """Begin on a device."""
        policy = self.policy.to(device).train()
        self.loop = _Loop(
            policy,
            make_cloning_loss(policy),
            self.buffer,
            constant_rate(AdamW(policy.parameters(), lr=LR)),
            TrainingSettings(
                batch_size=self.batch, ema_decay=DECAY, max_grad_norm=CLIP
            ),
        )
        return self

    def __call__(self) -> None:
        """Take a step."""
        self.step += 1
        self.loop.take_step(self.step)


class BareCloning:
    """The same training in plain PyTorch.

    Args:
        ours: whose network and targets it takes.
        device: of the network.
        data_device: of the frames.
    """

    def __init__(self, ours: Cloning, device: str, data_device: str = "cpu") -> None:
        self.policy = copy.deepcopy(ours.policy).to(device).train()
        self.parameters = list(self.policy.parameters())
        frames = ours.buffer[torch.arange(len(ours.buffer))]
        keys = [*self.policy.in_keys, "action_chunk", "action_is_pad"]
        self.frames = {key: frames.get(key).to(data_device) for key in keys}
        self.batch, self.device, self.data_device = ours.batch, device, data_device
        self.optimizer = AdamW(self.parameters, lr=LR)
        self.schedule = LambdaLR(self.optimizer, lambda step: 1.0)
        self.means = [p.detach().clone() for p in self.parameters]
        self.random = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        """Take a step."""
        count = len(self.frames["action_chunk"])
        rows = torch.randint(count, (self.batch,), generator=self.random)
        rows = rows.to(self.data_device)
        batch = {k: v[rows].to(self.device) for k, v in self.frames.items()}
        target, pad = batch.pop("action_chunk"), batch.pop("action_is_pad")
        self.optimizer.zero_grad(set_to_none=True)
        predicted = self.policy.predict_chunk(TensorDict(batch, [self.batch]))
        (predicted - target).abs()[~pad].mean().backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.means, self.parameters, 1 - DECAY)


class PPO:
    """Steps of PPO on one batch of decisions, ours or bare.

    Args:
        dataset: whose frames are the observations.
        hidden: width of the policy.
        batch: decisions.
        device: of everything.
        is_bare: True = without our loss module.
    """

    def __init__(
        self,
        dataset: DemonstrationDataset,
        hidden: int,
        batch: int,
        device: str,
        *,
        is_bare: bool,
    ) -> None:
        torch.manual_seed(0)
        policy = make_policy(dataset, chunk_size=CHUNK, head="tokens", hidden=hidden)
        self.policy = policy.to(device).eval()
        self.critic = policy.make_critic().to(device)
        rows = torch.arange(batch) % len(dataset)
        observed = dataset.frames[rows].select(*policy.in_keys).to(device)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad(), set_interaction_type(InteractionType.RANDOM):
            data = policy(observed)
        data["advantage"] = torch.randn(batch, 1, generator=generator).to(device)
        data["value_target"] = torch.randn(batch, 1, generator=generator).to(device)
        executed = torch.ones(batch, CHUNK, dtype=torch.bool, device=device)
        self.data = data.set(("next", "is_executed"), executed)
        self.parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = AdamW(self.parameters, lr=LR)
        self.loss = self.bare_loss if is_bare else self.our_loss
        self.module = ChunkPPOLoss(self.policy, self.critic)

    def our_loss(self) -> Tensor:
        """Return the loss of our module."""
        out = self.module(self.data)
        return out["loss_objective"] + out["loss_critic"]

    def bare_loss(self) -> Tensor:
        """Return it in plain PyTorch."""
        data = self.data
        logits = self.policy.predict_logits(data).log_softmax(-1)
        tokens = data["action_tokens"].unsqueeze(-1)
        log_probs = logits.gather(-1, tokens).squeeze(-1)
        change = (log_probs - data["element_log_probs"]).flatten(1).sum(-1)
        advantage, ratio = data["advantage"].squeeze(-1), change.exp()
        clipped = ratio.clamp(0.8, 1.2)
        gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
        value = self.critic(data.select(*self.critic.in_keys))["state_value"]
        return 0.5 * F.smooth_l1_loss(value, data["value_target"]) - gain

    def __call__(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()


def weights_differ_by(title: str, runs: dict[str, Callable[[], None]]) -> float:
    """Take ten steps each, and return the largest difference of a weight.

    Where a gradient is nearly 0, AdamW turns rounding into a step of the learning rate.

    Raises:
        AssertionError: they differ by more than rounding on the average.
    """
    weights = []
    for run in runs.values():
        for _ in range(10):
            run()
        parameters = run.policy.parameters()
        weights.append(torch.cat([p.detach().flatten().cpu() for p in parameters]))
    differences = [(ours - weights[0]).abs() for ours in weights[1:]]
    if max(difference.mean().item() for difference in differences) > 0.01 * LR:
        raise AssertionError(f"{title}: {list(runs)} end with other weights.")
    return max(difference.max().item() for difference in differences)


def compare(
    title: str,
    runs: dict[str, Callable[[], None]],
    device: str,
    rounds: int,
    repeats: int,
) -> None:
    """Print the rows of a contest."""
    difference = f"{weights_differ_by(title, runs):.0e}"
    times = time_in_turns(runs, rounds, repeats=repeats, clock=make_clock(device))
    columns = {
        name: (f"{1e3 * len(spent) / sum(spent):.0f}", difference)
        for name, spent in times.items()
    }
    title = title if device == "cpu" else f"{title}, {device}"
    print_rows(title, times, "bare loop", columns)


def make_dataset(episodes: int) -> DemonstrationDataset:
    """Return demonstrations on the tabletop with images of 32 pixels."""
    env = TabletopEnv(min(64, episodes), image_size=32, seed=0)
    expert = env.make_expert(noise=0.3, seed=0)
    folder = tempfile.mkdtemp()
    return collect(env, expert, episodes, folder=folder, overwrite=True, progress=False)


def main() -> None:
    given = read_options(__doc__, device=True)
    quick, device = given.quick, given.device
    if device == "cpu":
        torch.set_num_threads(1)
    print("Steps of training, 1 thread; weights after ten steps: checked")
    print_head("the bare loop", "steps/s", "weights")
    images = make_dataset(4 if quick else 60)
    states = DemonstrationDataset(
        images.frames.exclude(("observation", "image")),
        images.metadata,
        images.instructions,
    )
    sizes = (1, 1) if quick else (21, 4 if device == "cpu" else 20)
    for what, dataset, hidden in (("state", states, 32), ("images", images, 128)):
        batch = 8 if quick else 128
        hidden = 16 if quick else hidden
        start = Cloning(dataset, hidden, batch)
        runs = {"bare loop": BareCloning(start, device)}
        if device != "cpu":
            runs["data on device"] = BareCloning(start, device, device)
        runs["ours"] = start.to(device)
        compare(f"BC {what}, batch {batch}", runs, device, *sizes)
        runs = {
            name: PPO(dataset, hidden, batch, device, is_bare=is_bare)
            for name, is_bare in {"bare loop": True, "ours": False}.items()
        }
        compare(f"PPO {what}, batch {batch}", runs, device, *sizes)


if __name__ == "__main__":
    main()
