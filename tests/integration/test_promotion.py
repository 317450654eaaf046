"""Which model may be called champion: gates, git, the champion before, and the way back."""

import argparse
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import promote as flow
from flows import showing
from flows.order import COMPRESS, STUDY
from pipeline import cli, gates
from pipeline.commands import promote as command
from pipeline.hashing import file_md5
from pipeline.params.profiles import MARK
from pipeline.tracking import champions, promotion, registry, versions
from pruneonce.errors import ConfigError, DataError, NotPromoted, PipelineError
from tests.answers import GATES, measured, right
from tests.deployed import FILE, MODEL, TASK, Project, commit, git
from tests.pages import blocks


@pytest.fixture
def project(tmp_path, monkeypatch, empty_store) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project(monkeypatch, empty_store)


def promote(**options) -> promotion.Judgement:
    """Judge what dvc.lock names, and promote it if it holds."""
    judged = promotion.judge(TASK, **options)
    promotion.promote(judged)
    return judged


def shipped(project: Project, found, content: str, **options) -> promotion.Judgement:
    """Run, commit, promote."""
    project.run(found, content, **options)
    commit()
    return promote()


def test_a_model_that_holds_every_gate_becomes_the_champion(project):
    judged = shipped(project, measured(), "one")
    assert project.aliases() == {"current": 1, "champion": 1}
    assert judged.outcome(moved=True) == f"models:/{MODEL}@champion: no version -> version 1"
    (move,) = champions.history(project.client, MODEL)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    assert (move.action, move.old, move.new, move.commit) == ("promotion", None, "1", head)
    assert move.why == "6 gates hold, score 96.80%"
    assert (
        project.client.get_model_version(MODEL, "1").tags["champion.since"]
        == f"{move.when} promotion by {move.who}: {move.why}"
    )
    assert promote().outcome(moved=True) == f"models:/{MODEL}@champion is version 1 already"
    assert len(champions.history(project.client, MODEL)) == 1


def test_a_model_whose_score_collapsed_stays_out_and_the_line_says_why(project):
    shipped(project, measured(), "one")
    judged = shipped(project, measured(int8=right(600)), "two")
    assert not judged.holds
    assert project.aliases() == {"current": 2, "champion": 1}
    line = judged.outcome(moved=False)
    assert line.startswith(f"models:/{MODEL}@champion stays at version 1, not version 2: score: expected at least 90.00%, ")
    assert "97.00% -> 40.00%" in line
    assert [v.name for v in judged.verdicts if not v.holds] == ["least_score", "most_score_drop", "most_drop_to_champion"]


def test_a_dry_run_moves_nothing(project):
    project.run(measured(), "one")
    commit()
    judged = promotion.judge(TASK)
    assert judged.outcome(moved=False) == f"models:/{MODEL}@champion: no version -> version 1 would be promoted (dry run)"
    assert "champion" not in project.aliases()


def test_a_candidate_inside_the_noise_may_follow_and_one_that_is_worse_may_not(project):
    """Each compares with the champion row by row. All of them hold the gates against dense."""
    shipped(project, measured(int8=right(30)), "one")
    same = shipped(project, measured(int8=right(33)), "two")
    assert same.notes == [
        "Against version 1 on the same 1000 rows: -0.30 points (95 % interval -0.74 to +0.14), inside the noise."
    ]
    assert same.outcome(moved=True) == f"models:/{MODEL}@champion: version 1 -> version 2. {same.notes[0].removesuffix('.')}"
    assert same.verdicts[-1].found_words.endswith("McNemar's exact test: 0 rows better, 3 worse, p = 0.25: inside the noise")
    assert project.aliases()["champion"] == 2
    worse = shipped(project, measured(int8=right(48)), "three")
    assert [v.name for v in worse.verdicts if not v.holds] == ["most_drop_to_champion"]
    assert "15 worse, p < 0.0001: more than noise" in worse.outcome(moved=False)
    assert project.aliases()["champion"] == 2

    text = Path("params.yaml").read_text().replace("most_drop_to_champion: 0.0 ", "most_drop_to_champion: 0.02 ")
    Path("params.yaml").write_text(text)
    commit()
    assert promote().holds  # a gate allows as much
    assert project.aliases()["champion"] == 3


