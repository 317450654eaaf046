"""Shared by all tests: a tiny BERT out of tests/tiny/model, its tokenizer, its ONNX files; laws without chance."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test reaches for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is: pytest's workers fill the cores, and threads would wait

import contextlib
import gc
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from filelock import FileLock
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from pruneonce import quantization
from pruneonce.deployment import export
from pruneonce.deployment.weight_names import name_weights
from pruneonce.engine import accelerator
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks

settings.register_profile("laws", derandomize=True, deadline=None, max_examples=30, database=None)
settings.load_profile("laws")

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests/tiny"
PRUNABLE = r"^encoder\."
# What takes minutes begins first: a worker that is left with it at the end would keep the other ones waiting.
LONG = (
    "e2e/test_compress",
    "e2e/test_workers",
    "e2e",
    "integration/test_architectures",
    "integration/test_kinds",
    "integration/test_packaging",
    "kernels/test_sanitized",
    "unit/test_fuzz",
    "unit/test_plan",  # and test_planning
    "integration",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of LONG first, in its order. All else keeps its place."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return next((number for number, long in enumerate(LONG) if name.startswith(long)), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def freeze() -> None:
    """Take what is there, modules above all, out of garbage collection: Accelerate asks for a whole one in each training."""
    gc.collect()
    gc.freeze()


def made_once(name: str, make: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest read: the first one that asks for it fills it, the other ones wait.

    make: fills the folder it is given. Nobody writes there afterwards: what is to be changed is copied.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (done := folder.with_suffix(".done")).exists():
            folder.mkdir()  # it is there where a maker failed: this worker fails as well, and does not wait as long
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, for `copy_store`: creating one takes seconds."""
    from pipeline.tracking import store  # imports MLflow, which takes seconds too

    def create(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
            store.connect()

    return made_once("empty-store", create, tmp_path_factory) / "mlflow.db"


def copy_store(store: Path, folder: Path) -> str:
    """Copy a store as mlflow.db of the folder, its artifacts beside it. Returns its address."""
    shutil.copy(store, folder / "mlflow.db")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as base, base:
        for table, address in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            moved = f"UPDATE {table} SET {address} = replace({address}, ?, ?)"
            base.execute(moved, (f"{store.parent}/mlruns", f"{folder}/mlruns"))
    return f"sqlite:///{folder}/mlflow.db"


def copy_project(folder: Path) -> Path:
    """The project as it stands, without anything that was computed, as a git repository of one commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        of_study = name.startswith("study/") and not name.endswith((".py", ".yaml")) and "/." not in name
        computed = name == "dvc.lock" or name.startswith("data/") or of_study
        if computed or not (ROOT / name).is_file():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return commit(folder)


def commit(folder: Path, *names: str) -> Path:
    """Make a folder a git repository of one commit: of these files, or of all. Returns the folder."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", *(names or ["-A"])], [*identity, "commit", "-qm", "copy"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def wait_for(what: str, ask: Callable[[], Any], *, seconds: float, every: float = 1.0, log: Path | None = None) -> Any:
    """Ask until the answer is true, and return it. Fails with the end of `log` when the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(every)
    said = log.read_text()[-3000:] if log else ""
    pytest.fail(f"waited {seconds:.0f} s for {what}\n{said}")


@pytest.fixture
def byte_level(tmp_path):
    """RoBERTa's kind of tokenizer, of the tiny corpus: special tokens of other names and ids than BERT's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train([str(TINY / "text/corpus.txt")], trainer)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    roles = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **roles).save_pretrained(tmp_path)
    return checkpoint.load_tokenizer(tmp_path)


@dataclass
class Cpu:
    """A `training.Compute`: fp32 on one thread."""

    seed: int = 1
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 1


@dataclass
class Settings:
    """The settings of a task (`tasks.protocol.TaskSettings`)."""

    metric: str = "spearman"
    pair: str | None = None
    labels: list[str] | None = None
    pooling: str = "mean"
    normalize: bool = True
    max_tokens: int = 40
    stride_tokens: int = 8
    max_answer_tokens: int = 10
    n_best: int = 5
    null_threshold: float | None = None


@dataclass
class Exported:
    """An ONNX file, the model it was made of, its prunable weights and its zeros by layer."""

    path: Path
    model: torch.nn.Module
    weights: dict[str, np.ndarray]
    pattern: dict[str, np.ndarray]


