"""Every variant of a task as ONNX, and the check that each file computes what its model computes.

reads   dense_folder, sparse_folder, quantized_folder     task models               teach_task, finetune, quantize
        dense_scores, sparse_scores, quantized_scores     their validation scores   the same
        splits   real text for parity, the task's labels                            prepare_task
writes  dense_onnx, sparse_onnx, int8_onnx   one file each, dynamic batch and length; int8 as QDQ. Each says what it is.
"""

import json
from functools import partial
from pathlib import Path

from pipeline.params.sections import Common, Export, PrepareTask
from pipeline.stage import Dep, Item, Metrics, Origin, Out, main
from pruneonce import engine, quantization
from pruneonce.deployment import embeddings, inspect, provenance
from pruneonce.deployment.parity import Texts
from pruneonce.deployment.variants import export_float, export_int8
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.tasks import kinds
from pruneonce.tasks.batches import evaluation_batches
from pruneonce.tasks.splits import read_split


def run(
    item: Item,
    dense_folder: Dep,
    sparse_folder: Dep,
    quantized_folder: Dep,
    dense_scores: Dep,
    sparse_scores: Dep,
    quantized_scores: Dep,
    splits: Dep,
    dense_onnx: Out,
    sparse_onnx: Out,
    int8_onnx: Out,
    *,
    common: Common,
    prepare_task: PrepareTask,
    export: Export,
    origin: Origin,
) -> Metrics:
    engine.accelerator(common)  # sets the seeds and the threads; the models are exported on the CPU
    kind, tokenizer = kinds.load(splits), checkpoint.load_tokenizer(dense_folder)
    validation = read_split(splits / "validation.arrow")
    rows = validation.select(range(min(export.parity_texts, len(validation))))
    texts = Texts(list(evaluation_batches(rows, kind, tokenizer)), kind.outputs, kind.decisions, kind.compared)
    # Eager attention: the fused one exports as a longer graph of the same function.
    load = partial(checkpoint.load_task_model, kind.architecture, attention="eager", dropout=0.0)
    metrics, patterns = {}, {}
    for variant, folder, path in (("dense", dense_folder, dense_onnx), ("sparse", sparse_folder, sparse_onnx)):
        model = load(folder).eval()
        # The dense model's as well: its matrices are compared with the others by name.
        linears = masks.prunable(model, checkpoint.load_pruned(sparse_folder, model))
        metrics[variant] = export_float(model, linears, path, texts, relative_error=export.fp32_tolerance)
        patterns[variant] = provenance.pattern(linear.weight.detach().numpy() for linear in linears.values())

    model = load(quantized_folder).eval()
    linears = masks.prunable(model, checkpoint.load_pruned(sparse_folder, model))
    patterns["int8"] = provenance.pattern(linear.weight.detach().numpy() for linear in linears.values())
    quantization.load(model, quantized_folder)
    metrics["int8"] = export_int8(
        model,
        int8_onnx,
        texts,
        quantize_embeddings={"int8": embeddings.quantize, "fp32": embeddings.keep}[export.embeddings],
        relative_error=export.int8_tolerance,
        same_decision=export.same_decision_ratio,
    )

    files = {"dense": dense_onnx, "sparse": sparse_onnx, "int8": int8_onnx}
    scores = {"dense": dense_scores, "sparse": sparse_scores, "int8": quantized_scores}
    for variant, path in files.items():
        value = json.loads(scores[variant].read_text())["validation_score"]
        about = {
            "task": item,
            "variant": variant,
            "kind": json.loads((splits / kinds.FILE).read_text()),
            "columns": {"text": prepare_task.text, "pair": prepare_task.pair},
            "max_tokens": getattr(kind, "max_tokens", prepare_task.max_tokens),
            "score": {"metric": kind.metric, "split": "validation", "value": value},
            "sparsity": inspect.sparsity(path)["sparsity"],
            "pattern": patterns[variant],
            "bits": 8 if variant == "int8" else 32,
            "deps": dict(origin.deps),
            "params": origin.params,
        }
        provenance.write(path, about, _text(dense_folder / "tokenizer.json"))
    return metrics


def _text(file: Path) -> str | None:
    return file.read_text() if file.exists() else None  # a tokenizer in Python alone has no such file


if __name__ == "__main__":
    main(run)
