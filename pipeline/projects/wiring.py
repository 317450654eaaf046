"""dvc.yaml of a project of `pruneonce init`, made from the one of the code: the same stages, paths and outs.

The commands are `python -P -m pruneonce.stage ...`. Without -P, a file of the folder, such as a json.py, would be taken for
a module. The code is no dep, because it is not in the folder: each stage depends on the version of pruneonce that
params.yaml names. The file is text, edited by lines, so that it reads like the original.
"""

import hashlib
import re
from pathlib import Path

from pruneonce import projects
from pruneonce.errors import PipelineError

FILE = Path("dvc.yaml")
MARK = re.compile(r"# Written by pruneonce (\S+) \((\w+)\)")
HEAD = "# Every path and every arrow between stages; a new task is a block in params.yaml."
CODE = re.compile(r"^ +- (?:stages|pruneonce|pipeline|kernels|flows)(?:/\S*)?\n", re.MULTILINE)  # a dep that is code
NO_DEPS = re.compile(r"^ +deps:\n(?= +params:\n)", re.MULTILINE)
PARAMS = re.compile(r"^( +)params:\n", re.MULTILINE)
SPARSE = "sparse-model"  # the source of a checkpoint that enters in place of `sparsify`
IMPORT = f"""\
  import_sparse:
    cmd: >-
      python -m stages.import_sparse
      --source data/raw/{SPARSE}
      --base-folder data/raw/${{common.model}}
      --model-folder data/sparsify/model
      --metrics data/metrics/import_sparse.json
    deps:
      - data/raw/{SPARSE}
      - data/raw/${{common.model}}
    params:
      - common
    outs:
      - data/sparsify/model
    metrics:
      - data/metrics/import_sparse.json:
          cache: false

"""


def text(*, imports: bool) -> str:
    """The whole file, as the installed version writes it. imports: a sparse checkpoint stands in place of `sparsify`."""
    body = (projects.root() / FILE).read_text(encoding="utf-8")
    body = body[body.index("stages:\n") :]
    if imports:
        body = _importing(body)
    body = body.replace("python -m stages.", "python -P -m pruneonce.stage ")
    body = NO_DEPS.sub("", CODE.sub("", body))
    body = PARAMS.sub(r"\1params:\n\1  - pruneonce\n", body)
    body = f"{HEAD}\n{body}"
    return f"# Written by pruneonce {projects.installed()} ({_digest(body)})\n{body}"


def _importing(body: str) -> str:
    start = body.index("\n  sparsify:\n") + 1
    end = body.index("\n\n", start) + 2
    body = body[:start] + IMPORT + body[end:]
    further = re.search(r"^# [^\n]*\nplots:\n|^plots:\n", body, re.MULTILINE)  # curves of `sparsify` alone
    return body[: further.start()].rstrip("\n") + "\n" if further else body


def refresh() -> str | None:
    """Write dvc.yaml anew if another version wrote it. Returns a line that says so, None if there was nothing to do.

    Raises PipelineError if that would lose edits.
    """
    before = FILE.read_text(encoding="utf-8")
    first, _, body = before.partition("\n")
    mark = MARK.fullmatch(first)
    if mark is None or mark[1] == projects.installed():
        return None
    if _digest(body) != mark[2]:
        raise PipelineError(
            f"expected dvc.yaml as pruneonce {mark[1]} wrote it, found edits, which {projects.installed()} would overwrite. "
            "Keep them in a commit, delete the first line of the file, and take over by hand what the new version changed; "
            "or drop them: git checkout dvc.yaml."
        )
    part = FILE.with_suffix(".part")
    part.write_text(text(imports="\n  import_sparse:\n" in before), encoding="utf-8")
    part.replace(FILE)
    return f"dvc.yaml is now that of pruneonce {projects.installed()}, before it was that of {mark[1]}."


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]
