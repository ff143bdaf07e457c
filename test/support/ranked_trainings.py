"""Trainings that the tests run on one rank and on two."""

import copy
from pathlib import Path

import torch
from counting_dataset import counting_dataset
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.distributed.fsdp import fully_shard
from torchrl.data import LazyTensorStorage, ReplayBuffer
from torchrl.data.replay_buffers import SamplerWithoutReplacement

from torchrl_vla.distributed import Ranks, shard, share_gradients
from torchrl_vla.errors import SettingsError
from torchrl_vla.objectives import BCLoss, FlowMatchingLoss, TokenBCLoss
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.recipes import TrainingSettings, run_training, train_behavior_cloning
from torchrl_vla.recipes.training_loop import constant_rate

ROWS, H, A, VOCABULARY = 8, 3, 2, 5


class Chunk(TensorDictModuleBase):
    """A linear policy with the heads that losses read; noise comes with the data."""

    in_keys = [("observation", "state")]
    out_keys = ["action_chunk"]
    chunk_key = "action_chunk"

    def __init__(self, fails_at=None):
        super().__init__()
        self.calls, self.fails_at = 0, fails_at
        self.layer = nn.Linear(4, H * A, dtype=torch.float64)
        self.tokens = nn.Linear(4, H * A * VOCABULARY, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, tensordict):
        return tensordict.set("action_chunk", self.predict(tensordict))

    def predict(self, tensordict):
        self.calls += 1
        if self.calls == self.fails_at:
            raise ConnectionError("planted")
        state = tensordict["observation", "state"] * self.scale
        return self.layer(state).unflatten(-1, (H, A))

    def token_log_probs(self, tensordict):
        logits = self.tokens(tensordict["observation", "state"])
        log_probs = logits.unflatten(-1, (H, A, VOCABULARY)).log_softmax(-1)
        tokens = tensordict["action_tokens"].unsqueeze(-1)
        return log_probs.gather(-1, tokens).squeeze(-1)

    def denoising_errors(self, tensordict, **options):
        noised = tensordict["action_chunk"] + tensordict["noise"]
        return (self.predict(tensordict) * noised - tensordict["noise"]) ** 2


def make_rows():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # The shares of two ranks have 5 and 10 valid positions, and so have the parts.
    pad = torch.arange(H) >= torch.tensor([1, 3, 1, 2, 1, 2, 2, 3])[:, None]
    return TensorDict(
        {
            "observation": {"state": normal(ROWS, 4)},
            "action_chunk": torch.where(pad.unsqueeze(-1), 1e6, normal(ROWS, H, A)),
            "action_tokens": torch.randint(
                VOCABULARY, (ROWS, H, A), generator=generator
            ),
            "noise": normal(ROWS, H, A),
            "action_is_pad": pad,
        },
        [ROWS],
    )


LOSSES = {
    "chunk": lambda policy: BCLoss(policy, loss_function="l2"),
    "tokens": TokenBCLoss,
    "flow": FlowMatchingLoss,
}


def make_policy(name, fails_at=None):
    torch.manual_seed(0)
    policy = Chunk(fails_at)
    # A head that the loss does not read has no gradient, and DDP would wait for it.
    unused = policy.layer if name == "tokens" else policy.tokens
    unused.requires_grad_(False)
    if name == "tokens":
        policy.scale.requires_grad_(False)
    return policy


def run_chunk_training(name, parallel, *, folder=None, parts=1, fails_at=None):
    """Train on the same eight rows at each step; return the weights and the losses."""
    policy = make_policy(name, fails_at)
    trained = shard(copy.deepcopy(policy)) if parallel == "fsdp" else policy
    loss_module = LOSSES[name](trained)
    if name == "tokens":
        loss_module.set_keys(action="action_tokens")
    storage = LazyTensorStorage(ROWS)
    storage.set(slice(ROWS), make_rows())
    sampler = SamplerWithoutReplacement(shuffle=False)
    buffer = ReplayBuffer(storage=storage, sampler=sampler, batch_size=ROWS)
    optimizer = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad], lr=0.1
    )
    log = run_training(
        trained,
        loss_module,
        buffer,
        constant_rate(optimizer),
        TrainingSettings(
            steps=4,
            batch_size=ROWS,
            accumulation_steps=parts,
            log_interval=1,
            checkpoint_interval=2,
            ema_decay=0.9,
            max_grad_norm=0.5,
        ),
        folder=folder,
        progress=False,
    )
    return full_weights(trained), dict(log.losses)


