"""One GRPO iteration on the toy task in plain torch: the floor for bench_grpo.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Sizes of TorchRL's toy recipe (its ``vla_grpo_toy.yaml``).
ACTION_DIM, STATE_DIM, IMAGE_SHAPE, INSTRUCTION = 2, 4, (3, 16, 16), "track the target"
HORIZON, BINS, MAX_DECISIONS, GROUP = 4, 64, 6, 4
SUCCESS_STEPS, SUCCESS_TOL = 2, 0.35
MINIBATCH, CLIP, MAX_GRAD_NORM, KEEP = 64, (0.2, 0.28), 1.0, (0.05, 0.95)


class Network(nn.Module):
    """The layers of TorchRL's ``TinyVLA``, without what is around them.

    Args:
        peer: whose layers these are, not copies.
    """

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.state_encoder = peer.image_encoder, peer.state_encoder
        self.text_embedding, self.trunk = peer.text_embedding, peer.trunk
        self.head = peer.head
        row = peer._hash_text([INSTRUCTION], torch.device("cpu"))
        self.register_buffer("row", row, persistent=False)

    def forward(self, image: Tensor, state: Tensor) -> Tensor:
        """Return logits ``[N, H, A, V]``."""
        text = self.text_embedding(self.row.expand(len(state)))
        seen = self.image_encoder(image.float() / 255.0)
        features = self.trunk(torch.cat([seen, self.state_encoder(state), text], -1))
        return self.head(features).unflatten(-1, (HORIZON, ACTION_DIM, BINS))


@dataclass
class Decisions:
    """What a batch of decisions is learned from; leading shape ``[T, N]``, or ``[N]``.

    Args:
        image: uint8 ``[..., C, h, w]``.
        state: float ``[..., S]``.
        tokens: int64 ``[..., H, A]``.
        log_probs: float ``[..., H, A]``.
        executed: bool ``[..., H]``.
        reward: float ``[...]``, of the whole decision.
        done: bool ``[...]``.
        seed: int64 ``[...]``, of the episode.
    """

    image: Tensor
    state: Tensor
    tokens: Tensor
    log_probs: Tensor
    executed: Tensor
    reward: Tensor
    done: Tensor
    seed: Tensor

    def map(self, function: object) -> Decisions:
        """Apply a function to every tensor."""
        return Decisions(*(function(value) for value in vars(self).values()))


class Episodes:
    """The toy task as tensors: hold the action near a target for two steps.

    Args:
        rows: ``N``.
        texture: what the camera sees, uint8 ``[C, h, w]``.
    """

    def __init__(self, rows: int, texture: Tensor) -> None:
        self.texture = texture
        self.target = torch.zeros(rows, ACTION_DIM)
        self.action = torch.zeros(rows, ACTION_DIM)
        self.step = torch.zeros(rows, dtype=torch.int64)
        self.streak, self.seed = self.step.clone(), self.step.clone()

    def begin(self, rows: Tensor, seeds: Tensor) -> None:
        """Begin an episode in the rows where ``rows`` (bool ``[N]``) is True."""
        drawn = []
        for seed in seeds[rows].tolist():
            generator = torch.Generator().manual_seed(seed)
            drawn.append(torch.rand(ACTION_DIM, generator=generator) - 0.5)
        self.target[rows] = torch.stack(drawn)
        self.seed[rows] = seeds[rows]
        for counted in (self.action, self.step, self.streak):
            counted[rows] = 0

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return images and states."""
        brightness = (self.seed + 37 * self.step).to(torch.uint8)
        image = self.texture + brightness[:, None, None, None]
        return image, torch.cat([self.action, self.target], -1)

    def execute(self, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Execute a chunk; return the reward, what ended and what was executed."""
        running = torch.ones(len(chunk), dtype=torch.bool)
        reward, executed = torch.zeros(len(chunk)), []
        for action in chunk.unbind(1):
            executed.append(running)
            near = (action - self.target).abs().amax(-1) <= SUCCESS_TOL
            streak = torch.where(near, self.streak + 1, 0)
            self.streak = torch.where(running, streak, self.streak)
            self.action = torch.where(running[:, None], action, self.action)
            self.step = self.step + running
            success = self.streak >= SUCCESS_STEPS
            reward = reward + (success & running)
            running = running & ~(success | (self.step >= MAX_DECISIONS * HORIZON))
        return reward, ~running, torch.stack(executed, -1)


class PlainGRPO:
    """Collect, compare within groups and take the optimizer steps, with tensors alone.

    It draws the same random numbers in the same order as ours, so that the same seed
    gives the same decisions and weights.

    Args:
        network: trained in place.
        rows: of the environment.
        lr: learning rate.
        texture: of the environment.
        space: mean and standard deviation of states and of actions.
    """

    def __init__(
        self,
        network: Network,
        rows: int,
        lr: float,
        texture: Tensor,
        space: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        self.network, self.rows = network, rows
        self.episodes, self.space = Episodes(rows, texture), space
        self.centers = (torch.arange(BINS) + 0.5) / BINS * 2 - 1
        self.optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.0)

    @torch.no_grad()
    def collect(self, seeds: Tensor) -> Decisions:
        """Return decisions ``[T, N]``; ``seeds`` ``[T + 1, N]`` are of the episodes."""
        state_mean, state_std, action_mean, action_std = self.space
        rows, played = torch.arange(self.rows), torch.zeros(self.rows, dtype=torch.long)
        begins = torch.ones(self.rows, dtype=torch.bool)
        steps = []
        for _ in range(MAX_DECISIONS):
            if begins.any():
                self.episodes.begin(begins, seeds[played, rows])
                played = played + begins
            image, state = self.episodes.observe()
            state = (state - state_mean) / state_std
            logits = self.network(image, state).log_softmax(-1)
            tokens = logits.exp().flatten(0, -2).multinomial(1)
            tokens = tokens.view(self.rows, HORIZON, ACTION_DIM)
            log_probs = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            chunk = self.centers[tokens] * action_std + action_mean
            seed = self.episodes.seed.clone()
            reward, begins, executed = self.episodes.execute(chunk)
            step = (image, state, tokens, log_probs, executed, reward, begins, seed)
            steps.append(step)
        return Decisions(*map(torch.stack, zip(*steps)))

    def judge(self, batch: Decisions) -> tuple[Decisions, Tensor]:
        """Return the decisions of groups that differ, row by row, and advantages."""
        done = batch.done.T
        ended_before = done.long().cumsum(-1) - done.long()
        per_row = ended_before[:, -1] + 1
        episode = (ended_before + (per_row.cumsum(0) - per_row)[:, None]).flatten()
        flat = batch.map(lambda value: value.transpose(0, 1).flatten(0, 1))
        count = int(per_row.sum())
        returns = torch.zeros(count).index_add_(0, episode, flat.reward)
        complete = torch.zeros(count).index_add_(0, episode, flat.done.float()) > 0
        seeds = torch.zeros(count, dtype=torch.long).scatter_(0, episode, flat.seed)
        _, group = seeds.unique(return_inverse=True)
        weight = complete.float()
        n_groups = int(group.max()) + 1
        size = torch.zeros(n_groups).index_add_(0, group, weight)
        mean = torch.zeros(n_groups).index_add_(0, group, returns * weight) / size
        centred = returns - mean[group]
        squares = torch.zeros(n_groups).index_add_(0, group, centred**2 * weight)
        std = (squares / (size - 1)).sqrt()
        good = (size >= 2) & (mean > KEEP[0]) & (mean < KEEP[1])
        advantage = centred / std[group]
        rows = (good[group] & complete)[episode].nonzero().squeeze(-1)
        return flat.map(lambda value: value[rows]), advantage[episode[rows]]

    def loss(self, batch: Decisions, advantage: Tensor) -> Tensor:
        """Return PPO's clipped loss, one ratio per decision."""
        logits = self.network(batch.image, batch.state).log_softmax(-1)
        new = logits.gather(-1, batch.tokens.unsqueeze(-1)).squeeze(-1)
        change = (new - batch.log_probs) * batch.executed.unsqueeze(-1)
        log_ratio = change.sum((-2, -1))
        low, high = torch.tensor([1 - CLIP[0], 1 + CLIP[1]]).log().tolist()
        clipped = log_ratio.clamp(low, high)
        gain = torch.minimum(log_ratio.exp() * advantage, clipped.exp() * advantage)
        return -gain.mean()

    def learn(self, batch: Decisions, advantage: Tensor) -> None:
        """Take the optimizer steps of one pass."""
        for rows in torch.randperm(len(advantage)).split(MINIBATCH):
            loss = self.loss(batch.map(lambda value, r=rows: value[r]), advantage[rows])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()

    def __call__(self, seeds: Tensor) -> tuple[int, int]:
        """Run one iteration; return the decisions of whole episodes, and the used."""
        batch = self.collect(seeds)
        kept, advantage = self.judge(batch)
        if len(advantage):
            self.learn(kept, advantage)
        return int(whole_lengths(batch.done.T).sum()), len(advantage)


def whole_lengths(done: Tensor) -> Tensor:
    """Return how many decisions of each row, bool ``[N, T]``, are of ended episodes."""
    return done.flip(-1).cummax(-1).values.sum(-1)