@pytest.fixture
def tiny_folder() -> Path:
    """Configuration and vocabulary of a two-layer BERT with 12 prunable linears."""
    return TINY / "model"


@pytest.fixture(scope="session")
def tokenizer():
    return checkpoint.load_tokenizer(TINY / "model")


def cpu_engine(micro_batches: int = 1):
    """An Accelerator on the CPU, fp32. Accelerate shares precision and micro-batches among all of a process: reset first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return accelerator(Cpu(), micro_batches=micro_batches)


@pytest.fixture
def engine():
    return cpu_engine()


@pytest.fixture
def make_engine() -> Callable[[int], object]:
    """micro_batches -> an Accelerator on the CPU, fp32."""
    return cpu_engine


def random_masked_lm(seed: int = 0):
    torch.manual_seed(seed)
    return checkpoint.random_masked_lm(TINY / "model", attention="eager", dropout=0.0).eval()


def random_classifier(seed: int = 0, classes: int = 3):
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(TINY / "model", num_labels=classes)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    for linear in masks.prunable(model, PRUNABLE).values():
        torch.nn.init.normal_(linear.bias, std=0.1)  # an exporter that lost biases of 0 would go unseen
    return model


@pytest.fixture
def masked_lm():
    """A BERT with random weights, no dropout, in evaluation mode."""
    return random_masked_lm()


@pytest.fixture
def classifier():
    """A three-class BERT with random weights in evaluation mode."""
    return random_classifier()


def token_batch(seed: int = 0, rows: int = 4, length: int = 10):
    """Random tokens; row i ends i positions early."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 162, (rows, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None] % length).long()
    labels = torch.randint(0, 3, (rows,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


@pytest.fixture
def batch():
    """Tokens of four rows with padding, and one of three labels a row."""
    return token_batch()


def quantized_classifier(sparsity: float = 0.8):
    """A classifier with its encoder pruned, locked and fake-quantized, ranges found and frozen."""
    model = random_classifier()
    linears = masks.mask_linears(model, PRUNABLE, quantization.FakeQuantLinear)
    masks.prune(model, sparsity)
    with torch.no_grad():
        for linear in linears.values():
            linear.weight.mul_(linear.mask)
    masks.lock(model)
    quantization.calibrate(model, [token_batch(seed, 8, 12) for seed in range(4)], engine=cpu_engine())
    quantization.freeze(model)
    return model


def _exported(name: str, model, weights, pattern, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    def make(folder: Path) -> None:
        export.to_onnx(model, folder / "model.onnx")
        name_weights(folder / "model.onnx", weights)

    return Exported(made_once(name, make, tmp_path_factory) / "model.onnx", model, weights, pattern)


@pytest.fixture(scope="session")
def dense_onnx(tmp_path_factory) -> Exported:
    """A dense classifier in ONNX."""
    model = random_classifier()
    weights = {name: m.weight.detach().numpy() for name, m in masks.prunable(model, PRUNABLE).items()}
    pattern = {name: w == 0 for name, w in weights.items()}
    return _exported("dense", model, weights, pattern, tmp_path_factory)


@pytest.fixture(scope="session")
def int8_onnx(tmp_path_factory) -> Exported:
    """A classifier with 80 % zeros in ONNX, its encoder in int8. `model` computes on the same integers."""
    model = quantized_classifier(0.8)
    pattern = {name: ~m.mask.numpy() for name, m in quantization.quantized_linears(model).items()}
    weights = {name: m.weight.numpy().T for name, m in quantization.to_int8(model).items()}
    return _exported("int8", model, weights, pattern, tmp_path_factory)


@pytest.fixture(params=["dense", "int8"])
def exported(request) -> Exported:
    """A classifier in ONNX, dense, and with its encoder in int8."""
    return request.getfixturevalue(f"{request.param}_onnx")


def distillation(**weights: float) -> SimpleNamespace:
    """A `losses.Distillation`: T = 2, and every weight 0 unless it is named."""
    parts = dict.fromkeys(("hard_weight", "soft_weight", "hidden_weight", "attention_weight"), 0.0)
    return SimpleNamespace(**{"temperature": 2.0, **parts, **weights})
