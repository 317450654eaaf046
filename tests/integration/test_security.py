"""No pickle, no code of others, no shell: what the source calls, and what Python reports while files are loaded."""

import ast
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings.models.root import Settings

from pruneonce.errors import ModelError, PruneOnceError
from pruneonce.models import checkpoint
from pruneonce.sources import tables
from tests.conftest import ROOT
from tests.e2e.conftest import open_to_others

FOLDERS = ("pruneonce", "pipeline", "stages", "flows", "study", "kernels", "benchmarks", "docs")
MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "telnetlib", "xmlrpc"}
CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("tempfile.mktemp", "ssl._create_unverified_context", "shutil.unpack_archive", "runpy.run_path"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "mlflow.pytorch.load_model", "mlflow.sklearn.load_model"),
    *("accelerate.load_checkpoint_in_model", "datasets.load_from_disk"),
}
METHODS = {"load_state", "save_state", "to_pickle", "read_pickle", "extractall"}  # of any object
KEYWORDS = {  # name -> the value that it must not have; None: any value but False
    "shell": True,
    "allow_pickle": None,
    "trust_remote_code": None,
    "verify": False,
    "weights_only": False,
    "use_safetensors": False,
}
OPEN = "0.0.0.0"


def faults(source: str) -> Iterator[str]:
    """What a program does of all that. Names are followed through its imports."""
    tree, names = ast.parse(source), dict[str, str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            begin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = (
                    begin + alias.name if begin or alias.asname else alias.name.partition(".")[0]
                )
                yield from (f"import {m}" for m in [(begin + alias.name).partition(".")[0]] if m in MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _called(node, names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OPEN in node.value:
            yield OPEN


def _called(call: ast.Call, names: dict[str, str]) -> Iterator[str]:
    first, *rest = ast.unparse(call.func).split(".")
    called = ".".join([names.get(first, first), *rest])
    if called in CALLS:
        yield called
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
        yield f".{call.func.attr}"
    for word in call.keywords:
        bad = KEYWORDS.get(word.arg or "", ...)
        value = word.value.value if isinstance(word.value, ast.Constant) else ...
        if (bad is None and value is not False) or (bad is not ... and bad is not None and value is bad):
            yield f"{word.arg}={ast.unparse(word.value)}"
        if called == "ruamel.yaml.YAML" and word.arg == "typ" and value not in ("safe", "rt"):
            yield f"YAML(typ={ast.unparse(word.value)})"
        if word.arg in ("data_files", "builder_script") and called == "datasets.load_dataset":
            yield f"{word.arg}={ast.unparse(word.value)}"


def test_no_program_of_ours_unpickles_runs_others_code_or_calls_a_shell():
    files = [ROOT / "setup.py", *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py")))]
    found = [f"{path.relative_to(ROOT)}: {fault}" for path in files for fault in faults(path.read_text())]
    print(f"{len(files)} files scanned")
    assert found == []
    assert len(files) > 250
    assert {path.relative_to(ROOT).parts[0] for path in files} == {"setup.py", *FOLDERS}


EXAMPLES = {
    "import pickle": "import pickle",
    "import dill": "import dill as safe",
    "import joblib": "from joblib import load",
    "import marshal": "def f():\n    import marshal",
    "import yaml": "from yaml import safe_load",
    "import cloudpickle": "import cloudpickle.compat",
    "torch.load": "import torch as t\nt.load('x')",
    "torch.save": "from torch import save as keep\nkeep({}, 'x')",
    "torch.hub.load": "import torch.hub\ntorch.hub.load('x', 'y')",
    "allow_pickle=True": "import numpy as np\nnp.load('x', allow_pickle=True)",
    "allow_pickle=given": "np.load('x', allow_pickle=given)",
    "eval": "eval('1')",
    "exec": "exec('1')",
    "compile": "compile('1', '', 'exec')",
    "trust_remote_code=True": "AutoModel.from_pretrained('x', trust_remote_code=True)",
    "trust_remote_code=trust": "AutoModel.from_pretrained('x', trust_remote_code=trust)",
    "use_safetensors=False": "AutoModel.from_pretrained('x', use_safetensors=False)",
    "weights_only=False": "load('x', weights_only=False)",
    "shell=True": "import subprocess\nsubprocess.run('ls', shell=True)",
    "os.system": "import os\nos.system('ls')",
    "os.popen": "from os import popen\npopen('ls')",
    "tempfile.mktemp": "from tempfile import mktemp\nmktemp()",
    "YAML(typ='unsafe')": "from ruamel.yaml import YAML\nYAML(typ='unsafe')",
    "verify=False": "httpx.get('x', verify=False)",
    ".load_state": "accelerator.load_state('x')",
    ".extractall": "archive.extractall('x')",
    "0.0.0.0": "serve(host='0.0.0.0')",
}


@pytest.mark.parametrize("fault", EXAMPLES)
def test_the_scan_can_fail(fault):
    assert list(faults(EXAMPLES[fault])) == [fault]


def test_the_scan_lets_pass_what_is_safe():
    safe = "import numpy as np\nnp.load('x', allow_pickle=False)\nmodel.eval()\nf(trust_remote_code=False, shell=False)\n"
    assert list(faults(safe + "from ruamel.yaml import YAML\nYAML(typ='safe')\nre.compile('x')")) == []


def test_nothing_is_unpickled_from_the_sources_to_the_report(twice):
    """By our code or a library, in the process of another hash seed, which runs every stage and ends with a pickle."""
    assert json.loads((twice[1].folder / "unpickled.json").read_text()) == ["__main__.Command"]


HOSTILE = b"cbuiltins\nprint\n(S'unpickled'\ntR."  # of protocol 0: it prints when it is loaded


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tf_model.h5", "flax_model.msgpack"])
def test_a_folder_with_pickled_weights_is_refused_in_one_line(tmp_path, masked_lm, tokenizer, capfd, name):
    """Beside it lies all else that a model's folder has."""
    checkpoint.save(masked_lm, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(HOSTILE)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"x": name}}))
    with pytest.raises(ModelError, match=r"expected the weights of a bert in .*, found none that loads: ") as caught:
        checkpoint.load_masked_lm(tmp_path, attention="eager")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capfd.readouterr().out


def test_code_in_a_models_folder_does_not_run(tmp_path, masked_lm, tokenizer, capfd):
    """A configuration and a tokenizer that name it; the model of the same name that the library has is taken."""
    checkpoint.save(masked_lm, tokenizer, tmp_path)
    (tmp_path / "hostile.py").write_text("print('code of others')\nclass Hostile: ...\n")
    for file, key in {"config.json": "AutoModelForMaskedLM", "tokenizer_config.json": "AutoTokenizer"}.items():
        said = json.loads((tmp_path / file).read_text())
        named = ["hostile.Hostile", "hostile.Hostile"] if key == "AutoTokenizer" else "hostile.Hostile"
        (tmp_path / file).write_text(json.dumps({**said, "auto_map": {key: named, "AutoConfig": "hostile.Hostile"}}))
    checkpoint.load_masked_lm(tmp_path, attention="eager")
    checkpoint.load_tokenizer(tmp_path)
    assert "code of others" not in capfd.readouterr().out


@pytest.mark.parametrize("name", ["data.pkl", "data.pickle", "data.pt", "data.npy", "data.joblib"])
def test_a_pickled_table_is_no_source(tmp_path, capfd, name):
    (tmp_path / name).write_bytes(HOSTILE)
    with pytest.raises(PruneOnceError, match=r"^expected [^\n]*$"):
        list(tables.read(tmp_path / name, ["text"]))
    assert "unpickled" not in capfd.readouterr().out


SERVERS = ("prefect server start", "mlflow server", "mlflow ui", "mlflow models serve", "http.server")
LOCAL = ("--host 127.0.0.1", "--host localhost", "-h 127.0.0.1")
WARNING = "inside your network"


def test_servers_of_the_pages_are_on_loopback_or_the_page_warns():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [(page, line) for page in pages for block in blocks_of(page) for line in block.splitlines()]
    started = [(page, line) for page, line in lines if any(server in line for server in SERVERS)]
    assert len(started) >= 5
    told = [(page, line) for page, line in started if re.search(r"(--host|-h) ", line) and not any(x in line for x in LOCAL)]
    assert [page.name for page, _ in told if WARNING not in " ".join(page.read_text().split())] == []
    assert len(started) > len(told) > 0
    assert OPEN not in (ROOT / "prefect.yaml").read_text() + (ROOT / "Makefile").read_text()


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```(?:bash|sh)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def test_servers_listen_on_loopback_unless_told_otherwise():
    """Those that the pages start without --host, and Prefect's own for the length of a run. tests/e2e looks at real ones."""
    assert Settings().server.api.host == "127.0.0.1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, on type hints of its own
        from mlflow import cli
        from mlflow.models import cli as models_cli
    for command in (cli.server, models_cli.serve):
        (host,) = [option for option in command.params if option.name == "host"]
        assert host.default == "127.0.0.1"


def test_a_process_that_others_can_reach_is_seen():
    for host, seen in {"127.0.0.1": [], "0.0.0.0": ["0.0.0.0"]}.items():
        with socket.socket() as server:
            server.bind((host, 0))
            server.listen()
            assert open_to_others(os.getpid()) == seen
