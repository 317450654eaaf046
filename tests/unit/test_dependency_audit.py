"""`make audit`: what is known to be vulnerable is named, and what was not asked about is never said to be sound."""

import json
import sys
from pathlib import Path

import pytest

from tests.audit import __main__ as program
from tests.audit import advisories
from tests.audit.__main__ import LOCK, main, pinned

YAML = """\
id: PYSEC-2026-1
details: A planted one.
affected:
- package: {name: %s, ecosystem: PyPI}
  ranges:
  - {type: ECOSYSTEM, events: [{introduced: "0"}, {fixed: "%s"}]}
"""


def lock(folder: Path, text: str = "numpy==2.1.0\nJinja2==3.1.0 ; python_version < '4'\ntorch==2.13.0  # x\n") -> str:
    (folder / "requirements.lock").write_text(f"# Exact.\n{text}")
    return str(folder / "requirements.lock")


def planted(folder: Path, package: str, fixed: str) -> str:
    (folder / "db/vulns").mkdir(parents=True, exist_ok=True)
    (folder / f"db/vulns/{package}.yaml").write_text(YAML % (package, fixed))
    return str(folder / "db")


def test_a_planted_advisory_is_found(tmp_path, capsys):
    words = ["--lock", lock(tmp_path), "--advisories", planted(tmp_path, "jinja2", "3.1.5")]
    assert main(words) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "jinja2 3.1.0: PYSEC-2026-1, fixed in 3.1.5"
    assert said[1].startswith("3 packages, 1 known vulnerabilities, by 1 advisories in ")


def test_one_of_the_projects_own_packages_is_found(tmp_path, capsys):
    numbers = pinned(LOCK)
    assert len(numbers) > 240
    assert main(["--advisories", planted(tmp_path, "mlflow", "99")]) == 1
    assert f"mlflow {numbers['mlflow']}: PYSEC-2026-1, fixed in 99\n" in capsys.readouterr().out
    assert main(["--advisories", planted(tmp_path, "mlflow", "0.1")]) == 0
    assert f"{len(numbers)} packages, 0 known vulnerabilities" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("affected", "hit"),
    [
        ({"versions": ["2.0", "2.1"]}, True),  # 2.1 is 2.1.0
        ({"versions": ["2.0", "2.1.1"]}, False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}, True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1.0"}]}]}, False),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": "2.1.0"}]}]}, True),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "2.1.1"}]}]}, False),
        (
            {
                "ranges": [
                    {
                        "type": "ECOSYSTEM",
                        "events": [{"introduced": "2.1"}, {"fixed": "2.2"}, {"introduced": "0"}, {"fixed": "1.5"}],
                    }
                ]
            },
            True,
        ),
        ({"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "strange"}]}]}, True),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
        ({"package": {"name": "numpy", "ecosystem": "npm"}, "versions": ["2.1.0"]}, False),
        ({"package": {"name": "other", "ecosystem": "PyPI"}, "versions": ["2.1.0"]}, False),
    ],
)
def test_which_versions_an_advisory_affects(tmp_path, affected, hit):
    package = {"package": {"name": "NumPy", "ecosystem": "PyPI"}}
    (tmp_path / "x.json").write_text(json.dumps({"id": "X-1", "affected": [{**package, **affected}]}))
    found, count = advisories.affecting({"numpy": "2.1.0"}, tmp_path)
    assert (len(found), count) == (int(hit), 1)
    (tmp_path / "x.json").write_text(json.dumps({"id": "X", "withdrawn": "2026", "affected": [{**package, **affected}]}))
    assert advisories.affecting({"numpy": "2.1.0"}, tmp_path) == ([], 1)


ANSWERS = {
    "offline": ("sys.exit('x\\nConnectionError: no route to http://me:s3cr3t@host')", "ConnectionError: no route to http://host"),
    "skips": ("""print('{"dependencies": [{"name": "numpy", "version": "2.1.0", "vulns": []},"""
              """{"name": "jinja2", "skip_reason": "not found"}]}')""", "expected answers on 3 packages, found 1"),
    "silent": ("pass", "it said nothing"),
    "no JSON": ("print('[]x')", "expected pip-audit's answer"),
}  # fmt: skip


def pip_audit(folder: Path, monkeypatch, code: str) -> None:
    (folder / "pip-audit").write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    (folder / "pip-audit").chmod(0o755)
    monkeypatch.setattr(program, "OWN", folder / "pip-audit")


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_could_not_be_asked_is_said_in_one_line(tmp_path, monkeypatch, capsys, answer):
    code, says = ANSWERS[answer]
    pip_audit(tmp_path, monkeypatch, code)
    assert main(["--lock", lock(tmp_path)]) == program.UNAVAILABLE == 69
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Not audited: ")
    assert says in err
    assert err.count("\n") == 1
    assert "s3cr3t" not in err


def test_what_pip_audit_finds_is_told(tmp_path, monkeypatch, capsys):
    fault = {"id": "PYSEC-1", "fix_versions": ["3.2"], "aliases": []}
    said = [{"name": name, "version": "1", "vulns": [fault] * (name == "jinja2")} for name in ("numpy", "jinja2", "torch")]
    pip_audit(tmp_path, monkeypatch, f"print({json.dumps({'dependencies': said})!r}); sys.exit(1)")
    assert main(["--lock", lock(tmp_path)]) == 1
    assert "jinja2 1: PYSEC-1, fixed in 3.2" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["numpy", "numpy>=2", "-r other.txt", "git+https://example.org/x"])
def test_a_version_that_is_not_pinned_is_not_audited(tmp_path, capsys, line):
    assert main(["--lock", lock(tmp_path, f"{line}\n"), "--advisories", planted(tmp_path, "x", "1")]) == 69
    assert "expected NAME==VERSION" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"id": 3}', '{"id": "x", "affected": 3}'])
def test_a_folder_that_holds_no_advisories_is_not_an_audit(tmp_path, capsys, content):
    (tmp_path / "db/.git").mkdir(parents=True)
    (tmp_path / "db/.git/x.json").write_text("{}")
    if content is not None:
        (tmp_path / "db/x.json").write_text(content)
    assert main(["--lock", lock(tmp_path), "--advisories", str(tmp_path / "db")]) == 69
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["--lock", str(tmp_path / "none")]) == 69
