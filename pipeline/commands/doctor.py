"""look for what is wrong or missing on this machine, and in a project's folder, and say what to do

Beside what a model needs it looks at the packages of the pipeline, locks, the git repository, DVC, MLflow, Prefect and the
disk. It changes nothing. The exit code is 1 if there is a problem.
"""

import argparse
from collections.abc import Iterable

from pruneonce.commands import doctor

EXAMPLES, options = doctor.EXAMPLES, doctor.options


def lines(args: argparse.Namespace) -> Iterable[str]:
    from pipeline.doctor import dvc, environment, git, kernels, locks, servers, space  # import SQLAlchemy's address parser

    checks = (
        *doctor.checks(),
        kernels.sources,
        environment.bounds,
        environment.lock,
        environment.neighbours,
        environment.torch,
        environment.origin,
        locks.held,
        locks.dvc_paths,
        locks.leftovers,
        git.repository,
        dvc.project,
        dvc.remotes,
        space.disk,
        servers.tracking,
        servers.prefect,
    )
    yield from doctor.report(checks, args, project=True)