def test_without_the_same_test_rows_a_promotion_must_be_asked_for(project):
    shipped(project, measured(), "one")
    judged = shipped(project, measured(test_md5="6" * 32), "two")
    assert judged.notes == ["No paired test against version 1: the test splits differ (md5 55555555 and 66666666)."]
    assert "expected a paired test, or --accept-other-split, found none: the test splits differ" in judged.outcome(
        moved=False
    )
    assert project.aliases()["champion"] == 1
    promote(accept_other_split=True)
    assert project.aliases()["champion"] == 2


def test_a_champion_without_answers_cannot_be_compared(project):
    shipped(project, measured(), "one")
    project.client.delete_model_version_tag(MODEL, "1", versions.ANSWERS)
    judged = shipped(project, measured(), "two")
    assert judged.notes == ["No paired test against version 1: the registry keeps no answers of it."]
    assert not judged.holds


def test_another_number_of_resamples_is_no_pair_and_another_seed_is_one(project):
    """`evaluate` draws the rows of a split by its md5. Rows that are right or wrong need no draws."""
    other = measured()
    other.answers["metric"] = "mcc"
    project.run(other, "one")
    commit()
    promote()
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 1", "seed: 2", 1))
    judged = shipped(project, other, "two", seed=2)
    assert "No paired test" not in judged.notes[0]
    for variant in other.answers["variants"].values():
        variant["replicates"] = variant["replicates"][:-1]
    judged = shipped(project, other, "three", seed=2)
    assert judged.notes[0].endswith("their resamples are not the same rows: evaluate.resamples differs.")


def test_seeds_of_the_same_parameters_are_told(project):
    for seed, wrong in ((1, 30), (2, 34), (3, 32)):
        Path("params.yaml").write_text(Path("params.yaml").read_text().replace(f"seed: {seed - 1}", f"seed: {seed}", 1))
        judged = shipped(project, measured(int8=right(wrong)), f"seed {seed}", seed=seed)
    assert judged.notes[-1] == (
        "3 seeds of these parameters: 96.80% on average, standard deviation 0.20 points (96.60% to 97.00%). A smaller "
        "difference than theirs may be the seed's."
    )


def test_models_of_another_sparsity_are_no_seeds_of_the_same_parameters(project):
    """The stage that prunes is one for all tasks."""
    for seed, sparsity in ((1, 0.8), (2, 0.85)):
        text = Path("params.yaml").read_text().replace(f"seed: {seed - 1}", f"seed: {seed}", 1)
        Path("params.yaml").write_text(re.sub(r"(?m)^  sparsity: \S+", f"  sparsity: {sparsity}", text, count=1))
        judged = shipped(project, measured(), f"seed {seed}", seed=seed)
    recipes = {version.tags["recipe"] for version in project.client.search_model_versions(f"name='{MODEL}'")}
    assert len(recipes) == 2
    assert not any("seeds of these parameters" in note for note in judged.notes)


def test_rollbacks_go_back_one_by_one_and_end(project):
    project.versions(0.97, 0.971, 0.972)
    assert champions.rollback(TASK) == f"models:/{MODEL}@champion: version 3 -> 2, score 97.10%"
    assert champions.rollback(TASK, why="spam passes") == f"models:/{MODEL}@champion: version 2 -> 1, score 97.00%"
    moves = champions.history(project.client, MODEL)
    assert [(m.action, m.old, m.new) for m in moves[-2:]] == [("rollback", "3", "2"), ("rollback", "2", "1")]
    assert [m.why for m in moves[-2:]] == ["back from version 3", "spam passes"]
    with pytest.raises(
        PipelineError, match=rf"was champion of models:/{MODEL} before version 1, found none in its history of 5"
    ):
        champions.rollback(TASK)
    assert project.aliases()["champion"] == 1
    champions.move(project.client, MODEL, "champion", "3", champions.PROMOTION, "again")
    assert champions.rollback(TASK) == f"models:/{MODEL}@champion: version 3 -> 1, score 97.00%"


def test_a_rollback_passes_over_a_deleted_version_and_knows_moves_by_hand(project):
    project.versions(0.97, 0.971, 0.972)
    project.client.delete_model_version(MODEL, "2")
    assert champions.rollback(TASK) == f"models:/{MODEL}@champion: version 3 -> 1, score 97.00%"
    project.client.set_registered_model_alias(MODEL, "champion", "3")  # on MLflow's page
    assert champions.rollback(TASK) == f"models:/{MODEL}@champion: version 3 -> 1, score 97.00%"


