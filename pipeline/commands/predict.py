"""answer texts with an exported model: labels and probabilities, without torch

The model is a file, or a registered one, such as models:/pruneonce-r8@champion.
"""

import argparse
from collections.abc import Iterable

from pruneonce.commands import predict

EXAMPLES, options = predict.EXAMPLES, predict.options


def lines(args: argparse.Namespace) -> Iterable[str]:
    if str(args.file).startswith("models:"):
        from pipeline.tracking import packaging  # imports MLflow, which takes seconds

        args.file = packaging.fetch(str(args.file))
    return predict.lines(args)
