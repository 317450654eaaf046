"""The latency of every int8 file of the study of patterns, by every execution, all of them in turns.

Its metrics are a file of their own, because they differ between runs.

reads   int8       int8 files by cell                 patterns_export, patterns_more_export
        splits     text of one task, for all files    prepare_task
        tokenizer_folder   a model, for its tokenizer prepare_teacher
"""

from pipeline.params.patterns import Patterns
from pipeline.params.sections import Evaluate
from pipeline.stage import Dep, Metrics, main
from pruneonce.deployment import execution, measurements
from pruneonce.models import checkpoint
from pruneonce.tasks.batches import latency_batch
from pruneonce.tasks.splits import read_split

EXECUTIONS = ("sparse", "stock")  # in the order of the file that they are written to


def run(int8: Dep, splits: Dep, tokenizer_folder: Dep, *, evaluate: Evaluate, patterns: Patterns) -> Metrics:
    p, cells = evaluate, patterns.cells
    sessions = {
        f"{name} {cell}": execution.session(int8 / f"{cell}.onnx", threads=p.threads, execution=name)
        for name in EXECUTIONS
        for cell in cells
    }
    text = latency_batch(
        read_split(splits / "test.arrow"), checkpoint.load_tokenizer(tokenizer_folder), tokens=p.latency_tokens
    )
    calls = measurements.latencies_ms(sessions, text, warmup_runs=p.warmup_runs, runs=p.latency_runs)
    settings = {"tokens": p.latency_tokens, "threads": p.threads, "runs": p.latency_runs}
    return {"settings": settings, **{name: {cell: calls[f"{name} {cell}"] for cell in cells} for name in EXECUTIONS}}


if __name__ == "__main__":
    main(run)
