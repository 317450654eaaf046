"""What an installation brings: the names that a wheel adds, the packages that each extra names, and that these are enough.

Environments are made of links to the packages that run the tests: those that a wheel's requirements lead to, no others.
"""

import email
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kernels import build
from pruneonce import projects
from tests.conftest import ROOT, copy_project
from tests.integration.test_arrows import FILES, MAY, imports

PAGE = (ROOT / "docs/library.md").read_text()
(SCRIPT,) = re.findall(r"^```python\n# train\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MACHINE = platform.machine()
SHIPPED = f"pruneonce/{projects.SHIPPED.name}"
LIBRARY = build.LIBRARY.relative_to(ROOT).as_posix()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TRACKERS = ("dvc", "prefect", "mlflow")
LOAD = """
import sys
sys.modules["tqdm"] = None  # tokenizers brings it, and `load` does not need it
import numpy, pruneonce
ids = numpy.arange(48).reshape(3, 16)
feeds = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
found = pruneonce.load("int8.packed", threads=1, execution=sys.argv[1]).run(["logits"], feeds)[0]
numpy.save(f"{sys.argv[1]}.npy", found)
print(found.shape)
"""
# Tops of site-packages that more than one distribution writes into, such as google/.
SHARED = {
    top
    for top, count in Counter(
        top for d in metadata.distributions() for top in {file.parts[0] for file in d.files or ()}
    ).items()
    if count > 1
}


def needed(names: Iterable[str]) -> set[str]:
    """The distributions that requirements such as "x[y]>=1; marker" lead to, by name."""
    found: set[str] = set()
    waiting, seen = [Requirement(name) for name in names], set()
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        found.add(canonicalize_name(wanted.name))
        for below in map(Requirement, metadata.requires(wanted.name) or ()):
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                waiting.append(below)
    return found


def named(*lists: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for names in lists for text in names}


@dataclass
class Environment:
    folder: Path

    @property
    def packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def link(self, name: str) -> None:
        """A distribution's folders, or its files where a folder is not its own."""
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            inside = file if file.parts[0] in SHARED else Path(file.parts[0])
            link = self.packages / inside
            if ".." not in inside.parts and "__pycache__" not in inside.parts and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(str(distribution.locate_file(inside))))

    def install(self, *words: object, **variables: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", self.folder, "install", "--quiet", "--no-deps", "--no-index", *words]
        subprocess.run(list(map(str, pip)), env={**os.environ, **variables}, check=True)

    def run(self, program: str, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        line = [str(self.folder / "bin" / program), *map(str, words)]
        return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    return copy_project(tmp_path_factory.mktemp("checkout"))


def package(kind: str, checkout: Path, folder: Path, *, python: Path | str = sys.executable, **variables: str) -> Path:
    """What setuptools makes for `pip wheel` or `python -m build`. kind: wheel or sdist."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    folder.mkdir()
    env = {**os.environ, **variables}
    subprocess.run([str(python), "-c", code, str(folder)], cwd=checkout, env=env, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    return package("wheel", checkout, tmp_path_factory.mktemp("wheel") / "made")


def code_of_a_project(wheel: Path) -> dict[str, bytes]:
    """Name in the wheel -> content, of what a project of `pruneonce init` runs."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.startswith(f"{SHIPPED}/")}


def test_a_wheel_has_the_code_of_a_project(wheel, checkout):
    """Where pruneonce.projects looks for it: what git has of it, byte for byte, and nothing beside it."""
    found = {name.removeprefix(f"{SHIPPED}/"): content for name, content in code_of_a_project(wheel).items()}
    listed = ["git", "ls-files", "stages", "pipeline", "flows", "profiles", "dvc.yaml", "params.yaml", ".gitignore"]
    names = subprocess.run(listed, cwd=checkout, capture_output=True, text=True, check=True).stdout.split()
    assert len(names) >= 60
    assert found == {name: (checkout / name).read_bytes() for name in names}


def kernels(wheel: Path) -> bytes:
    """The library of the kernels. Raises KeyError where a wheel has none."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(LIBRARY)


def requirements(wheel: Path, extra: str) -> list[str]:
    """Of a wheel with this extra, "" for none: what its metadata says."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        said = email.message_from_bytes(archive.read(name))
    every = map(Requirement, said.get_all("Requires-Dist"))
    return [str(one).split(";")[0] for one in every if one.marker is None or one.marker.evaluate({"extra": extra})]


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """extra -> an environment with exactly what the wheel needs with it."""

    def make(extra: str) -> Environment:
        made = Environment(tmp_path_factory.mktemp(extra or "base"))
        venv.create(made.folder, symlinks=True)
        for name in needed(requirements(wheel, extra)) - {"pruneonce"}:
            made.link(name)
        return made

    return make


@pytest.fixture(scope="module")
def base(wheel, environment) -> Environment:
    made = environment("")
    made.install(wheel)
    return made


@pytest.fixture(scope="module")
def train(wheel, environment) -> Environment:
    made = environment("train")
    made.install(wheel)
    return made


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory) -> tuple[Path, str]:
    """(folder, what was printed) after the page's script, and the page's `pruneonce pack`."""
    folder = tmp_path_factory.mktemp("own-project")
    (folder / "train.py").write_text(SCRIPT)
    done = train.run("python", "train.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    (pack,) = re.findall(r"^pruneonce (pack .*)$", PAGE, re.MULTILINE)
    assert train.run("pruneonce", *pack.split(), cwd=folder).returncode == 0
    return folder, done.stdout


def test_a_wheel_adds_one_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    version = PROJECT["version"]
    assert {name.split("/")[0] for name in names} == {"pruneonce", f"pruneonce-{version}.dist-info"}
    library = {file for file in FILES if file.startswith("pruneonce/")}
    shipped = set(code_of_a_project(wheel))
    assert {name for name in names if name.startswith("pruneonce/")} - shipped == library | {LIBRARY}
    assert len(library) >= 40


def test_the_tag_of_a_wheel_says_what_its_kernels_need(wheel):
    """Of a system: no version of Python, and an old glibc only where the compiler built for one."""
    system = "manylinux_2_17" if build.is_zig(build.find_compiler(MACHINE)) else "linux"
    assert wheel.name == f"pruneonce-{PROJECT['version']}-py3-none-{system}_{MACHINE}.whl"


def test_a_source_distribution_builds_the_same_kernels(wheel, checkout, tmp_path):
    sdist = package("sdist", checkout, tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    again = package("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert again.name == wheel.name
    assert kernels(again) == kernels(wheel)
    assert code_of_a_project(again) == code_of_a_project(wheel)


def test_without_a_compiler_a_wheel_is_pure(wheel, checkout, environment, tmp_path):
    """Also after a build with one, in the same folder."""
    assert kernels(wheel)
    bare = environment("")
    bare.link("setuptools")
    pure = package("wheel", checkout, tmp_path / "wheel", python=bare.folder / "bin/python", PATH="", CC="")
    assert pure.name == f"pruneonce-{PROJECT['version']}-py3-none-any.whl"
    with pytest.raises(KeyError, match=re.escape(LIBRARY)):
        kernels(pure)
    bare.install("--no-build-isolation", "--editable", checkout, PATH="", CC="")


@pytest.mark.parametrize(
    ("rooms", "lists"),
    [
        (("pruneonce",), (PROJECT["dependencies"], EXTRAS["train"])),
        (("pipeline", "flows", "stages", "study"), (PROJECT["dependencies"], EXTRAS["train"], EXTRAS["pipeline"])),
    ],
)
def test_every_import_is_of_a_package_that_is_named(rooms, lists):
    """Not only of one that others need today."""
    owners = metadata.packages_distributions()
    used = {name.split(".")[0] for file in FILES if file.split("/")[0] in rooms for name in imports(ROOT / file)}
    foreign = used - set(sys.stdlib_module_names) - set(MAY)
    assert len(foreign) >= 15
    names = named(*lists)
    assert {name for name in foreign if names.isdisjoint(map(canonicalize_name, owners[name]))} == set()


def lock(python: str) -> dict[str, str]:
    """Version by package, of those that pip takes on this Python."""
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    every = [one for one in map(Requirement, lines) if here(one, python)]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in every}


def here(one: Requirement, python: str) -> bool:
    environment = {"python_version": "3.11", "python_full_version": python, "extra": ""}
    return one.marker is None or one.marker.evaluate(environment)


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.11.3", "3.11.99"])
def test_the_lock_holds_what_its_packages_need_on_every_python_3_11(python):
    """It was made on one of them; a package may need another one on an older Python."""
    locked = set(lock(python))
    needed = [Requirement(text) for name in locked for text in needs(name)]
    wanted = {canonicalize_name(one.name) for one in needed if here(one, python)}
    assert wanted - locked == {"torch", "setuptools"}, "the Makefile chooses torch, which needs setuptools"


def needs(name: str) -> list[str]:
    """The requirements of an installed package; those for another Python are not installed."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def test_the_lock_holds_what_is_named_within_its_bounds():
    locked = lock("3.11.7")
    every = [Requirement(text) for names in (PROJECT["dependencies"], *EXTRAS.values()) for text in names]
    assert len(every) >= 40
    # The Makefile chooses torch, which needs setuptools; pruneonce[train] is this project.
    apart = {"torch", "setuptools", "pruneonce"}
    assert [
        str(one) for one in every if one.name not in apart and locked.get(canonicalize_name(one.name)) not in one.specifier
    ] == []


def test_the_pages_script_trains_without_the_pipelines_packages(train, trained):
    for name in TRACKERS:
        done = train.run("python", "-c", f"import {name}", cwd=trained[0])
        assert f"No module named '{name}'" in done.stderr
    sparsity, dense, int8 = re.fullmatch(r"sparsity (\S+)  right: dense (\S+), int8 (\S+)\n", trained[1]).groups()
    assert sparsity == "0.900"
    assert float(dense) > 0.85
    assert float(int8) > 0.85
    stored = onnx.load(trained[0] / "int8.onnx").graph.initializer
    matrices = [
        numpy_helper.to_array(one) for one in stored if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2
    ]
    assert len(matrices) == 13, "six linears a layer, and the pooler"
    assert all(np.mean(matrix == 0) >= 0.899 for matrix in matrices)


def test_the_base_install_packs_loads_and_runs(base, trained, tmp_path):
    """The script's model, in an environment without torch."""
    done = base.run("python", "-c", "import torch", cwd=tmp_path)
    assert "No module named 'torch'" in done.stderr
    packed = (trained[0] / "int8.packed").read_bytes()
    (tmp_path / "int8.packed").write_bytes(packed)
    for words in (("unpack", "int8.packed"), ("pack", "int8.onnx", "again.packed")):
        done = base.run("pruneonce", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "again.packed").read_bytes() == packed
    for how in ("auto", "stock", "sparse"):
        done = base.run("python", "-W", "error", "-c", LOAD, how, cwd=tmp_path)
        assert (done.stdout, done.stderr) == ("(3, 2)\n", "")
    stock, sparse = (np.load(tmp_path / f"{how}.npy") for how in ("stock", "sparse"))
    assert np.abs(sparse - stock).max() < 0.05 * np.abs(stock).max()  # by rounding
    done = base.run("pruneonce", "inspect", "int8.packed", "--execution", "sparse", cwd=tmp_path)
    assert ("matrices: 13 sparse" in done.stdout, done.stdout.count("as asked for"), done.stderr) == (True, 13, "")
    done = base.run("pruneonce", "accelerate", "int8.packed", "out.onnx", "--execution", "sparse", cwd=tmp_path)
    assert done.stdout.endswith(f"; it needs the library {base.packages}/pruneonce/deployment/kernels.so\n")


def test_the_base_install_says_what_a_projects_command_lacks(base, checkout, tmp_path):
    done = base.run("pruneonce", "plan", cwd=tmp_path)
    assert done.stderr.startswith("PipelineError: expected a project's folder for `pruneonce plan`")
    done = base.run("pruneonce", "plan", cwd=checkout)
    assert done.stderr.startswith("PipelineError: expected what the project's commands import, found no DVC")


def test_an_editable_install_runs_the_project_in_its_folder(wheel, environment, checkout, tmp_path):
    """flows, stages, pipeline and study are found in the folder that a command is started in, by DVC and Prefect as well."""
    made = environment("pipeline")
    compiler = shlex.join(build.find_compiler(MACHINE))  # which may be a package of this environment alone
    made.install("--no-build-isolation", "--editable", checkout, CC=compiler)
    done = made.run("python", "-c", "import pruneonce; print(pruneonce.__file__)", cwd=tmp_path)
    assert done.stdout == f"{checkout}/pruneonce/__init__.py\n"
    assert (checkout / LIBRARY).read_bytes() == kernels(wheel)
    for name in ("flows", "stages", "pipeline", "study"):
        done = made.run("python", "-c", f"import {name}", cwd=tmp_path)
        assert f"No module named '{name}'" in done.stderr
    done = made.run("pruneonce", "plan", "--help", cwd=checkout)
    assert "--tokens-per-second" in done.stdout
    # A worker of Prefect's: its folder is not on the path, nor when the flow runs.
    load = "from prefect.flows import load_flow_from_entrypoint as load; print(load('flows/compress.py:compress').name)"
    done = made.run("python", "-P", "-c", load, cwd=checkout)
    assert (done.returncode, done.stdout) == (0, "compress\n"), done.stderr
