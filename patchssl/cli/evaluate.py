"""`patchssl eval`."""

import click

from patchssl.cli.lazy import Entry, LazyGroup

TASKS = {
    "knn": Entry("patchssl.cli.eval_knn:knn", "Classify by the nearest training images."),
    "correspondence": Entry(
        "patchssl.cli.eval_correspondence:correspondence", "Find patches of one view of an image in another."
    ),
    "linear": Entry("patchssl.cli.eval_linear:linear", "Classify by a linear layer on frozen features."),
}


@click.group(cls=LazyGroup, entries=TASKS)
def evaluate() -> None:
    """Evaluate a backbone, or features from files, by a named protocol."""