def test_a_rollback_without_a_champion_is_one_error(project):
    project.client.create_registered_model(MODEL)
    for task in (TASK, "other"):
        with pytest.raises(PipelineError, match=f"expected a version with the alias champion in models:/pruneonce-{task}"):
            champions.rollback(task)


def test_a_history_keeps_what_fits_and_survives_a_hand(project):
    project.versions(0.97)
    moves = [champions.Move(f"{i:025}", "me", "promotion", "1", "2", "x" * 200, "0" * 40) for i in range(40)]
    text = champions._text(moves)
    assert len(text) <= champions.MOST_CHARACTERS
    assert json.loads(text)[-1]["when"] == moves[-1].when
    for damaged in ("{", '[1, {"when": "now"}]'):
        project.client.set_registered_model_tag(MODEL, "champion.history", damaged)
        assert champions.history(project.client, MODEL) == []


def test_current_follows_a_run_of_what_is_committed_and_no_other(project):
    """A run itself writes dvc.lock and data/."""
    (said,) = registry.register(project.run(measured(), "one"))
    assert said == f"models:/{MODEL}@current is version 1, md5 {file_md5(Path(FILE))}"
    tags = project.client.get_model_version(MODEL, "1").tags
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    expected = {"git_commit": head, "dirty": "false", "profile": "own", "seed": "1", "test_md5": "5" * 32}
    assert {key: tags.get(key) for key in expected} == expected
    assert versions.answers(project.client, project.client.get_model_version(MODEL, "1")) == measured().answers

    params = Path("params.yaml")
    params.write_text(
        f"{MARK}with overrides: common.seed=2 (0123456789ab)\n" + params.read_text().replace("seed: 1", "seed: 2", 1)
    )
    (said,) = registry.register(project.run(measured(int8=right(600)), "two", seed=2))
    assert said == (
        f"models:/{MODEL}@current stays at version 1, not version 2 of md5 {file_md5(Path(FILE))}: params.yaml is not the "
        "committed one, but with overrides: common.seed=2. Commit it, or: git checkout params.yaml."
    )
    tags = project.client.get_model_version(MODEL, "2").tags
    assert (tags["dirty"], tags["profile"], tags["seed"]) == ("true", "with overrides: common.seed=2", "2")
    assert project.aliases() == {"current": 1}


def test_a_promotion_needs_dvc_lock_in_the_commit(project):
    project.run(measured(), "one")
    git("add", "dvc.lock")
    with pytest.raises(
        PipelineError, match=r"a model of topic that is made from what git has, found: dvc\.lock differ from"
    ):
        promotion.judge(TASK)


def test_a_promotion_judges_no_file_that_is_not_dvc_locks(project):
    project.run(measured(), "one")
    commit()
    Path("data/answers/topic.json").write_text("{}")
    with pytest.raises(DataError, match=r"expected data/answers/topic\.json as dvc\.lock has it.*dvc checkout"):
        promotion.judge(TASK)


def test_a_promotion_needs_a_model_that_was_evaluated(project):
    with pytest.raises(PipelineError, match=r"expected an evaluated model of topic in dvc\.lock, found none"):
        promotion.judge(TASK)


def test_a_promotion_needs_the_run_of_its_model(project, empty_store, monkeypatch):
    project.run(measured(), "one")
    commit()
    shutil.copy(empty_store, "mlflow.db.other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/mlflow.db.other")
    with pytest.raises(PipelineError, match="The run that made it is in another tracking store"):
        promotion.judge(TASK)


def test_the_command_rolls_back(project, monkeypatch, capsys):
    project.versions(0.97, 0.971)
    monkeypatch.setattr(sys, "argv", ["pruneonce", "rollback", TASK])
    cli.main()
    assert capsys.readouterr().out == f"models:/{MODEL}@champion: version 2 -> 1, score 97.00%\n"
    with pytest.raises(SystemExit, match=r"^PipelineError: expected a version that was champion"):
        cli.main()


def test_the_page_shows_what_is_said(project):
    """Promoted, worse inside the noise, rolled back, collapsed."""
    shipped(project, measured(int8=right(30)), "one")
    judged = shipped(project, measured(int8=right(33)), "two")
    collapsed = gates.of(measured(int8=right(600)), GATES)
    expected = [
        gates.summary(TASK, collapsed),
        "\n".join([*judged.lines(), judged.outcome(moved=True)]),
        champions.rollback(TASK),
    ]
    assert blocks("text", "docs/promotion.md") == [f"{text}\n" for text in expected]


# The flows.


