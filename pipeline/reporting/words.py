"""The sentences of the page and of the cards: what the models are for, what does not hold, how to make them again."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.reporting.facts import Facts, TaskFacts

STAGES = {
    "prepare_teacher": "the base model reads the corpus, as a masked language model",
    "sparsify": "student pruning: a student loses its weights and learns from its dense self",
    "teach_task": "the dense model learns the task: the teacher, and the baseline",
    "finetune": "the sparse model learns the task from the teacher; its zeros stay",
    "quantize": "the same with weights and activations rounded to 8 bits",
}
COMMANDS = """\
{install}
dvc pull          # what was computed, from your remote; or leave it out, and compute
{run:<17} # every stage whose inputs changed, in order
pruneonce trace data/export/{task}/int8.onnx
pruneonce pack data/export/{task}/int8.onnx {task}.packed"""
INTENDED = (
    "A model answers one task, on texts like those of its test split: the same language, source and length. "
    "It is made to be small and fast on a CPU. Before you use it for anything else, measure it there."
)


def lead(facts: Facts) -> str:
    """What the page is about, in two sentences."""
    count = sum(len(task.rows) for task in facts.tasks)
    tasks = f"{len(facts.tasks)} task{'s' if len(facts.tasks) > 1 else ''}"
    failed = sum(len(task.failed) for task in facts.tasks)
    gates = f"{failed} {'gate fails' if failed == 1 else 'gates fail'}" if failed else "All gates hold"
    share = f"{100 * facts.tasks[0].ships['sparsity']:.0f} % of the prunable weights"
    return (
        f"{count} models of {tasks}, all made of {facts.base.id}. In the compressed ones {share} are zero, the same for "
        f"every task. {gates}."
    )


def pruning(facts: Facts) -> str:
    """How the zeros came about, as a phrase."""
    if facts.imported:
        return "none here: a sparse checkpoint was imported, and its zeros stay"
    p = facts.sparsify
    where = "of each prunable matrix" if p.scope == "uniform" else "of all prunable matrices together"
    criterion = p.criterion.replace("_", " ")
    if p.first_criterion != p.criterion:
        criterion += f" (the first jump, to {100 * p.initial_sparsity:g} %: {p.first_criterion.replace('_', ' ')})"
    return f"{100 * p.sparsity:g} % {where}, pattern {p.pattern}, criterion {criterion}, {p.steps} steps"


def commands(facts: Facts, task: str) -> str:
    """What to type in the project's folder, in a clone or in a project of `pruneonce init`."""
    if facts.version:
        install, run = f'pip install "pruneonce[pipeline]=={facts.version}"', "pruneonce run"
    else:
        install, run = "make install      # the exact versions of requirements.lock", "dvc repro"
    return COMMANDS.format(install=install, run=run, task=task)


def machines(facts: Facts) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Each machine that times were measured on, and the tasks measured there."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for task in facts.tasks:
        for machine, names in found:
            if machine == task.machine:
                names.append(task.name)
                break
        else:
            found.append((task.machine, [task.name]))
    return found


def limits(facts: Facts, tasks: Iterable[TaskFacts]) -> list[str]:
    """What a reader must not take from the numbers of these tasks."""
    tasks = list(tasks)
    few = [task for task in tasks if task.rows[0]["rows"] < 1000]
    encoders = any(task.kind == "embedding" for task in tasks)
    cut = sorted(
        {found for task in tasks if task.kind != "embedding" and (found := task.recipes["prepare_task"].get("max_tokens"))}
    )
    inside = [task.name for task in tasks if _inside(task)]
    said = [
        f"One seed ({facts.common.seed}). Another one gives other weights, and scores some tenths of a point away.",
        "The interval of a score is about the rows of the test split, and not about seeds, or about other data.",
    ]
    if few:
        names = ", ".join(f"{task.name} ({task.rows[0]['rows']:,} rows)" for task in few)
        said.append(f"A short test split has a wide interval: {names}.")
    if inside:
        said.append(
            f"A difference between int8 and dense inside the interval of the score may be noise: {', '.join(inside)}."
        )
    said.append(
        "Times hold for the processor, the threads and the length of text named here. Another processor changes the ratios "
        "too: without VNNI or AMX int8 gains less, and without its sparse kernels a processor gains nothing from zeros."
    )
    if cut:
        said.append(f"A text is cut after {' or '.join(map(str, cut))} tokens; what comes later is not read.")
    if encoders:
        said.append("A sentence encoder cuts a text where its dense model does; `pruneonce inspect` says where.")
    said += [
        "Nothing here measures bias, safety, calibration of the probabilities, or texts written to mislead.",
        "No licence is given. The base model and the data have licences of their own, which bind what you may do.",
    ]
    return said


def _inside(task: TaskFacts) -> bool:
    dense = next(row for row in task.rows if row["variant"] == "dense")
    return dense["score_low"] <= task.ships["score"] <= dense["score_high"]
