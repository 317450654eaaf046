"""The kind of task whose answer is a vector: a text's sentence embedding, which the sparse model learns from the dense one.

The labels are the dense encoder's own vectors, so plain text is enough. A class, or a second text that belongs to the first,
serves the evaluation alone: it says which texts should be neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from pruneonce.batch import Batch
from pruneonce.errors import DataError
from pruneonce.models import checkpoint, configuration
from pruneonce.sources import cells
from pruneonce.tasks import encoder, splits
from pruneonce.tasks.examples import Example
from pruneonce.tasks.protocol import Kind, TaskSettings
from pruneonce.tasks.scores import Scorer
from pruneonce.text import text_key

RETRIEVAL = ("ndcg", "recall", "neighbour")  # metrics of which texts a text finds
PARTNERS = 32  # of each text: their similarities are compared
NEAREST = 10  # neighbours that count for ndcg and recall
BATCH = 32  # texts that the dense encoder reads at once
BLOCK = 256  # texts whose similarities with all others are in memory at once
BOTH, ASKS, ANSWERS, COPY = range(4)  # what a text does: one without a pair does both; a copy of an answer does neither
NOWHERE = -2.0  # a similarity below every cosine


@dataclass(frozen=True)
class Embedding(Kind):
    """A vector for each text. Metrics: spearman, ndcg, recall, neighbour (`scorers`)."""

    pooling: encoder.Mode  # of encoder.Pooling
    normalize: bool
    max_tokens: int  # longer texts are cut

    outputs: ClassVar[tuple[str, ...]] = (encoder.OUTPUT,)
    columns: ClassVar[dict[str, pa.DataType]] = {
        "label": pa.list_(pa.float32()),
        "group": pa.string(),  # texts of one group should be neighbours; null: nobody knows
        "side": pa.int8(),
    }
    dense: ClassVar[str] = "encoder"

    @classmethod
    def reader(cls, settings: TaskSettings) -> Callable[..., Example]:
        return _pair if settings.pair else _text

    @classmethod
    def example(cls, *row: Any) -> Example:
        return _text(*row)

    @classmethod
    def from_rows(cls, settings: TaskSettings, train: Sequence[Example], *others: Sequence[Example]) -> Self:
        grouped = all(row.stratum or len(row.texts) == 2 for rows in others for row in rows)
        if settings.metric != "spearman" and not grouped:
            raise DataError(
                f"expected a class or a second text in every row for metric {settings.metric}, found rows without. Name its "
                "column in `label` or `pair`, or set `metric` to spearman."
            )
        return cls(settings.metric, settings.pooling, settings.normalize, settings.max_tokens)

    def taught(
        self,
        rows: Mapping[str, Sequence[Example]],
        model_folder: Path,
        tokenizer,
        splits_folder: Path,
        *,
        device: torch.device,
    ) -> tuple["Embedding", dict[str, list[Example]]]:
        """The task with the pooling and the length that the dense encoder's folder states, and rows with its vectors.

        The encoder is kept in the splits' folder: `teach_task` has nothing to teach it.
        """
        kind, said = self, encoder.stated(model_folder)
        if said:
            p, most = said.pooling, said.max_tokens or self.max_tokens
            configuration.check_tokens(model_folder, most, setting="max_seq_length of sentence_bert_config.json")
            kind = replace(self, pooling=p.mode, normalize=p.normalize, max_tokens=most)
        model = checkpoint.load_task_model(kind.architecture, model_folder, attention="eager", dropout=0.0).eval()
        checkpoint.save(model, tokenizer, splits_folder / self.dense)
        model.to(device)
        return kind, {
            name: [replace(row, label=v) for row, v in zip(split, kind._vectors(model, split, tokenizer), strict=True)]
            for name, split in rows.items()
        }

    @torch.inference_mode()
    def _vectors(self, model: torch.nn.Module, rows: Sequence[Example], tokenizer) -> list[list[np.ndarray]]:
        """The dense vector, float[width], of every text of every row. Texts of similar length share a batch."""
        texts = [text for row in rows for text in row.texts]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            batch = tokenizer([texts[i] for i in part], truncation=True, max_length=self.max_tokens, padding=True)
            batch["input_ids"] = splits.token_ids(batch, tokenizer)
            batch = batch.convert_to_tensors("pt")
            out = model(**{name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")})[encoder.OUTPUT]
            found.update(zip(part, out.float().cpu().numpy(), strict=True))
        numbers = iter(range(len(texts)))
        return [[found[next(numbers)] for _ in row.texts] for row in rows]

    @property
    def architecture(self) -> Any:
        return encoder.with_pooling(encoder.Pooling(self.pooling, self.normalize))

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def encode(self, examples: Sequence[Example], tokenizer, *, max_tokens: int) -> tuple[dict[str, list], int]:
        """A row for each text."""
        single = [replace(row, texts=(text,)) for row in examples for text in row.texts]
        columns, cut = splits.encode_texts(single, tokenizer, max_tokens=self.max_tokens)
        sides = [side for row in examples for side in ((BOTH,) if len(row.texts) == 1 else (ASKS, ANSWERS))]
        groups = [row.group or row.stratum or None for row in examples for _ in row.texts]
        labels = [vector for row in examples for vector in row.label]
        return {
            "text": columns["text"],
            "label": labels,
            "group": groups,
            "side": sides,
            "input_ids": columns["input_ids"],
        }, cut

    def labels(self, rows: Sequence[Mapping[str, Any]], length: int) -> Tensor:
        """float[batch, width]: the dense encoder's vectors"""
        return torch.tensor([row["label"] for row in rows], dtype=torch.float32)

    def hard(self, logits: Tensor, batch: Batch) -> Tensor:
        """Against the vectors of the dense encoder."""
        return embedding_loss(logits, batch["labels"])

    def soft(self, student: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The same against the teacher's vectors; a direction has no temperature."""
        return embedding_loss(student, teacher)

    def decisions(self, logits: np.ndarray, batch: Batch) -> np.ndarray:
        """Return the same value for every row: a vector makes no decision, so parity compares the vectors alone."""
        return np.zeros(len(logits), int)

    def scorers(self, split: Dataset, logits: Sequence[np.ndarray]) -> tuple[int, dict[str, Scorer]]:
        """spearman: of the similarities between texts, against the dense encoder's. Each text with PARTNERS others.

        ndcg, recall: of the NEAREST texts that a text finds, against those of its group. neighbour: the share of texts whose
        nearest text is of its group. These are means over the texts that ask and have a group; a class's texts all ask.
        They are computed when one of them is asked for: their cost grows with the square of the texts.
        """
        found = _directions(logits)
        wanted = _directions(split.with_format("numpy", columns=["label"])[:]["label"])
        scorers: dict[str, Scorer] = {"spearman": partial(_spearman, found, wanted)}
        groups = np.array([str(group or "") for group in split["group"][:]])
        if (groups != "").any():
            measures = cache(lambda: _retrieval(found, groups, _sides(split)))
            scorers |= {name: partial(_mean_of, measures, name) for name in RETRIEVAL}
        return len(found), scorers


def _text(text: Any, group: Any = "") -> Example:
    """The row of a text, and its class if there is one."""
    return Example((cells.text(text),), label=(), stratum=cells.class_name(group) if group != "" else "")


def _pair(text: Any, second: Any) -> Example:
    """The row of two texts that belong together. All rows of one second text are a group."""
    texts = cells.text(text), cells.text(second)
    return Example(texts, label=(), group=str(text_key(texts[1])))


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of each vector and its teacher's, and the error of the similarities between the vectors of the batch.

    mean_i (1 - cos(s_i, t_i)) + mean_(i != j) (cos(s_i, s_j) - cos(t_i, t_j))^2; of a single vector the first part alone.
    student, teacher: float[batch, width]. No gradient reaches teacher.
    Returns a scalar >= 0 (up to rounding), 0 where all vectors have the teacher's directions. Their lengths do not count.
    Source: Reimers & Gurevych 2020, arXiv:2004.09813 (vectors); Tung & Mori 2019, arXiv:1907.09682 (similarities).
    """
    s, t = F.normalize(student.float(), dim=-1), F.normalize(teacher.detach().float(), dim=-1)
    distance = (1.0 - (s * t).sum(-1)).mean()
    if len(s) < 2:
        return distance
    others = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
    return distance + (s @ s.T - t @ t.T)[others].square().mean()


def cosine(one: Any, other: Any) -> float:
    """Of two vectors; 0 if one of them is 0."""
    (a,), (b,) = _directions([one]), _directions([other])
    return float(a @ b)


def _directions(vectors: Sequence[Any]) -> np.ndarray:
    """float[texts, width], each of length 1; a vector of zeros stays one."""
    rows = np.asarray(vectors, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def _spearman(found: np.ndarray, wanted: np.ndarray, rows: np.ndarray) -> float:
    """Spearman's correlation of the cosines of rows i and i + k, in both spaces, over k up to PARTNERS."""
    order = np.random.default_rng(len(rows)).permutation(rows)
    shifts = range(1, min(PARTNERS, len(rows) - 1) + 1)
    if not shifts:
        return 0.0
    others = np.concatenate([np.roll(order, shift) for shift in shifts])
    different = np.tile(order, len(shifts)) != others  # a row that was drawn twice is no partner of itself

    def cosines(vectors: np.ndarray) -> np.ndarray:
        """One shift at a time: its vectors fit into the cache, those of all pairs do not."""
        own = vectors[order]
        return np.concatenate([(own * np.roll(own, shift, axis=0)).sum(-1) for shift in shifts])[different]

    x, y = cosines(wanted), cosines(found)
    return float(stats.spearmanr(x, y).statistic) if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else 0.0


def _sides(split: Dataset) -> np.ndarray:
    """int[texts]: the side of each text; COPY of a second text that stands in an earlier row as well."""
    sides = np.array(split["side"][:])
    answers = np.flatnonzero(sides == ANSWERS)
    if len(answers) and "text" in split.column_names:
        texts = split["text"][:]
        _, first = np.unique([text_key(texts[i]) for i in answers], return_index=True)
        sides[np.delete(answers, first)] = COPY
    return sides


def _retrieval(found: np.ndarray, groups: np.ndarray, sides: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of every text, nan for one that does not ask, or that has nothing to find."""
    measures = {name: np.full(len(found), np.nan) for name in RETRIEVAL}
    answers = np.flatnonzero((sides == BOTH) | (sides == ANSWERS))
    asking = np.flatnonzero(((sides == BOTH) | (sides == ASKS)) & (groups != ""))
    discount, there = 1 / np.log2(np.arange(2, NEAREST + 2)), groups[answers]
    for block in np.split(asking, range(BLOCK, len(asking), BLOCK)):
        likeness = np.nan_to_num(found[block] @ found[answers].T, nan=NOWHERE)
        likeness[block[:, None] == answers] = NOWHERE  # a text does not find itself
        for i, alike in zip(block, likeness, strict=True):
            relevant = (there == groups[i]) & (answers != i)
            if not relevant.any():
                continue
            nearest = _nearest(alike)
            hits, count = relevant[nearest], min(NEAREST, int(relevant.sum()))
            measures["ndcg"][i] = (hits * discount[: len(hits)]).sum() / discount[:count].sum()
            measures["recall"][i] = hits.sum() / relevant.sum()
            measures["neighbour"][i] = hits[0]
    return measures


def _nearest(alike: np.ndarray) -> np.ndarray:
    """The places of the NEAREST largest values, the largest first, the first of equal ones first. alike: float[texts]"""
    least = np.partition(alike, -NEAREST)[-NEAREST] if len(alike) > NEAREST else -np.inf
    places = np.flatnonzero(alike >= least)
    return places[np.argsort(-alike[places], kind="stable")][:NEAREST]


def can_be_ranked(split: Dataset) -> bool:
    """Whether a text of the split asks for one that is there, and another one is there that it does not ask for."""
    groups, sides = np.array([str(group or "") for group in split["group"][:]]), _sides(split)
    answers = (sides == BOTH) | (sides == ANSWERS)
    there, counts = np.unique(groups[answers], return_counts=True)
    alone = set(there[counts == 1])  # a text that does both does not find itself
    both, asks = groups[sides == BOTH], groups[sides == ASKS]
    return len(there) > 1 and bool(((set(both) - alone) | (set(asks) & set(there))) - {""})


def _mean_of(measures: Callable[[], dict[str, np.ndarray]], name: str, rows: np.ndarray) -> float:
    """The mean of a measure over those of the rows that have a value; 0 if none has one."""
    chosen = measures()[name][rows]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if len(chosen) else 0.0
