"""The card of a task's int8 model, in the format of the Hub: front matter, then text."""

from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.report import VARIANTS, cells, table
from pipeline.reporting import words
from pipeline.reporting.facts import Facts, TaskFacts

# As the Hub names the kinds of tasks: the name in pipeline_tag, and what it is called.
HUB = {
    "classification": ("text-classification", "Text Classification"),
    "regression": ("text-classification", "Text Regression"),
    "multi_label": ("text-classification", "Multi-label Classification"),
    "token_classification": ("token-classification", "Token Classification"),
    "question_answering": ("question-answering", "Question Answering"),
    "embedding": ("sentence-similarity", "Sentence Similarity"),
}
METRIC_TYPES = {  # of those that the Hub has under another name
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "entity_f1": "f1",
    "token_accuracy": "accuracy",
    "mcc": "matthews_correlation",
}
LICENSE = "license: unknown  # FILL IN: yours to choose; the licences of the base model and of the data bind you"


def front_matter(facts: Facts, task: TaskFacts) -> dict[str, Any]:
    """What the Hub reads, but the licence."""
    row, (tag, kind) = task.ships, HUB[task.kind]
    results: list[dict[str, Any]] = [
        {
            "task": {"type": tag, "name": kind},
            "dataset": {"type": task.source.id, "name": task.name, "split": split},
            "metrics": [
                {"type": METRIC_TYPES.get(name, name), "name": name, "value": value} for name, value in found.items()
            ],
        }
        for split, found in [("test", row["metrics"]), *((n, {row["metric"]: v}) for n, v in row["more_tests"].items())]
    ]
    types = dict.fromkeys(metric["type"] for result in results for metric in result["metrics"])
    return {
        "library_name": "onnx",
        "pipeline_tag": tag,
        "base_model": facts.base.id,
        "base_model_relation": "quantized",
        "datasets": [task.source.id],
        "metrics": list(types),
        "tags": ["pruneonce", "onnx", "sparse", "int8"],
        "model-index": [{"name": f"{facts.base.name}-{task.name}-int8", "results": results}],
    }


def render(facts: Facts, task: TaskFacts) -> str:
    """The card as text. Its table has the variants as the report's table has them."""
    out, yaml = StringIO(), YAML()
    yaml.width = 4096
    front = CommentedMap(front_matter(facts, task))
    for key, source in (("base_model", facts.base), ("datasets", task.source)):
        if not source.published:
            front.yaml_add_eol_comment("FILL IN: its name on the Hub, if it has one; this is its name elsewhere", key)
    yaml.dump(front, out)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    rows = [{k: v for k, v in cells(row).items() if k not in ("task", "metric")} for row in task.rows]
    return environment.get_template("card.md").render(
        license=LICENSE,
        front=out.getvalue().rstrip(),
        facts=facts,
        task=task,
        row=task.ships,
        names=VARIANTS,
        scores="\n".join(table(rows[0], [row.values() for row in rows])),
        intended=words.INTENDED,
        pruning=words.pruning(facts),
        limits=words.limits(facts, [task]),
        commands=words.commands(facts, task.name),
    )
