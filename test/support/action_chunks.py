"""Smooth chunks, FAST processors of the published kind, and walks through grammars."""

from __future__ import annotations

import json

import numpy as np
import torch


def smooth_chunks(count, size=8, width=2, seed=0):
    """Sines of random frequency, phase and height, float32 ``[N, H, A]``."""
    rng = np.random.default_rng(seed)
    times = np.linspace(0, 1, size)[None, :, None]
    speed, phase, height = rng.uniform(0.2, 1.5, (3, count, 1, width))
    return torch.from_numpy(
        np.sin(2 * np.pi * (times * speed + phase)) * height
    ).float()


def published_folder(
    folder, chunks, *, vocab_size=400, scale=10.0, sizes=True, low=None
):
    """Write a folder as the published processor's fit does: BPE of UTF-8 bytes."""
    from scipy.fft import dct
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    found = np.around(dct(chunks.double().numpy(), axis=1, norm="ortho") * scale)
    low = int(found.min()) if low is None else low
    texts = ["".join(map(chr, row.flatten().astype(int) - low)) for row in found]
    tokenizer = ByteLevelBPETokenizer()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        max_token_length=10000,
    )
    tokenizer._tokenizer.train_from_iterator(texts, trainer=trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "processor_class": "UniversalActionProcessor",
        "scale": scale,
        "vocab_size": vocab_size,
        "min_token": low,
        "time_horizon": chunks.shape[1] if sizes else None,
        "action_dim": chunks.shape[2] if sizes else None,
    }
    (folder / "processor_config.json").write_text(json.dumps(config))
    return folder


def walk(grammar, rows, seed=0, weights=None):
    """Sample sequences that the grammar allows, each allowed token as likely."""
    generator = torch.Generator().manual_seed(seed)
    state, tokens = grammar.start(rows), []
    for _ in range(grammar.length):
        allowed = grammar.allowed(state).double()
        allowed = allowed if weights is None else allowed * weights
        token = allowed.multinomial(1, generator=generator).squeeze(-1)
        tokens.append(token)
        state = grammar.advance(state, token)
    return torch.stack(tokens, 1)
