"""Every variant of a task as ONNX, and the proof that each file is the model that was trained.

reads   dense, sparse, quantized   task models                   teach_task, finetune, quantize
        splits   real text for parity                            prepare_task
writes  dense_onnx, sparse_onnx, int8_onnx   one file each, dynamic batch and length; int8 as QDQ
"""

from functools import partial

from pipeline.params.sections import Common, Export
from pipeline.stage import Dep, Item, Log, Metrics, Out, main
from pruneonce import engine, quantization
from pruneonce.batch import inputs
from pruneonce.deployment import embeddings, inspect
from pruneonce.deployment import parity as parity_of
from pruneonce.deployment.export import name_weights, to_onnx
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks
from pruneonce.tasks import kinds
from pruneonce.tasks.batches import evaluation_batches
from pruneonce.tasks.splits import read_split


def run(
    item: Item,
    dense: Dep,
    sparse: Dep,
    quantized: Dep,
    splits: Dep,
    dense_onnx: Out,
    sparse_onnx: Out,
    int8_onnx: Out,
    *,
    common: Common,
    export: Export,
    log: Log,
) -> Metrics:
    p = export
    engine.accelerator(common)
    kind, tokenizer = kinds.load(splits), checkpoint.load_tokenizer(dense)
    validation = read_split(splits / "validation.arrow")
    texts = validation.select(range(min(p.parity_texts, len(validation))))
    batches = list(evaluation_batches(texts, kind, tokenizer))
    pruned = checkpoint.load_pruned(sparse)  # by these names the dense matrices are compared with the others
    metrics: dict[str, object] = {}

    for variant, source, path in (
        ("dense", dense, dense_onnx),
        ("sparse", sparse, sparse_onnx),
        ("int8", quantized, int8_onnx),
    ):
        # Eager attention: the fused one exports as a longer graph, and the two are the same function.
        model = checkpoint.load_task_model(kind.architecture, source, attention="eager", dropout=0.0).eval()
        pattern = {name: zero.numpy() for name, zero in masks.zeros(model, pruned).items()}
        if variant == "int8":
            fake_quant = partial(quantization.FakeQuantLinear, weight_bits=model.config.weight_bits)
            masks.mask_linears(model, pruned, fake_quant)
            masks.lock(model)
            quantization.load_ranges(model, checkpoint.load_ranges(source))
            weights = {name: m.weight.numpy().T for name, m in quantization.to_int8(model).items()}
        else:
            weights = {name: m.weight.detach().numpy() for name, m in masks.prunable(model, pruned).items()}
        to_onnx(model, path, reads=list(inputs(batches[0])), outputs=kind.outputs)
        name_weights(path, weights)
        rounded = embeddings.quantize(path) if variant == "int8" and p.embeddings == "int8" else {}
        trained = parity_of.logits(model, batches, kind.outputs)
        tolerance = p.int8_tolerance if variant == "int8" else p.fp32_tolerance
        agreement = p.same_decision_ratio if variant == "int8" else 1.0
        sums: dict[str, dict[str, str]] = {"parity": {}}
        if variant == "int8" and not inspect.shares_weights(path):
            sums["parity_of_exact_sums"] = parity_of.EXACT_SUMS
        parity = partial(parity_of.parity, trained, path, batches, decide=kind.decisions)
        found = {name: parity(entries=entries) for name, entries in sums.items()}
        for difference in found.values():
            parity_of.check_parity(difference, max_difference=tolerance, same_decision=agreement)
        inspect.check_zeros(path, pattern)
        graph = inspect.Audit(path)
        kernels = graph.kernels(weights)
        if variant == "int8":
            inspect.check_integer(kernels)
        metrics[variant] = {
            **found,
            "operators": graph.operators(),
            "kernels": {kernel: list(kernels.values()).count(kernel) for kernel in sorted(set(kernels.values()))},
            "float_products": graph.float_products(),
            "embedding_errors": rounded,
        }
    return metrics


if __name__ == "__main__":
    main(run)
