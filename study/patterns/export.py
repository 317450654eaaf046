"""The int8 model of a cell as an ONNX file, checked as `export` does, and its test score in ONNX Runtime.

reads   model_folder  quantized model of the first seed      patterns_cell
        splits        validation for parity, and test        prepare_task, patterns_prepare_task
writes  int8_onnx     as QDQ, dynamic batch and length
"""

from pipeline.params.sections import Common, Evaluate, Export
from pipeline.stage import Dep, Item, Metrics, Out, main
from pruneonce import engine, quantization
from pruneonce.deployment import embeddings, measurements, packing, runtime
from pruneonce.deployment.exact_sums import exact
from pruneonce.deployment.parity import Texts
from pruneonce.deployment.variants import export_int8
from pruneonce.models import checkpoint
from pruneonce.tasks import kinds, scores
from pruneonce.tasks.batches import evaluation_batches, in_split_order
from pruneonce.tasks.splits import read_split


def run(
    item: Item,
    model_folder: Dep,
    splits: Dep,
    int8_onnx: Out,
    *,
    common: Common,
    export: Export,
    evaluate: Evaluate,
) -> Metrics:
    engine.accelerator(common)  # sets the seeds and the threads; the model is exported on the CPU
    kind, tokenizer = kinds.load(splits), checkpoint.load_tokenizer(model_folder)
    validation, test = read_split(splits / "validation.arrow"), read_split(splits / "test.arrow")
    rows = validation.select(range(min(export.parity_texts, len(validation))))
    model = checkpoint.load_task_model(kind.architecture, model_folder, attention="eager", dropout=0.0).eval()
    quantization.load(model, model_folder)
    exported = export_int8(
        model,
        int8_onnx,
        Texts(list(evaluation_batches(rows, kind, tokenizer)), kind.outputs, kind.decisions, kind.compared),
        quantize_embeddings={"int8": embeddings.quantize, "fp32": embeddings.keep}[export.embeddings],
        relative_error=export.int8_tolerance,
        same_decision=export.same_decision_ratio,
    )
    batches = evaluation_batches(test, kind, tokenizer, batch_size=evaluate.batch_size)
    answers = measurements.answers(runtime.session(exact(int8_onnx), threads=evaluate.threads), batches, name=int8_onnx.stem)
    total, scorers = kind.scorers(test, in_split_order(answers))
    return {
        "parity": exported["parity"],
        "file_bytes": int8_onnx.stat().st_size,
        "packed_bytes": packing.packed_bytes(int8_onnx),
        **scores.summary(scorers, kind.metric, total, resamples=evaluate.resamples, seed=common.seed),
    }


if __name__ == "__main__":
    main(run)