@pytest.fixture
def pages(monkeypatch) -> list[str]:
    """The artifacts of the flow, which is called without Prefect's engine and server."""
    found: list[str] = []
    monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("promotion"))
    monkeypatch.setattr(flow, "create_markdown_artifact", lambda text, key: found.append(text))
    return found


def test_the_flow_promotes_what_holds_and_its_page_has_the_verdicts(project, pages, caplog):
    project.run(measured(), "one")
    commit()
    with caplog.at_level("INFO"):
        would = flow.promote.fn(dry_run=True)
    assert would == [f"models:/{MODEL}@champion: no version -> version 1 would be promoted (dry run)"]
    assert project.aliases() == {"current": 1}
    assert "  holds   sparsity: expected at least 84.00%, found 85.00%" in caplog.messages
    assert flow.promote.fn(TASK, why="the first one") == [f"models:/{MODEL}@champion: no version -> version 1"]
    assert champions.history(project.client, MODEL)[0].why == "the first one"
    assert "| sparsity | at least 84.00% | 85.00% | holds |" in pages[-1]


def test_the_flow_fails_where_a_gate_does(project, pages):
    project.run(measured(int8=right(600)), "one")
    commit()
    expected = f"^models:/{MODEL}@champion stays at no version, not version 1: score: expected at least 90.00%, found"
    with pytest.raises(NotPromoted, match=expected):
        flow.promote.fn()
    assert "champion" not in project.aliases()
    assert "| **FAILED** |" in pages[0]
    with pytest.raises(ConfigError, match=r"expected one of the tasks \['topic'\], found 'spam'"):
        flow.promote.fn("spam")


@pytest.mark.parametrize("error", [NotPromoted("it stays"), ConfigError("a key")])
def test_the_command_of_the_flow_ends_in_one_line(tmp_path, monkeypatch, error):
    monkeypatch.chdir(tmp_path)
    Project(monkeypatch).run(measured(), "one")
    commit()

    def raises(*_: object) -> list[str]:
        raise error

    for name in ("guard", "check_prefect", "say_errors_once"):
        home = next(place for place in (flow.processes, flow.trouble, flow) if hasattr(place, name))
        monkeypatch.setattr(home, name, lambda: None)
    monkeypatch.setattr(flow.signal, "signal", lambda *_: None)
    monkeypatch.setattr(flow, "promote", raises)
    monkeypatch.setattr(sys, "argv", ["pruneonce promote", TASK])
    with pytest.raises(SystemExit, match=rf"^\n{type(error).__name__}: {error}$"):
        flow.main()
    monkeypatch.setattr(sys, "argv", ["pruneonce promote", "spam"])
    with pytest.raises(SystemExit, match=r"ConfigError: expected one of the tasks \['topic'\], found 'spam'"):
        flow.main()


def test_the_command_starts_the_flow(monkeypatch):
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: started.append(words))
    monkeypatch.setattr(sys, "argv", ["pruneonce", "promote", TASK, "--dry-run", "--why", "a -b"])
    with pytest.raises(TypeError):  # the real one does not return
        cli.main()
    assert started == [[sys.executable, "-m", "flows.promote", TASK, "--alias", "champion", "--why=a -b", "--dry-run"]]


@pytest.mark.parametrize("alias", ["current", "latest", "v1", "", "a b", "@x"])
def test_an_alias_that_is_not_ones_own_is_refused(alias):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a name of letters"):
        command.alias(alias)


@pytest.mark.parametrize("wrong", [32, 600])
def test_a_run_ends_with_the_verdict(tmp_path, monkeypatch, capsys, wrong):
    """In the terminal, and in the note of the run's page."""
    monkeypatch.chdir(tmp_path)
    Project(monkeypatch).run(measured(int8=right(wrong)), "one")
    COMPRESS.page.parent.mkdir(parents=True)
    COMPRESS.page.write_text("# Title\n")
    showing.show(COMPRESS, [], 1.0)
    said = " ".join(capsys.readouterr().out.split())
    start = (
        "gates: topic: all 6 hold"
        if wrong == 32
        else "gates: topic FAILED: score: expected at least 90.00%, found 40.00%; score against dense"
    )
    assert start in said
    assert [line.startswith(start) for line in showing.verdicts(COMPRESS)] == [True]
    assert showing.verdicts(STUDY) == []
    Path("data/answers/topic.json").unlink()
    assert showing.verdicts(COMPRESS)[0].startswith("gates: topic: not judged: expected data/answers/topic.json")
