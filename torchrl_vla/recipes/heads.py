"""The tiny policies by the name of their head, and how each is cloned."""

from __future__ import annotations

from typing import get_args

from torchrl.objectives import LossModule

from torchrl_vla._internal.option_names import Head as Head
from torchrl_vla.objectives import (
    BCLoss,
    DiffusionBCLoss,
    FlowMatchingLoss,
    TokenBCLoss,
)
from torchrl_vla.policies import (
    ContinuousVLAWrapper,
    DiffusionVLAWrapper,
    FlowSDENoise,
    FlowVLAWrapper,
    GaussianVLAWrapper,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TinyVLA,
    TokenVLAWrapper,
    VLAWrapperBase,
)
from torchrl_vla.recipes.dataset_opening import Demonstrations, image_sizes_of
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.tokenizers import UniformActionTokenizer

#: Those with log-probabilities.
StochasticTinyPolicies = TinyTokenVLA | TinyGaussianVLA | TinyFlowVLA | TinyDiffusionVLA

TinyPolicies = TinyVLA | StochasticTinyPolicies

#: Token heads split the range that the demonstrations use into this many bins.
_NUM_BINS = 21
#: Times and noises per frame for heads that denoise. The observation is encoded once
#: for all of them; with one, the gradient is too noisy for a short training.
_DRAWS = 8


def make_policy(
    dataset: Demonstrations,
    *,
    chunk_size: int,
    head: Head = "regression",
    hidden: int = 256,
    depth: int = 2,
) -> TinyPolicies:
    """Make an untrained tiny policy that fits a dataset.

    Args:
        dataset: gives the sizes, the cameras and the instructions.
        chunk_size: ``H``.
        head: what the policy emits.
        hidden: width of the trunk.
        depth: residual blocks of the trunk.

    Raises:
        ValueError: there is no such head.
    """
    if head not in get_args(Head):
        raise ValueError(
            f"make_policy: expected a head of {get_args(Head)}, got {head!r}."
        )
    metadata = dataset.metadata
    cameras = tuple(image_sizes_of(dataset))
    options = {
        "action_dim": metadata.action_dim,
        "chunk_size": chunk_size,
        "state_dim": metadata.state_dim,
        "cameras": None if cameras == (None,) else cameras,  # one image, not named
        "instructions": dataset.instructions,
        "hidden": hidden,
        "depth": depth,
    }
    if head == "tokens":
        # Of model space, where min_max puts the demonstrations' range: make_space
        tokenizer = UniformActionTokenizer(_NUM_BINS, low=-1.0, high=1.0)
        return TinyTokenVLA(action_tokenizer=tokenizer, **options)
    classes = {
        "regression": TinyVLA,
        "gaussian": TinyGaussianVLA,
        "flow": TinyFlowVLA,
        "diffusion": TinyDiffusionVLA,
    }
    return classes[head](**options)


def make_space(metadata: RobotDatasetMetadata, head: Head = "regression") -> ModelSpace:
    """Return the model space that a head is trained in.

    Tokens need bounds, so their space is ``min_max``; the others' is ``mean_std``.
    """
    return ModelSpace(metadata, "min_max" if head == "tokens" else "mean_std")


def make_cloning_loss(
    policy: VLAWrapperBase, *, loss_function: str = "l1"
) -> LossModule:
    """Return the loss that clones demonstrations into a policy, by its head.

    Args:
        policy: one of the tiny policies, or a subclass of their base classes.
        loss_function: of :class:`BCLoss`, for heads that predict a chunk.

    Raises:
        TypeError: there is no loss for this policy.
    """
    if isinstance(policy, TokenVLAWrapper):
        return TokenBCLoss(policy)
    if isinstance(policy, FlowVLAWrapper):
        return FlowMatchingLoss(policy, num_samples=_DRAWS)
    if isinstance(policy, DiffusionVLAWrapper):
        return DiffusionBCLoss(policy, num_samples=_DRAWS)
    if isinstance(policy, ContinuousVLAWrapper | GaussianVLAWrapper):
        return BCLoss(policy, loss_function=loss_function)
    raise TypeError(
        "make_cloning_loss: expected a ContinuousVLAWrapper, GaussianVLAWrapper, "
        f"TokenVLAWrapper, FlowVLAWrapper or DiffusionVLAWrapper, got "
        f"{type(policy).__name__}. Pass its own loss to run_training."
    )


def to_stochastic(
    policy: TinyPolicies, *, initial_std: float = 0.2, flow_noise: float = 0.5
) -> StochasticTinyPolicies:
    """Return what a cloned policy becomes for reinforcement learning.

    A regression head gets a spread (another policy, its weights copied), a flow gets
    noise on its steps (in place). The others draw already.

    Args:
        policy: cloned.
        initial_std: of the spread, in model space.
        flow_noise: scale of :class:`FlowSDENoise`.
    """
    if isinstance(policy, TinyVLA):
        return TinyGaussianVLA.from_cloned(policy, initial_std=initial_std).eval()
    if isinstance(policy, TinyFlowVLA) and policy.noise is None:
        policy.noise = FlowSDENoise(flow_noise)
    return policy
