"""Print what the paper's runs would take, for docs/scale.md: hours, bytes, and the bottleneck of each.

Work and sizes are those of `pruneonce plan`. Speeds are named below; on the page it says which of them were measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.plan import planned
from pipeline.plan.costs import Rate

HOUR, GB = 3600.0, 1e9
PROFILES = {"BERT-Base": "bert-base-90", "BERT-Large": "bert-large-90"}
SHARED = ("prepare_teacher", "sparsify")
GRADIENT_BYTES = 4  # of a parameter: DDP sums fp32 gradients
STATE_BYTES = 12  # of a parameter in a checkpoint: weight and Adam's two moments, fp32


@dataclass(frozen=True)
class Machines:
    """Machines that share the work. tflops: that one device sustains. link: bytes a second between two nodes, each way."""

    name: str
    nodes: int
    devices: int  # of a node
    tflops: float
    link: float

    @property
    def all(self) -> int:
        return self.nodes * self.devices


ONE_NODE = Machines("8 GPUs, one node", 1, 8, 100.0, 300 * GB)  # NVLink
FOUR_NODES = Machines("32 GPUs, 4 nodes, 200 Gbit/s", 4, 8, 100.0, 25 * GB)
FOUR_SLOW = Machines("32 GPUs, 4 nodes, 25 Gbit/s", 4, 8, 100.0, 3.125 * GB)
ONE_CPU = Machines("one CPU worker, 2 cores", 1, 1, 0.286, 1.25 * GB)
MACHINES = (ONE_NODE, FOUR_NODES, FOUR_SLOW, ONE_CPU)


def facts(profile: str) -> dict[str, Any]:
    return planned.as_json(planned.plan(profile, Rate(1, 1.0, None)))


def step_seconds(work: dict[str, Any], parameters: int, machines: Machines) -> tuple[float, float]:
    """Seconds of one optimizer step: of the products, and of summing gradients in a ring over all devices.

    A ring moves 2 (n - 1) / n times the gradients over the slowest link. DDP hides part of that behind the backward pass:
    the larger of the two numbers is a lower bound of a step, their sum an upper bound.
    """
    products = work["flops"] / work["steps"] / (machines.tflops * 1e12 * machines.all)
    ring = 2 * (machines.all - 1) / machines.all * GRADIENT_BYTES * parameters / machines.link
    return products, ring if machines.all > 1 else 0.0


def hours(work: dict[str, Any], parameters: int, machines: Machines) -> tuple[float, float]:
    """Lower and upper bound of a stage's training in hours."""
    products, ring = step_seconds(work, parameters, machines)
    return max(products, ring) * work["steps"] / HOUR, (products + ring) * work["steps"] / HOUR


def shared_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [work for work in found["training"] if work["stage"] in SHARED]


def branches(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Task -> the stages that train, of its branch."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for work in found["training"]:
        task = work["stage"].partition("@")[2]
        if task:
            tasks.setdefault(task, []).append(work)
    return tasks


def hour_lines() -> Iterator[str]:
    """A table: the stages that all tasks share, the longest branch, all branches after one another."""
    yield "| model | machines | teacher and pruning, hours | longest branch | all branches | bottleneck of pruning |"
    yield "|---|---|---|---|---|---|"
    for model, profile in PROFILES.items():
        found = facts(profile)
        size = found["model"]["parameters"]
        for machines in MACHINES:
            total = [sum(bound) for bound in zip(*(hours(w, size, machines) for w in shared_rows(found)), strict=True)]
            each = {task: sum(hours(w, size, machines)[1] for w in works) for task, works in branches(found).items()}
            products, ring = step_seconds(shared_rows(found)[-1], size, machines)
            slow = "the network" if ring > products else "the products"
            task = max(each, key=lambda name: each[name])
            limit = f"{slow}: {1000 * products:,.0f} ms a step, network {1000 * ring:,.0f} ms"
            branch = f"{task}, {number(each[task])} | {number(sum(each.values()))}"
            yield f"| {model} | {machines.name} | {span(*total)} | {branch} | {limit} |"


def span(low: float, high: float) -> str:
    return number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"


def number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def byte_lines() -> Iterator[str]:
    """A table: what a worker of one task reads and gives back, and what the cache keeps."""
    yield "| model | a branch reads | and gives back | in the cache for a task | shared | checkpoint |"
    yield "|---|---|---|---|---|---|"
    for model, profile in PROFILES.items():
        found = facts(profile)
        file, size = found["file_bytes"], found["model"]["parameters"]
        reads = 2 * file["checkpoint"]  # the dense and the sparse language model
        models = 3 * file["checkpoint"]  # of teach_task, finetune, quantize
        onnx = 2 * file["ONNX fp32"] + file["ONNX int8"]
        shared = found["corpus_tokens"] * 4 + 3 * file["checkpoint"]  # int32 blocks; base, teacher, sparse
        checkpoint = STATE_BYTES * size + found["model"]["prunable"]
        cells = [reads, models + onnx, models + onnx, shared, checkpoint]
        yield f"| {model} | {' | '.join(f'{cell / GB:,.1f} GB' for cell in cells)} |"


def growth_lines() -> Iterator[str]:
    """A table: hours on 8 GPUs by tasks and sparsities: tasks of the mean length one by one, or all at once."""
    yield "| model | tasks | sparsities | one node of 8 GPUs | a node for each task and sparsity | of it pruning |"
    yield "|---|---|---|---|---|---|"
    for model, profile in PROFILES.items():
        found = facts(profile)
        size = found["model"]["parameters"]
        teacher, pruning = (hours(work, size, ONE_NODE)[1] for work in shared_rows(found))
        each = [sum(hours(w, size, ONE_NODE)[1] for w in works) for works in branches(found).values()]
        mean = sum(each) / len(each)
        for tasks, sparsities in ((1, 1), (5, 1), (20, 1), (5, 3), (20, 3)):
            alone = teacher + sparsities * (pruning + tasks * mean)
            spread = teacher + pruning + max(each)
            share = sparsities * pruning / alone
            yield f"| {model} | {tasks} | {sparsities} | {number(alone)} hours | {number(spread)} hours | {share:.0%} |"


PARTS = {"hours": hour_lines, "bytes": byte_lines, "growth": growth_lines}

if __name__ == "__main__":
    import sys

    print(*PARTS[sys.argv[1]](), sep="\n")
