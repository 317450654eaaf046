"""`pruneonce doctor`: each finding, on machines and projects that are made up; no check can end it."""

import argparse
import fcntl
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from pipeline import dvc_settings, scratch
from pipeline.doctor import dvc, environment, git, locks, servers, space
from pipeline.doctor import kernels as sources
from pruneonce.commands import doctor
from pruneonce.doctor import findings, kernels, machine, packages
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding

ROOT = Path(__file__).parents[2]


def said(found) -> list[tuple[str, str]]:
    """(level, what was found) of each finding."""
    return [(finding.level, finding.found) for finding in found]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, without servers and without a user's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "CC"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_findings_are_lines_with_their_number():
    found = [Finding("a", OK, "well"), Finding("longer", PROBLEM, "bad\nhttp://me:secret@host", "Mend it.")]
    assert list(findings.lines(found)) == [
        "ok       a       well",
        "problem  longer  bad http://host. Mend it.",
        "1 problem, 0 notes, 1 ok",
    ]
    assert not findings.healthy(found)
    assert findings.healthy(found[:1])


def test_a_check_that_fails_is_a_finding_and_the_others_go_on():
    def broken():
        yield Finding("never", OK, "seen")
        raise ZeroDivisionError("by zero")

    def whole():
        yield Finding("b", OK, "seen")

    first, second = findings.run([broken, whole])
    assert (first.level, second.found) == (NOTE, "seen")
    assert first.found.endswith(".broken failed: ZeroDivisionError"), "a message may hold a part of a password"


def test_the_exit_code_says_whether_there_is_a_problem(capsys):
    good, bad = (lambda: [Finding("a", OK, "x")]), (lambda: [Finding("a", PROBLEM, "x", "y")])
    args = argparse.Namespace(json=True)
    document = json.loads("".join(doctor.report([good], args, project=False)))
    assert document == {
        "format": 1,
        "project": False,
        "findings": [{"about": "a", "level": "ok", "found": "x", "advice": ""}],
    }
    lines = doctor.report([good, bad], args, project=True)
    assert json.loads(next(lines))["findings"][1]["level"] == "problem"
    with pytest.raises(SystemExit) as ended:
        next(lines)
    assert ended.value.code == 1


@pytest.mark.parametrize(
    ("architecture", "has", "levels", "words"),
    [
        ("x86_64", "avx2 avx512_vnni amx_int8 amx_bf16", [OK, OK], "amx_int8, avx512_vnni"),
        ("x86_64", "avx2 avx_vnni", [OK, NOTE], "avx_vnni"),
        ("x86_64", "sse4_2 avx2", [NOTE, NOTE], "AVX2 without VNNI"),
        ("x86_64", "sse4_2", [NOTE, NOTE], "without instructions for int8"),
        ("aarch64", "asimd asimddp i8mm bf16", [OK, OK], "i8mm, asimddp"),
        ("aarch64", "asimd", [NOTE, NOTE], "without instructions for int8"),
        ("riscv64", "rv64", [NOTE, NOTE], "without instructions for int8"),
        ("x86_64", "", [NOTE], "does not list its features"),
    ],
)
def test_a_processor(architecture, has, levels, words):
    found = list(machine.processor(architecture, set(has.split())))
    assert [finding.level for finding in found] == levels
    assert words in found[0].found


def test_features_are_read_as_linux_writes_them(tmp_path):
    for text, features in (
        ("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t: other\n", {"fpu", "avx2"}),
        ("processor : 0\nFeatures : fp asimd\n", {"fp", "asimd"}),
        ("nothing\n", set()),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert machine.flags(tmp_path / "cpuinfo") == features
    assert machine.flags(tmp_path / "none") == set()


@pytest.mark.parametrize(
    ("files", "cores", "limit"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "1000\n", "memory.current": "400\n"}, 1.5, (1000, 400)),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, float("inf"), (float("inf"), 0)),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "70\n",
                "memory/memory.usage_in_bytes": "7\n",
            },
            2.0,
            (70, 7),
        ),
        (
            {
                "memory.max": "1000\n",
                "memory.current": "400\n",
                "memory.stat": "anon 50\nactive_file 70\ninactive_file 280\n",
            },
            float("inf"),
            (1000, 120),
        ),
        (
            {
                "memory/memory.limit_in_bytes": "70\n",
                "memory/memory.usage_in_bytes": "30\n",
                "memory/memory.stat": "inactive_file 3\ntotal_inactive_file 20\n",
            },
            float("inf"),
            (70, 10),
        ),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf"), (float("inf"), 0)),
        ({}, float("inf"), (float("inf"), 0)),
    ],
    ids=["v2", "v2 without limits", "v1", "v2 with cached files", "v1 with cached files", "v1 without limits", "none"],
)
def test_the_limits_of_a_container(tmp_path, files, cores, limit):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota(tmp_path) == cores
    assert machine.memory_limit(tmp_path) == limit


