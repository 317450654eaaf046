"""The names of the tasks. `prepare_corpus` depends on them, and so not on the numbers with which a task is trained.

reads   nothing
writes  names   JSON list, sorted
"""

import json

from pipeline.params.sections import TaskNames
from pipeline.stage import Metrics, Out, main


def run(names: Out, *, tasks: TaskNames) -> Metrics:
    names.write_text(json.dumps(sorted(tasks.names)) + "\n")
    return {"tasks": len(tasks.names)}


if __name__ == "__main__":
    main(run)