def full_weights(policy):
    from torchrl_vla.distributed.sharding import full

    return {name: full(value).clone() for name, value in policy.state_dict().items()}


def make_cloned_policy(dataset):
    return TinyVLA(
        action_dim=1,
        chunk_size=2,
        backbone=BackboneConfig(cameras=(), state_dim=1, hidden=8),
        instructions=dataset.instructions,
    )


def run_cloning(parallel):
    """Clone a small dataset with a tiny policy; return its weights."""
    dataset = counting_dataset([float(n % 5) for n in range(24)])
    torch.manual_seed(1)
    policy = make_cloned_policy(dataset)
    train_behavior_cloning(
        policy,
        dataset,
        TrainingSettings(steps=4, batch_size=8, parallel=parallel),
        progress=False,
    )
    return policy.state_dict(), Ranks.current().rank


CASES = [
    (name, parallel, parts)
    for parallel in ("ddp", "fsdp")
    for name, parts in [*((name, 1) for name in LOSSES), ("chunk", 2)]
]


def run_all(folder):
    """Return the results of every case, of the clonings, and of resumed trainings."""
    results = {
        case: run_chunk_training(case[0], case[1], parts=case[2]) for case in CASES
    }
    cloned = {parallel: run_cloning(parallel) for parallel in ("ddp", "fsdp")}
    resumed = {}
    for parallel in ("ddp", "fsdp"):
        for name in ("here", "alone"):
            interrupt(parallel, f"{folder}/{parallel}-{name}")
        resumed[parallel] = run_chunk_training(
            "chunk", parallel, folder=f"{folder}/{parallel}-here"
        )
    return results, cloned, resumed


def interrupt(parallel, folder):
    """Train until the third of four steps fails; the state is of the second."""
    try:
        run_chunk_training("chunk", parallel, folder=folder, fails_at=3)
    except ConnectionError:
        return
    raise AssertionError("expected the third step to fail")


def meet_refusals(folder):
    """Return what each training of ranks that do not fit together says."""
    ranks = Ranks.current()

    def train(seed=0, batch_size=ROWS, frames=24, settings_seed=0):
        dataset = counting_dataset([float(n % 5) for n in range(frames)])
        torch.manual_seed(seed)
        policy = make_cloned_policy(dataset)
        settings = TrainingSettings(steps=1, batch_size=batch_size, seed=settings_seed)
        train_behavior_cloning(policy, dataset, settings, progress=False)

    trainings = {
        "settings": lambda: train(settings_seed=ranks.rank),
        "weights": lambda: train(seed=ranks.rank),
        "frames": lambda: train(frames=24 + ranks.rank),
        "batch": lambda: train(batch_size=7),
        "folder": lambda: ranks.check_shared("train", Path(folder) / str(ranks.rank)),
    }
    said = {}
    for name, training in trainings.items():
        try:
            training()
        except SettingsError as error:
            said[name] = str(error)
    return said


def shard_at_the_root(name):
    """Return what training a policy says that is sharded at its root."""
    policy = make_policy(name)
    fully_shard(policy, ignored_params={policy.scale})
    try:
        share_gradients(policy, LOSSES[name](policy), Ranks.current())
    except SettingsError as error:
        return str(error)
    return "no refusal"


def make_bc_loss(policy):
    return BCLoss(policy, loss_function="l2")


class Doubled(BCLoss):
    """A loss whose mean it takes for one over twice the elements of long chunks."""

    def count_elements(self, tensordict):
        return super().count_elements(tensordict) ** 2