def test_fewer_cores_and_little_memory_are_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.5)
    (found,) = machine.cores()
    assert (found.level, found.advice) == (NOTE, "Give threads=2 to pruneonce.load.")
    (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n")
    assert said(machine.memory(tmp_path / "meminfo", tmp_path)) == [(OK, "16.0 of 32.0 GiB are free")]
    (tmp_path / "memory.max").write_text(str(3 << 30))
    (tmp_path / "memory.current").write_text(str(1 << 30))
    assert said(machine.memory(tmp_path / "meminfo", tmp_path)) == [(NOTE, "2.0 of 3.0 GiB are free")]


def test_the_library_of_the_kernels(tmp_path):
    (found,) = kernels.library(tmp_path / "kernels.so")
    assert (found.level, found.advice) == (NOTE, kernels.BUILD)
    (tmp_path / "kernels.so").write_text("no library")
    (found,) = kernels.library(tmp_path / "kernels.so")
    assert (found.level, found.advice) == (PROBLEM, kernels.BUILD)
    assert "cannot be loaded" in found.found
    if kernels.LIBRARY.exists():
        assert {finding.level for finding in kernels.library()} <= {OK, NOTE}


def test_a_library_that_is_older_than_its_sources(folder, monkeypatch):
    monkeypatch.setattr(sources, "LIBRARY", folder / "kernels.so")
    (folder / "kernels").mkdir()
    for name, age in (("kernels.so", 100), ("kernels/build.py", 200), ("kernels/a.c", 200)):
        (folder / name).touch()
        os.utime(folder / name, (age, age))
    (found,) = sources.sources()
    assert (found.level, found.advice) == (NOTE, "make install")
    os.utime(folder / "kernels.so", (300, 300))
    assert list(sources.sources()) == []


def test_a_compiler(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(kernels.metadata, "version", _missing)
    assert [finding.level for finding in kernels.compiler()] == [NOTE]
    (folder / "gcc").write_text("#!/bin/sh\n")
    (folder / "gcc").chmod(0o755)
    assert said(kernels.compiler()) == [(OK, f"{folder}/gcc")]
    monkeypatch.setenv("CC", "zig cc")
    assert said(kernels.compiler()) == [(OK, "zig cc, from CC")]


def _missing(name):
    raise kernels.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("found", "bounds", "kept"),
    [
        ("2.13.0+cpu", ">=2.13,<2.14", True),
        ("0.151.0", "<0.151", False),
        ("0.150.9", "<0.151", True),
        ("3.8.8", ">=3.8.8,<3.9", True),
        ("2.1", "<2.1.0", False),
        ("2.1rc1", ">=2", True),
        ("1.2.7", "==1.2.*", True),
        ("1.3", "==1.2.*", False),
        ("1.3", "!=1.3.0", False),
        ("5", ">4,<=5", True),
        ("5", "~=4.0", True),  # not judged
    ],
)
def test_a_version_within_bounds(monkeypatch, found, bounds, kept):
    monkeypatch.setattr(packages, "version", lambda name: found)
    assert (list(packages.missed([f"some-name[extra]{bounds}; python_version > '3'"])) == []) == kept


def test_versions_that_do_not_work_together_say_what_happens(folder, monkeypatch):
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    here = packages.version
    monkeypatch.setattr(packages, "version", lambda name: "0.151.2" if name == "fastapi" else here(name))
    (found,) = [finding for finding in environment.bounds() if finding.about == "fastapi"]
    assert found.level == PROBLEM
    assert found.found.startswith("expected fastapi<0.151, found 0.151.2: prefect 3.8 cannot start its server")
    assert found.advice == 'pip install "fastapi<0.151"'
    monkeypatch.setattr(packages, "version", lambda name: None if name == "sqlalchemy" else here(name))
    assert "expected sqlalchemy<2.1, found none" in [finding.found.partition(":")[0] for finding in environment.bounds()]


def test_every_reason_is_of_a_package_with_a_bound(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert set(environment.KNOWN) <= {re.split("[<>]", text)[0] for text in environment._named() if re.search("[<>]", text)}


def test_a_project_without_a_clone_is_held_against_the_packages_own_bounds(folder, monkeypatch):
    said = ["numpy>=2", 'torch>=2; extra == "train"', 'pruneonce[train]; extra == "pipeline"', "ruff; extra == 'dev'"]
    monkeypatch.setattr(environment.metadata, "requires", lambda name: said)
    assert environment._named() == ["numpy>=2", "torch>=2"]
    assert list(environment.lock()) == []
    assert list(environment.origin()) == []


def test_other_versions_than_in_the_lock_are_a_note(folder, monkeypatch):
    monkeypatch.setattr(environment, "version", lambda name: {"a": "1.0", "b": "2.0"}.get(name))
    (folder / "requirements.lock").write_text("# with\na==1.0\nb==2.1\nc==3.0 ; python_version < '3.11'\n")
    assert said(environment.lock()) == [(NOTE, "other versions than in requirements.lock: b 2.0 for 2.1")]
    (folder / "requirements.lock").write_text("a==1.0\n")
    assert said(environment.lock()) == [(OK, "1 versions are those of requirements.lock")]


def test_mlflows_parts_are_of_one_release():
    (found,) = environment._together({"mlflow": "3.17.2", "mlflow-skinny": "3.17.2", "mlflow-tracing": "3.16.0"})
    assert (found.level, found.advice) == (
        PROBLEM,
        "pip install mlflow==3.17.2 mlflow-skinny==3.17.2 mlflow-tracing==3.17.2",
    )
    assert list(environment._together({"mlflow": "3.17.2", "mlflow-skinny": "3.17.2"})) == []


def test_a_build_of_torch_that_leaves_the_gpu_alone(folder, monkeypatch):
    monkeypatch.setattr(environment, "DEVICES", (str(folder / "gpu"),))
    monkeypatch.setattr(environment, "version", lambda name: "2.13.0+cpu")
    assert [finding.level for finding in environment.torch()] == [OK]
    (folder / "gpu").touch()
    assert [finding.level for finding in environment.torch()] == [NOTE]
    monkeypatch.setattr(environment, "version", lambda name: None)
    assert [finding.level for finding in environment.torch()] == [PROBLEM]


def test_a_lock_that_is_held_and_one_that_was_left(folder):
    assert said(locks.held()) == [(OK, "none is held")]
    locks.RUN.parent.mkdir()
    with locks.RUN.open("w") as file:
        assert said(locks.held()) == [(OK, ".pruneonce/run.lock is of a run that was killed: the next run takes it")]
        fcntl.flock(file, fcntl.LOCK_EX)
        (found,) = locks.held()
        assert found.level == NOTE
        assert found.found == f"a run of this folder is going (process {os.getpid()} holds .pruneonce/run.lock)"


def test_the_table_of_locks_is_read_as_linux_writes_it(tmp_path):
    (tmp_path / "locks").write_text(
        "1: FLOCK  ADVISORY  WRITE 31350 fe:00:3678924 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 7 fe:00:3678924 0 EOF\n"
        "2: POSIX  ADVISORY  READ  -1 08:12:77 1073741826 1073742335\n"
    )
    assert locks.holder_of(tmp_path / "locks") == {"254:0:3678924": 31350, "8:18:77": -1}


@pytest.mark.parametrize("text", ["{", "[]", '{"write": {"a": {"cmd": "x"}}}', '{"read": 3}'])
def test_a_damaged_list_of_dvcs_paths_is_a_problem(folder, text):
    assert list(locks.dvc_paths()) == []
    locks.DVC_PATHS.parent.mkdir(parents=True)
    locks.DVC_PATHS.write_text(text)
    (found,) = locks.dvc_paths()
    assert (found.level, found.advice) == (PROBLEM, "If no DVC is running: rm .dvc/tmp/rwlock")


def test_dvcs_paths_by_the_process_that_uses_them(folder):
    ended = subprocess.Popen(["true"])
    ended.wait()
    with subprocess.Popen(["sleep", "60"]) as other:
        users = {
            "data/a": (ended.pid, "dvc repro a"),
            "data/b": (other.pid, "dvc repro b"),
            "data/c": (os.getpid(), "dvc c"),
        }
        entries = {str(folder / path): {"pid": pid, "cmd": line} for path, (pid, line) in users.items()}
        locks.DVC_PATHS.parent.mkdir(parents=True)
        locks.DVC_PATHS.write_text(json.dumps({"write": entries, "read": {"x": [entries[str(folder / "data/c")]]}}))
        levels = [finding.level for finding in locks.dvc_paths()]
        other.kill()
    assert levels == [OK, PROBLEM, NOTE]


def test_what_unfinished_runs_have_saved(folder):
    assert list(locks.leftovers()) == []
    names = ("finetune@r8-4567012345670123", "sparsify-0123456701234567")
    for name in (*names, "somebodys"):
        (scratch.DEFAULT / name).mkdir(parents=True)
        (scratch.DEFAULT / name / "a.safetensors").write_bytes(bytes(1_500_000))
    (scratch.DEFAULT / f"{names[1]}.lock").touch()
    (scratch.DEFAULT / "0123-1-89abcdef.jsonl").touch()  # metrics that MLflow is still to have
    (folder / "mlflow.db.part").touch()
    saved, database = locks.leftovers()
    assert (saved.level, saved.found) == (NOTE, "finetune@r8, sparsify: 3 MB in .pruneonce/scratch")
    assert saved.advice.endswith(f"rm -r .pruneonce/scratch/{names[0]} .pruneonce/scratch/{names[1]}")
    assert database.found == "mlflow.db.part is of a process that was killed: the next run replaces it"


def test_git(folder, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    assert [finding.level for finding in git.repository()] == [PROBLEM]
    subprocess.run(["git", "init", "-q"], check=True)
    name, state = git.repository()
    assert (name.level, state.level, state.found) == (NOTE, OK, "no commit yet, clean")
    for key in ("user.name", "user.email"):
        subprocess.run(["git", "config", key, "x"], check=True)
    (folder / "new.txt").touch()
    (state,) = git.repository()
    assert (state.level, state.found) == (NOTE, "no commit yet, with 1 changed file, such as new.txt")
    monkeypatch.setenv("PATH", "")
    assert [finding.found for finding in git.repository()] == ["expected git, found none"]


@pytest.fixture
def settings(folder):
    """text -> DVC's settings of the project."""
    (folder / ".dvc").mkdir()

    def write(text: str) -> None:
        (folder / ".dvc/config").write_text(text)

    return write


def test_a_folder_that_is_no_project_of_dvcs(folder, settings):
    assert [finding.level for finding in dvc.project()] == [PROBLEM]
    settings("[core]\n    analytics = false\n")
    assert list(dvc.project()) == []
    settings("analytics = false\n")
    (found,) = dvc.project()
    assert (found.level, found.found.startswith("expected settings of DVC in .dvc/config, found: ")) == (PROBLEM, True)
    assert found.found.endswith("Correct the file.")


def test_the_cache_is_where_any_file_of_dvcs_settings_says(folder, settings, monkeypatch):
    """`dvc cache dir` says the same."""
    places = {"DVC_SYSTEM_CONFIG_DIR": folder / "system", "DVC_GLOBAL_CONFIG_DIR": folder / "user"}
    for variable, place in places.items():
        place.mkdir()
        monkeypatch.setenv(variable, str(place))
    assert dvc_settings.cache() == Path(".dvc/cache")
    (folder / "system/config").write_text("[cache]\n    dir = /srv/cache\n")
    assert dvc_settings.cache() == Path("/srv/cache")
    (folder / "user/config").write_text("[cache]\n    dir = kept\n")
    assert dvc_settings.cache() == folder / "user/kept"
    settings("[cache]\n    dir = ../kept\n")
    assert dvc_settings.cache().resolve() == folder / "kept"


def test_remotes(folder, settings, monkeypatch):
    settings("[core]\n    analytics = false\n")
    assert [finding.level for finding in dvc.remotes()] == [NOTE]
    settings("['remote \"disk\"']\n    url = ../store\n")
    default, missing = dvc.remotes()
    assert (default.level, default.advice) == (NOTE, "dvc remote default disk")
    assert (missing.level, missing.found) == (PROBLEM, "disk (../store): no folder there")
    (folder / "store").mkdir()
    settings("[core]\n    remote = disk\n['remote \"disk\"']\n    url = ../store\n")
    assert [finding.level for finding in dvc.remotes()] == [OK]
    monkeypatch.setattr(dvc, "version", _version_of_none)
    settings("[core]\n    remote = s\n['remote \"s\"']\n    url = s3://bucket/x\n")
    assert [finding.advice for finding in dvc.remotes()] == ["pip install dvc-s3"]


def _version_of_none(name):
    return None


def test_a_remote_on_a_server_is_asked_for_a_connection(settings, monkeypatch):
    asked = []
    monkeypatch.setattr(dvc, "version", lambda name: "1")
    monkeypatch.setattr(dvc, "refused", lambda host, port: asked.append((host, port)) or "refused"[: 9 * (host == "b")])
    settings(
        "[core]\n    remote = a\n['remote \"a\"']\n    url = s3://bucket\n    endpointurl = http://a:9000\n"
        "['remote \"b\"']\n    url = ssh://me:secret@b/data\n['remote \"c\"']\n    url = s3://bucket\n"
    )
    first, second, third = dvc.remotes()
    assert asked == [("a", 9000), ("b", 22)]
    assert (first.level, second.level) == (OK, PROBLEM)
    assert "secret" not in second.found
    assert third.found.endswith("not tried, because that needs its keys")


def test_nothing_answers_on_a_port_that_is_closed():
    assert "refused" in dvc.refused("127.0.0.1", 1)


def test_space_against_what_a_run_writes(folder, settings, monkeypatch):
    settings("")
    for free, level in ((5e9, OK), (3e9, NOTE)):
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path, free=free: argparse.Namespace(free=free))
        assert [finding.level for finding in space.disk()] == [level, OK], "before the first run"
    (folder / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  a:\n    outs:\n    - path: x\n      hash: md5\n      md5: aa\n      size: 3000000000\n"
        "  b:\n    deps:\n    - path: x\n      hash: md5\n      md5: aa\n      size: 3000000000\n"
    )
    assert space.written() == 3_000_000_000
    for kind, free, levels in (("ext4", 5e9, [PROBLEM, OK]), ("btrfs", 5e9, [OK, OK]), ("ext4", 7e9, [OK, OK])):
        monkeypatch.setattr(space, "filesystem", lambda path, kind=kind: kind)
        monkeypatch.setattr(space.shutil, "disk_usage", lambda path, free=free: argparse.Namespace(free=free))
        assert [finding.level for finding in space.disk()] == levels, (kind, free)


def test_the_file_system_of_a_path(tmp_path):
    (tmp_path / "mounts").write_text("/dev/a / ext4 rw 0 0\n/dev/b /mnt/data btrfs rw 0 0\nnone /proc proc rw 0 0\n")
    for path, kind in (("/mnt/data/x", "btrfs"), ("/mnt/database", "ext4"), ("/", "ext4")):
        assert space.filesystem(Path(path), tmp_path / "mounts") == kind


def test_mlflows_store(folder, monkeypatch):
    assert said(servers.tracking()) == [(OK, "mlflow.db: none yet, the first run makes it")]
    (folder / "mlflow.db").write_text("no database, though it is long enough to be read as one")
    assert [finding.level for finding in servers.tracking()] == [PROBLEM]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    (found,) = servers.tracking()
    assert found.level == PROBLEM
    assert "secret" not in found.found


@pytest.mark.parametrize("address", ["postgresql://me:se/cret@host/db", "http://me:se/cret@host", "http://me:secret@[::1"])
def test_an_address_that_cannot_be_is_a_problem_and_shows_no_password(folder, settings, monkeypatch, address):
    monkeypatch.setattr(dvc, "version", lambda name: "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    settings(f"[core]\n    remote = a\n['remote \"a\"']\n    url = s3://b\n    endpointurl = {address}\n")
    found = findings.run([servers.tracking, dvc.remotes])
    assert [finding.level for finding in found] == [PROBLEM, PROBLEM]
    assert all("expected a host and a port in " in finding.found for finding in found)
    assert "cret" not in "".join(finding.found for finding in found)


def test_prefects_server_is_the_one_that_prefect_reads(folder, monkeypatch):
    monkeypatch.setattr(servers, "refused", lambda host, port: "refused" if port == 4200 else "")
    assert [finding.level for finding in servers.prefect()] == [OK]
    (folder / "home/.prefect").mkdir(parents=True)
    (folder / "home/.prefect/profiles.toml").write_text(
        'active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://b:4200/api"\n'
    )
    assert said(servers.prefect()) == [(PROBLEM, "http://b:4200/api does not answer: refused")]
    monkeypatch.setenv("PREFECT_API_URL", "http://a:4300/api")
    assert said(servers.prefect()) == [(OK, "http://a:4300/api answers")]


def test_a_stranger_on_prefects_port_is_a_note(folder, monkeypatch):
    monkeypatch.setattr(servers, "refused", lambda host, port: "")
    assert [finding.level for finding in servers.prefect()] == [NOTE]
