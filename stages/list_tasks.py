"""The names of the tasks, for `prepare_corpus`: it runs again when a task comes or goes, not when a number of one changes.

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
