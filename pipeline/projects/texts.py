"""The files of a new project that are the same for all, but for a name or two."""

FLOW = '''\
"""The flow of this project for workers of Prefect; see prefect.yaml. On the command line it is `pruneonce run`."""

from pruneonce import projects

projects.enter()  # before the import: pruneonce brings the flow, and all that it starts

from flows.compress import compress  # noqa: E402

__all__ = ["compress"]
'''

PREFECT = """\
# Deployments of the flow: a schedule, a work pool. `prefect deploy --all` registers them, `prefect worker start` runs them.
name: {name}

# A worker runs in this folder, so that DVC's cache and MLflow's runs outlive a run. `prefect deploy` fills in the folder
# it is called from.
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: "{{{{ $PWD }}}}"

deployments:
  - name: nightly
    description: params.yaml as git has it; every stage that something changed for
    entrypoint: flow.py:compress
    parameters: {{profile: default, overrides: []}}
    work_pool: {{name: pruneonce}}
    schedules:
      - {{cron: "0 2 * * *", timezone: UTC, slug: nightly}}
"""

PREFECT_SETTINGS = """\
[server]
analytics_enabled = false

[server.ephemeral]
startup_timeout_seconds = 180  # a cold start migrates a database; the default of 20 is too short for that
"""

README = """\
# {title}

A small language model for {tasks}, made by pruneonce {version}.

    pruneonce run                                compute what something changed for
    pruneonce plan                               say what that would cost
    pruneonce add-task data.csv                  one more task on the same sparse language model
    pruneonce trace data/export/{task}/int8.onnx    where a file came from

- `params.yaml` has every number that you may change, and the version of pruneonce. To upgrade: install the new version, and
  write its number there.
- `dvc.yaml` has every path and every arrow between stages. pruneonce writes it.
- The result is in `data/report/report.md`; the models are in `data/export/`. DVC keeps the data, git keeps the rest.
"""

IGNORED = """\
/.venv/
/.pruneonce/
/mlruns/
/mlflow.db*
/mlartifacts/
__pycache__/
"""

DVC = """\
[core]
    analytics = false
    autostage = false
"""
