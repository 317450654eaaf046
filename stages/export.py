"""Every variant of a task as ONNX, and the check that each file computes what its model computes.

reads   dense_folder, sparse_folder, quantized_folder   task models   teach_task, finetune, quantize
        splits   real text for parity                                 prepare_task
writes  dense_onnx, sparse_onnx, int8_onnx   one file each, dynamic batch and length; int8 as QDQ
"""

from functools import partial

from pipeline.params.sections import Common, Export
from pipeline.stage import Dep, Item, Metrics, Out, main
from pruneonce import engine, quantization
from pruneonce.deployment import embeddings
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
    splits: Dep,
    dense_onnx: Out,
    sparse_onnx: Out,
    int8_onnx: Out,
    *,
    common: Common,
    export: Export,
) -> Metrics:
    engine.accelerator(common)  # sets the seeds and the threads; the models are exported on the CPU
    kind, tokenizer = kinds.load(splits), checkpoint.load_tokenizer(dense_folder)
    validation = read_split(splits / "validation.arrow")
    rows = validation.select(range(min(export.parity_texts, len(validation))))
    texts = Texts(list(evaluation_batches(rows, kind, tokenizer)), kind.outputs, kind.decisions)
    pruned = checkpoint.load_pruned(sparse_folder)  # the dense model too: its matrices are compared with the others by name
    # Eager attention: the fused one exports as a longer graph of the same function.
    load = partial(checkpoint.load_task_model, kind.architecture, attention="eager", dropout=0.0)
    metrics = {}
    for variant, folder, path in (("dense", dense_folder, dense_onnx), ("sparse", sparse_folder, sparse_onnx)):
        model = load(folder).eval()
        linears = masks.prunable(model, pruned)
        metrics[variant] = export_float(model, linears, path, texts, max_difference=export.fp32_tolerance)

    model = load(quantized_folder).eval()
    quantization.load(model, quantized_folder)
    metrics["int8"] = export_int8(
        model,
        int8_onnx,
        texts,
        quantize_embeddings={"int8": embeddings.quantize, "fp32": embeddings.keep}[export.embeddings],
        max_difference=export.int8_tolerance,
        same_decision=export.same_decision_ratio,
    )
    return metrics


if __name__ == "__main__":
    main(run)
