"""The batches that training benchmarks read: real tokens where a folder has them, else random ones."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from datasets import Dataset

from pruneonce.batch import Batch, mix
from pruneonce.language import corpus
from pruneonce.tasks import splits

LENGTH, VOCABULARY = 128, 30522
MEDIAN_TOKENS, LENGTH_SPREAD = 83, 0.7  # of a log-normal distribution: the lengths of r8's texts


def random_tokens(rows: int, length: int, *, seed: int) -> Batch:
    """Random tokens without padding, int64[rows, length]."""
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def random_blocks(rows: int, length: int, *, seed: int) -> Batch:
    """Random tokens without padding, masked as in the stages."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1000, VOCABULARY, (rows, length), generator=draw)
    inputs, labels = corpus.mask_tokens(
        tokens, probability=0.15, mask_token=103, vocabulary=VOCABULARY, special=[0], generator=draw
    )
    return {"input_ids": inputs, "labels": labels, "attention_mask": torch.ones_like(inputs)}


def masked(folder: Path | None, *, rows: int, seed: int = 0) -> Callable[[int], Batch]:
    """Step -> batch, masked as in the stages: blocks of the folder's train.arrow, or random tokens."""
    if folder:
        marks = SimpleNamespace(mask_token_id=103, all_special_ids=[0, 100, 101, 102, 103])
        words = type("Vocabulary", (SimpleNamespace,), {"__len__": lambda self: VOCABULARY})(**vars(marks))
        return corpus.MaskedBlocks(
            corpus.read_blocks(folder / "train.arrow"), words, batch_size=rows, probability=0.15, seed=seed
        )
    return lambda step: random_blocks(rows, LENGTH, seed=mix(seed, step))


def texts(folder: Path | None, *, count: int) -> Dataset:
    """`count` tokenised texts with labels, cut at LENGTH: of the folder's train.arrow, or random tokens."""
    draw = np.random.default_rng(0)
    if folder:
        split = splits.read_split(folder / "train.arrow")
        rows = split[draw.permutation(len(split))[:count]]
        return Dataset.from_dict({"input_ids": [ids[:LENGTH] for ids in rows["input_ids"]], "label": rows["label"]})
    lengths = np.clip(np.exp(draw.normal(np.log(MEDIAN_TOKENS), LENGTH_SPREAD, count)).astype(int), 4, LENGTH)
    ids = [[101, *draw.integers(1000, VOCABULARY, n - 2).tolist(), 102] for n in lengths]
    return Dataset.from_dict({"input_ids": ids, "label": draw.integers(0, 8, count).tolist()})
