"""Latency and training of a flow policy on a vision-language trunk, on a GPU.

    python benchmarks/gpu_vlm.py --shape smolvla --device cuda --out rows.json
    python benchmarks/gpu_vlm.py --shape pi0 --rehearse --device cpu

The networks have the sizes of SmolVLA and pi0 and random weights; nothing is
downloaded. An image encoder (SigLIP), a language model and an action expert on all of
its layers are what `load_trunk` with an image encoder and `VLMFlowPolicy` build. Images
arrive at the size of the network, and instructions as ids.

Latency: one chunk of 50 actions, 10 denoising steps, from the same noise. Each way of
running is compared with the eager one first; the largest difference is in the table.
Training: the loss of `FlowMatchingLoss`, backward, clipping and AdamW, against a bare
loop over the same network, batch and noise.
"""

from __future__ import annotations

import gc
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from gpu_rows import Rows, capture, compare, in_turns, read_arguments, spread, times_of
from tensordict import TensorDict
from torch import Tensor, nn

from torchrl_vla.objectives import FlowMatchingLoss
from torchrl_vla.policies import (
    ExpertConfig,
    ImageEncoder,
    ImageFeatures,
    LoRAConfig,
    TrunkConfig,
    VLMFlowPolicy,
)
from torchrl_vla.policies.encoders.image_input import ImageInput
from torchrl_vla.policies.vlm.causal_trunk import CausalTrunk
from torchrl_vla.policies.vlm.processors import Family, PromptProcessor
from torchrl_vla.schema import InstructionTable


@dataclass(frozen=True)
class Shape:
    """Sizes of a policy.

    Args:
        family: of the language model.
        text: its configuration.
        vision: configuration of the image encoder.
        shuffle: patches per side that become one token.
        cameras: how many images are read.
        expert: width of the action expert.
        batches: of the latencies.
        training: what is trained, with its batch.
        text_length: tokens of the instruction.
        chunk: actions of a chunk.
        steps: denoising steps.
        width: numbers of an action, and of the state.
        repeats: of each measurement.
    """

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    shuffle: int
    cameras: int
    expert: int
    batches: tuple[int, ...]
    training: tuple[tuple[str, int], ...]
    text_length: int = 48
    chunk: int = 50
    steps: int = 10
    width: int = 32
    repeats: int = 20


