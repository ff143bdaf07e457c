"""PPO loss over action chunks that counts executed positions only."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor
from torchrl.objectives import ClipPPOLoss

from torchrl_vla._internal.option_names import Granularity as Granularity
from torchrl_vla._internal.torchrl_spellings import torchrl_spellings
from torchrl_vla.distributed.shared_mean import masked_mean
from torchrl_vla.objectives.pad_masks import read_dim_pad_mask
from torchrl_vla.schema import (
    ELEMENT_LOG_PROBS_KEY,
    IS_EXECUTED_KEY,
    REFERENCE_LOG_PROBS_KEY,
    MissingKeyError,
    SchemaError,
)

_STANDARDIZE = "none: standardize data['advantage'] beforehand"


@torchrl_spellings(
    same={
        "entropy_bonus": (True,),
        "normalize_advantage": (False,),
        "separate_losses": (False,),
        "reduction": (None, "mean"),
        "clip_value": (None, False),
        "delay_actor": (False,),
        "normalize_advantage_exclude_dims": ((),),
    }
    | dict.fromkeys(
        ("gamma", "device", "advantage_norm", "max_importance_ratio"), (None,)
    ),
    instead={
        "entropy_bonus": "entropy_coeff=0.0",
        "samples_mc_entropy": "none: the entropy has a closed form",
        "normalize_advantage": _STANDARDIZE,
        "normalize_advantage_exclude_dims": _STANDARDIZE,
        "advantage_norm": _STANDARDIZE,
        "max_importance_ratio": "clip_epsilon=",
        "delay_actor": "none: there is no target actor",
        "separate_losses": "an actor and a critic that share no weights",
        "reduction": "none: the mean is over what was executed",
        "clip_value": "none: values are not clipped",
        "gamma": "DecisionGAE(gamma=...)",
        "device": "loss.to(device)",
    },
)
class ChunkPPOLoss(ClipPPOLoss):
    """Improve a chunk policy by PPO over the executed part of its chunks.

    TorchRL's ``ClipPPOLoss`` gives a chunk one ratio, over all its ``H`` actions. An
    episode that ends inside a chunk, or a receding horizon, executes fewer; the rest
    would be reinforced and add noise to the ratio. Here their log-probabilities are
    left out. The ratio is taken per chunk, per action or per token: with a finer ratio
    one action's change clips the others less, but the ratio is further from the true
    one of the decision.

    Note:
        Terms are averaged over executed positions, so with finer granularity long
        chunks weigh more.

    **Reads** decisions ``[N]`` (one per policy query): the policy's ``in_keys``; its
    sample, at its ``sample_key``; ``element_log_probs`` float ``[N, H, A]``, the
    per-dimension (per-token) log-probabilities that it wrote when it acted;
    ``advantage`` float ``[N, 1]``; ``("next", "is_executed")`` bool ``[N, H]``, True =
    executed; with ``set_keys(dim_pad_mask="action_dim_is_pad")``, that mask; with a
    critic, ``value_target`` float ``[N, 1]``; with a reference,
    ``reference_log_probs`` float ``[N, H, A]``.

    **Writes** ``loss_objective``; where their coefficients are not 0,
    ``loss_entropy``, ``loss_critic`` and ``loss_reference_kl``; for logging
    ``clip_fraction``, ``kl_approx``, ``max_ratio``, ``entropy``, ``reference_kl`` and
    ``explained_variance``. Every term is over executed positions alone. ``kl_approx``
    is Schulman's k3 estimate of the divergence from the policy that acted; TorchRL's
    mean log-ratio can be negative for a distant policy.

    Args:
        actor_network: a policy with ``get_dist`` and ``sample_key``, such as
            ``TinyTokenVLA``, ``TinyGaussianVLA`` or ``TinyFlowVLA``.
        critic_network: writes ``state_value`` ``[N, 1]``; None = no critic, as in GRPO.

    Keyword Args:
        granularity: what one ratio covers.
        clip_epsilon: largest distance of a ratio from 1; ``(low, high)`` is DAPO's
            clip-higher.
        entropy_coeff: of the entropy bonus; needs a head with a closed form.
        critic_coeff: of the critic's loss.
        reference_kl_coeff: of the divergence from a frozen reference policy, whose
            log-probabilities ``reference_log_probs`` holds (Schulman's k3 estimate).
        loss_critic_type: ``"smooth_l1"``, ``"l2"`` or ``"l1"``.

    Raises:
        TypeError: the actor has no ``get_dist`` or no ``sample_key``.
        ValueError: a coefficient or the granularity is out of its range.
        MissingKeyError: a key is missing.
        SchemaError: a shape or dtype is wrong, or nothing was executed.

    Examples:
        >>> from torchrl_vla.policies import BackboneConfig, TinyTokenVLA
        >>> from torchrl_vla.tokenizers import UniformActionTokenizer
        >>> policy = TinyTokenVLA(
        ...     action_dim=1, chunk_size=2,
        ...     action_tokenizer=UniformActionTokenizer(4, low=-1.0, high=1.0),
        ...     backbone=BackboneConfig(cameras=(), state_dim=3, hidden=8),
        ... )
        >>> data = TensorDict(
        ...     {"observation": {"state": torch.zeros(1, 3)}}, batch_size=[1]
        ... ).set("language_instruction", ["reach"])
        >>> data = policy(data).detach()
        >>> data["advantage"] = torch.ones(1, 1)
        >>> data["next", "is_executed"] = torch.tensor([[True, False]])
        >>> loss = ChunkPPOLoss(policy)(data)
        >>> loss["loss_objective"].item(), loss["clip_fraction"].item()
        (-1.0, 0.0)

    Source: J. Schulman et al., arXiv:1707.06347 (PPO); Q. Yu et al., arXiv:2503.14476
    (DAPO: clip-higher, token-level mean).
    """

    @dataclass
    class _AcceptedKeys(ClipPPOLoss._AcceptedKeys):
        sample_log_prob: NestedKey = ELEMENT_LOG_PROBS_KEY
        executed: NestedKey = ("next", IS_EXECUTED_KEY)
        dim_pad_mask: NestedKey | None = None
        reference_log_prob: NestedKey = REFERENCE_LOG_PROBS_KEY

    tensor_keys: _AcceptedKeys
    default_keys = _AcceptedKeys

    def __init__(
        self,
        actor_network: TensorDictModuleBase,
        critic_network: TensorDictModuleBase | None = None,
        *,
        granularity: Granularity = "chunk",
        clip_epsilon: float | tuple[float, float] = 0.2,
        entropy_coeff: float = 0.0,
        critic_coeff: float = 0.5,
        reference_kl_coeff: float = 0.0,
        loss_critic_type: str = "smooth_l1",
    ) -> None:
        for name in ("get_dist", "sample_key"):
            if not hasattr(actor_network, name):
                raise TypeError(
                    "ChunkPPOLoss: expected a policy with get_dist(tensordict) and "
                    f"sample_key at argument 'actor_network', got "
                    f"{type(actor_network).__name__} without {name}. A deterministic "
                    "policy has no log-probabilities: use TinyTokenVLA, "
                    "TinyGaussianVLA or TinyFlowVLA, or a subclass of "
                    "StochasticVLAWrapper."
                )
        if granularity not in get_args(Granularity):
            raise ValueError(
                f"ChunkPPOLoss: expected granularity of {get_args(Granularity)}, got "
                f"{granularity!r}."
            )
        for name, value in (
            ("entropy_coeff", entropy_coeff),
            ("reference_kl_coeff", reference_kl_coeff),
            ("critic_coeff", critic_coeff),
        ):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"ChunkPPOLoss: expected {name} >= 0, got {value}.")
        super().__init__(
            actor_network,
            critic_network,
            clip_epsilon=clip_epsilon,
            entropy_bonus=entropy_coeff > 0,
            entropy_coeff=entropy_coeff,
            critic_coeff=None if critic_network is None else critic_coeff,
            loss_critic_type=loss_critic_type,
        )
        self.granularity = granularity
        self.reference_kl_coeff = float(reference_kl_coeff)
        self.set_keys(action=actor_network.sample_key)

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that the loss reads."""
        keys = self.tensor_keys
        read = [
            *self.actor_network.in_keys,
            keys.action,
            keys.sample_log_prob,
            keys.advantage,
            keys.executed,
        ]
        if keys.dim_pad_mask is not None:
            read.append(keys.dim_pad_mask)
        if self._has_critic:
            read += [*self.critic_network.in_keys, keys.value_target]
        if self.reference_kl_coeff:
            read.append(keys.reference_log_prob)
        return list(dict.fromkeys(read))

    @property
    def out_keys(self) -> list[str]:
        """Keys that the loss writes."""
        keys = ["loss_objective", "clip_fraction", "kl_approx", "max_ratio"]
        if self.entropy_bonus:
            keys += ["loss_entropy", "entropy"]
        if self._has_critic:
            keys += ["loss_critic", "explained_variance"]
        if self.reference_kl_coeff:
            keys += ["loss_reference_kl", "reference_kl"]
        return keys

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses of a batch of decisions."""
        tensordict = tensordict.clone(False)
        keys = self.tensor_keys
        sample = self._read(tensordict, keys.action, "the policy's sample")
        parameters = self.actor_network_params
        with (
            parameters.to_module(self.actor_network, preserve_module_state=False)
            if self.functional
            else nullcontext()
        ):
            dist = self.actor_network.get_dist(tensordict)
            new = dist.element_log_probs(sample)
            valid = self._valid(tensordict, dist, sample, new)
            entropy = dist.element_entropy() if self.entropy_bonus else None
        old = self._read_like(tensordict, keys.sample_log_prob, new)
        advantage = self._advantage(tensordict)

        log_ratio, weight = self._units(torch.where(valid, new - old, 0.0), valid)
        advantage = advantage.reshape(-1, *(1,) * (log_ratio.ndim - 1))
        clipped = log_ratio.clamp(*self._clip_bounds)
        gain = torch.minimum(log_ratio.exp() * advantage, clipped.exp() * advantage)
        out = {"loss_objective": -masked_mean(gain, weight)}
        with torch.no_grad():
            is_clipped = (clipped != log_ratio).to(new.dtype)
            out["clip_fraction"] = masked_mean(is_clipped, weight)
            out["kl_approx"] = _k3(log_ratio, weight)
            out["max_ratio"] = log_ratio.exp().max()
        if entropy is not None:
            mean = masked_mean(entropy, valid)
            out["loss_entropy"] = -self.entropy_coeff * mean
            out["entropy"] = mean.detach()
        if self.reference_kl_coeff:
            reference = self._read_like(tensordict, keys.reference_log_prob, new)
            kl = _k3(torch.where(valid, reference - new, 0.0), valid)
            out["loss_reference_kl"] = self.reference_kl_coeff * kl
            out["reference_kl"] = kl.detach()
        if self._has_critic:
            self._read(tensordict, keys.value_target, "the critic's target")
            # the second value is that of value clipping, which is off
            loss_critic, _, explained = self.loss_critic(tensordict)
            decided = valid.flatten(1).any(-1)
            out["loss_critic"] = masked_mean(loss_critic.reshape(-1), decided)
            out["explained_variance"] = explained.detach().reshape(())
        return TensorDict(out)

    def _units(self, elements: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Sum elements ``[N, H, A]`` per ratio; return the sums, and which count."""
        if self.granularity == "chunk":
            return elements.flatten(1).sum(-1), valid.flatten(1).any(-1)
        if self.granularity == "action":
            if elements.ndim == 2:
                raise SchemaError(
                    "ChunkPPOLoss: expected granularity 'chunk' or 'token' for "
                    f"sequences of tokens [N, L] = {list(elements.shape)}, got "
                    "'action'. A token is not of one action."
                )
            return elements.sum(-1), valid.any(-1)
        return elements, valid

    def _valid(
        self,
        tensordict: TensorDictBase,
        dist: TokenSequences,
        sample: Tensor,
        new: Tensor,
    ) -> Tensor:
        """Return the elements that were executed, bool ``[N, H, A]`` or ``[N, L]``."""
        key = self.tensor_keys.executed
        executed = self._read(tensordict, key, "a mask of executed positions")
        is_sequence = new.ndim == 2
        shape = dist.step_shape(new) if is_sequence else new.shape[:-1]
        if executed.dtype != torch.bool or executed.shape != shape:
            raise SchemaError(
                f"ChunkPPOLoss: expected bool {list(shape)} at {key!r} (True "
                f"= executed), got {executed.dtype} {list(executed.shape)}. "
                "select_decisions and MultiAction write it, for the policy's own "
                "chunk_size."
            )
        if not torch.compiler.is_compiling() and not executed.any():
            raise SchemaError(
                f"ChunkPPOLoss: expected an executed position at {key!r}, got False "
                "everywhere. Nothing was executed, or the polarity is inverted."
            )
        if not is_sequence:
            valid = executed.unsqueeze(-1).expand_as(new)
        elif self.tensor_keys.dim_pad_mask is None:
            return dist.counted(sample, new, executed)
        else:
            raise SchemaError(
                "ChunkPPOLoss: expected dim_pad_mask=None for sequences of tokens "
                f"{list(new.shape)}, got {self.tensor_keys.dim_pad_mask!r}. A token is "
                "not of one dimension."
            )
        dims = read_dim_pad_mask(
            tensordict, self.tensor_keys.dim_pad_mask, new, "ChunkPPOLoss"
        )
        return valid if dims is None else valid & ~dims.unsqueeze(-2)

    def _advantage(self, tensordict: TensorDictBase) -> Tensor:
        key = self.tensor_keys.advantage
        advantage = self._read(tensordict, key, "one advantage per decision")
        if advantage.shape != (*tensordict.batch_size, 1):
            raise SchemaError(
                "ChunkPPOLoss: expected an advantage "
                f"{[*tensordict.batch_size, 1]} at {key!r}, got "
                f"{list(advantage.shape)}."
            )
        return advantage.detach()

    def _read_like(
        self, tensordict: TensorDictBase, key: NestedKey, new: Tensor
    ) -> Tensor:
        value = self._read(tensordict, key, "log-probabilities [N, H, A]")
        if value.shape != new.shape or value.requires_grad:
            raise SchemaError(
                f"ChunkPPOLoss: expected log-probabilities {list(new.shape)} without a "
                f"gradient at {key!r}, got {list(value.shape)} with requires_grad="
                f"{value.requires_grad}. Store what the policy wrote when it acted "
                "under torch.no_grad()."
            )
        return value

    def _read(self, tensordict: TensorDictBase, key: NestedKey, what: str) -> Any:
        if len(tensordict.batch_size) != 1:
            raise SchemaError(
                "ChunkPPOLoss: expected a batch of decisions [N], got batch size "
                f"{list(tensordict.batch_size)}. Flatten it with .reshape(-1)."
            )
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"ChunkPPOLoss: expected {what} at {key!r}, got only "
                f"{sorted(map(str, tensordict.keys(True, True)))}."
            )
        return value


class TokenSequences(Protocol):
    """What a distribution of sequences ``[N, L]`` says of the chunk's steps."""

    def step_shape(self, elements: Tensor) -> torch.Size:
        """Return ``[N, H]``."""

    def counted(self, choice: Tensor, elements: Tensor, steps: Tensor) -> Tensor:
        """Return which elements count where these steps were executed, bool."""


def _k3(log_ratio: Tensor, weight: Tensor) -> Tensor:
    """Estimate KL(p || q) from ``log(q / p)`` of samples from ``p``.

    Unbiased, and never negative.

    Source: J. Schulman, "Approximating KL divergence" (2020).
    """
    return masked_mean(log_ratio.exp() - log_ratio - 1, weight)