SHAPES = {
    # SmolVLM2-500M: 16 of its 32 layers, 64 tokens per image, expert of 0.75 width.
    "smolvla": Shape(
        family="Llama",
        text={
            "vocab_size": 49280,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 16,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "max_position_embeddings": 8192,
        },
        vision={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        shuffle=4,
        cameras=2,
        expert=720,
        batches=(1, 8),
        training=(("expert alone", 32), ("all weights", 32)),
    ),
    # PaliGemma 3B: Gemma 2B, SigLIP So400m, 256 tokens per image; an expert of 300M.
    "pi0": Shape(
        family="Gemma",
        text={
            "vocab_size": 257152,
            "hidden_size": 2048,
            "intermediate_size": 16384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "max_position_embeddings": 8192,
        },
        vision={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
        shuffle=1,
        cameras=3,
        expert=1024,
        batches=(1,),
        training=(("expert alone", 8), ("LoRA", 8)),
    ),
}


def tiny(shape: Shape) -> Shape:
    """Return a shape of the same make that a CPU runs at once."""
    groups = shape.text["num_key_value_heads"] > 1
    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if groups else 1,
        "head_dim": 8,
        "max_position_embeddings": 512,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16 * shape.shuffle,
        "patch_size": 8,
    }
    training = tuple((what, 2) for what, _ in shape.training)
    return replace(
        shape,
        text=text,
        vision=vision,
        expert=16,
        batches=shape.batches[:1],
        training=training,
        chunk=4,
        steps=2,
        width=4,
        repeats=2,
    )


class Siglip(ImageEncoder):
    """SigLIP with random weights, whose patches are joined to squares.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        from transformers import SiglipVisionConfig, SiglipVisionModel

        config = SiglipVisionConfig(**shape.vision, vision_use_head=False)
        size = config.image_size
        super().__init__(
            config.hidden_size * shape.shuffle**2,
            ImageInput(size=(size, size)),
        )
        self.shuffle, self.side = shape.shuffle, size // config.patch_size
        self.network = SiglipVisionModel(config)

    def encode_pixels(self, pixels: Tensor) -> ImageFeatures:
        """Return squares of patches as tokens."""
        states = self.network(pixel_values=pixels).last_hidden_state
        rows, n = self.side // self.shuffle, len(states)
        squares = states.view(n, rows, self.shuffle, rows, self.shuffle, -1)
        patches = squares.transpose(2, 3).reshape(n, rows * rows, -1)
        return ImageFeatures(patches, patches.mean(1), (rows, rows))


class Bytes:
    """Tokenizer of bytes."""

    pad_token_id = 0

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        """Return ids and masks of texts."""
        ids = [[3 + byte for byte in text.encode()] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}


def make_policy(shape: Shape, device: str, **options: Any) -> VLMFlowPolicy:
    """Make a policy with random weights on a device.

    Args:
        shape: sizes.
        device: where.
        options: of :class:`TrunkConfig`.
    """
    import transformers

    torch.manual_seed(0)
    settings = getattr(transformers, f"{shape.family}Config")(**shape.text)
    settings._attn_implementation = "sdpa"
    tokenizer, size = Bytes(), shape.vision["image_size"]
    cameras = tuple(f"camera_{index}" for index in range(shape.cameras))
    config = TrunkConfig(
        cameras=cameras,
        image_sizes=((3, size, size),) * shape.cameras,
        state_dim=shape.width,
        text_length=shape.text_length,
        precision="bfloat16",
        **options,
    )
    with torch.device(device):  # a CPU would draw the weights for minutes
        model = getattr(transformers, f"{shape.family}ForCausalLM")(settings)
        encoder = Siglip(shape).eval()
    encoder.requires_grad_(not (config.frozen or config.lora))
    processor = PromptProcessor(tokenizer, tokenizer, None, Family())
    trunk = CausalTrunk(model.eval(), processor, config, image_encoder=encoder)
    policy = VLMFlowPolicy(
        trunk,
        action_dim=shape.width,
        chunk_size=shape.chunk,
        num_steps=shape.steps,
        expert=ExpertConfig(hidden=shape.expert),
    ).to(device)
    policy.instructions = InstructionTable(["put the red block on the plate"])
    return policy


def make_batch(shape: Shape, n: int, device: str, policy: VLMFlowPolicy) -> TensorDict:
    """Return observations, targets and masks of ``n`` rows."""
    generator = torch.Generator().manual_seed(0)
    size = (n, 3, shape.vision["image_size"], shape.vision["image_size"])
    images = {
        f"camera_{index}": torch.randint(256, size, generator=generator).byte()
        for index in range(shape.cameras)
    }
    state = torch.randn(n, shape.width, generator=generator)
    chunk = torch.randn(n, shape.chunk, shape.width, generator=generator)
    assert policy.instructions is not None
    return TensorDict(
        {
            "observation": {"image": images, "state": state},
            "language_instruction": policy.instructions.ids.expand(n).clone(),
            "action_chunk": chunk,
            "action_is_pad": torch.zeros(n, shape.chunk, dtype=torch.bool),
        },
        [n],
    ).to(device)


def count(module: nn.Module) -> int:
    """Return how many weights a network has."""
    return sum(p.numel() for p in module.parameters())


def latencies(rows: Rows, name: str, shape: Shape, device: str) -> None:
    """Measure the time of a decision."""
    policy = make_policy(shape, device).eval()
    is_cuda = torch.device(device).type == "cuda"
    rows.add(
        "sizes",
        shape=name,
        weights_million=round(count(policy) / 1e6),
        expert_million=round(count(policy.expert) / 1e6),
        prefix_tokens=policy.trunk.prompt_length
        + shape.cameras
        * (shape.vision["image_size"] // shape.vision["patch_size"] // shape.shuffle)
        ** 2,
        cameras=shape.cameras,
    )

    def setup(n: int) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Tensor]:
        data = make_batch(shape, n, device, policy)
        data = data.select("observation", "language_instruction")
        noise = torch.randn(n, shape.chunk, shape.width, device=device)
        numbers = torch.arange(shape.steps, device=device)

        @torch.no_grad()
        def decide() -> Tensor:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                condition, x = policy.encode(data), noise
                for number in numbers:
                    x = policy.move(condition, x, number.expand(n), None)
            return x

        @torch.no_grad()
        def walk() -> Tensor:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                return policy.get_dist(data).flow_from(noise)[:, -1]

        with torch.no_grad():
            exact = walk()
        return decide, walk, exact

    def measure(way: str, wrap: Callable[[Any], Any], n: int, walk: bool = False):
        cells = {"shape": name, "batch": n, "way": way}
        with rows.trial("latency per chunk", **cells):
            decide, walked, _ = setups[n]
            run = wrap(walked if walk else decide)
            answers = references[n]
            compare(
                rows, "latency per chunk", run, answers, device, shape.repeats, **cells
            )

    with rows.trial("latency per chunk", shape=name, way="float32 weights"):
        setups = {n: setup(n) for n in shape.batches[:1]}
        references = {n: exact.clone() for n, (_, _, exact) in setups.items()}
        for n in setups:
            measure("eager, float32 weights, bfloat16 autocast", lambda f: f, n)
    for part in (policy.trunk.model, policy.trunk.image_encoder):
        for weight in part.parameters():  # no buffers: rotary frequencies stay exact
            weight.data = weight.data.bfloat16()
    setups = {n: setup(n) for n in shape.batches}
    references = {n: exact.clone() for n, (_, _, exact) in setups.items()}
    for n in shape.batches:
        measure("policy(tensordict), bfloat16", lambda f: f, n, walk=True)
        measure("eager, bfloat16", lambda f: f, n)
        if is_cuda:
            measure("CUDA graph, bfloat16", capture, n)
        else:
            rows.add(
                "latency per chunk",
                shape=name,
                batch=n,
                way="CUDA graph",
                error="not run: no CUDA device",
            )
    parts(rows, name, shape, device, policy, setups[shape.batches[0]][0])
    first = shape.batches[0]
    policy.compile_networks(dynamic=False, **({} if is_cuda else {"backend": "eager"}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measure("torch.compile, bfloat16", lambda f: f, first)
    for warning in caught:
        if "compile_network" in str(warning.message):
            rows.add("compiler", shape=name, warning=str(warning.message)[:400])
    if is_cuda:
        measure("torch.compile and CUDA graph, bfloat16", capture, first)


def parts(
    rows: Rows, name: str, shape: Shape, device: str, policy: VLMFlowPolicy, run: Any
) -> None:
    """Measure the parts of a decision at batch 1, eager."""
    n = shape.batches[0]
    data = make_batch(shape, n, device, policy)
    x = torch.randn(n, shape.chunk, shape.width, device=device)
    step = torch.zeros(n, dtype=torch.long, device=device)
    kind = torch.device(device).type
    cells = {"shape": name, "batch": n}

    @torch.no_grad()
    def encode() -> Any:
        with torch.autocast(kind, torch.bfloat16):
            return policy.encode(data)

    condition = encode()

    @torch.no_grad()
    def move() -> Tensor:
        with torch.autocast(kind, torch.bfloat16):
            return policy.move(condition, x, step, None)

    with rows.trial("parts of a decision", **cells):
        for part, one in {"prefix": encode, "denoising step": move}.items():
            times = times_of(one, device, shape.repeats)
            cells = {"shape": name, "batch": n, "part": part, "way": "eager"}
            rows.add("parts of a decision", **cells, **spread(times))
    if kind == "cuda":
        with rows.trial("parts of a decision", **cells):
            for part, one in {"prefix": encode, "denoising step": move}.items():
                times = times_of(capture(one), device, shape.repeats)
                cells = {"shape": name, "batch": n, "part": part, "way": "CUDA graph"}
                rows.add("parts of a decision", **cells, **spread(times))


def trainings(rows: Rows, name: str, shape: Shape, device: str) -> None:
    """Measure steps of training."""
    options = {
        "expert alone": {"frozen": True},
        "all weights": {},
        "LoRA": {"lora": LoRAConfig()},
    }
    for what, n in shape.training:
        cells = {"shape": name, "trained": what, "batch": n}
        with rows.trial("training step", **cells):
            train(rows, shape, device, options[what], n, cells)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def train(
    rows: Rows,
    shape: Shape,
    device: str,
    options: dict[str, Any],
    n: int,
    cells: dict[str, object],
) -> None:
    """Measure one way of training against the bare loop."""
    policy = make_policy(shape, device, **options).train()
    if options.get("frozen"):  # the projection of the images, too
        policy.trunk.requires_grad_(False)
    trained = [p for p in policy.parameters() if p.requires_grad]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device != "cpu")
    batch = make_batch(shape, n, device, policy)
    loss_module = FlowMatchingLoss(policy)
    expert = torch.autocast(torch.device(device).type, torch.bfloat16)

    def step(loss: Callable[[], Tensor]) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with expert:
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return value.detach()

    def ours() -> Tensor:
        return loss_module(batch)["loss_bc"]

    def bare() -> Tensor:
        data = batch["action_chunk"]
        prefix = policy.trunk.encode(batch)
        condition = policy._condition(batch, prefix)
        noise = torch.randn(data.shape, device=device)
        u = torch.rand(n, device=device)
        t = (1 - u ** (1 / policy.time_alpha))[:, None, None]
        x = (1 - t) * noise + t * data
        velocity = policy.velocity(condition, x, t[:, :, 0].expand(-1, shape.chunk))
        return ((velocity - (data - noise)) ** 2).mean()

    values = []
    for loss in (ours, bare):
        torch.manual_seed(1)
        with expert, torch.no_grad():
            values.append(loss().item())
    difference = abs(values[0] - values[1])
    runs = {"ours": lambda: step(ours), "bare loop": lambda: step(bare)}
    times = in_turns(runs, device, max(2, shape.repeats // 2))
    ratios = [a / b for a, b in zip(times["ours"], times["bare loop"])]
    for who, spent in times.items():
        rows.add(
            "training step",
            **cells,
            way=who,
            **spread(spent),
            samples_per_s=round(n / statistics.median(spent) * 1e3, 1),
            ratio=round(statistics.median(ratios), 3) if who == "ours" else 1.0,
            ratio_least=round(min(ratios), 3) if who == "ours" else 1.0,
            ratio_most=round(max(ratios), 3) if who == "ours" else 1.0,
            difference=difference if who == "ours" else 0.0,
            trained_million=round(sum(p.numel() for p in trained) / 1e6, 1),
            peak_gb=(
                round(torch.cuda.max_memory_allocated() / 1e9, 1)
                if torch.cuda.is_available()
                else None
            ),
        )


def main() -> None:
    given = read_arguments(__doc__, shape="smolvla")
    rows, shape = Rows(given.out), SHAPES[given.shape]
    if given.rehearse:
        shape = tiny(shape)
    trainings(rows, given.shape, shape, given.device)
    latencies(rows, given.shape, shape, given.device)


if __name__ == "__main__":
    main()
