"""How neighbours are searched for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from patchssl.cli.bundles import bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexOptions:
    """How neighbours are searched for: `index` and `parameters` of `patchssl.evaluate.search.factory.search`."""

    index: str = "Flat"
    parameters: str | None = None

    def check(self, dim: int) -> None:
        """Refuse with a ConfigError, before the work, what FAISS has not for features of a width."""
        from patchssl.evaluate.search.factory import check_factory

        check_factory(self.index, dim, self.parameters)


def index_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How neighbours are searched for, `--index` and `--index-parameters`, as `index_options: IndexOptions`."""
    options = (
        click.option(
            "--index",
            default="Flat",
            show_default=True,
            metavar="FACTORY",
            help="A FAISS index for the search. Flat is exact; the others are quicker or smaller, and tell what they "
            "miss: IVF1024,Flat looks into few of 1,024 lists; HNSW32 follows a graph; IVF1024,PQ48 packs a vector "
            "into 48 bytes; OPQ48_384,IVF1024,PQ48x4fs,RFlat looks twice at its best; PCAW256,L2norm,Flat whitens.",
        ),
        click.option(
            "--index-parameters",
            metavar="NAME=N,…",
            show_default="of FAISS",
            help="How thoroughly --index is searched: nprobe=16 lists of an IVF, efSearch=64 nodes of an HNSW.",
        ),
    )

    def make(index: str, index_parameters: str | None) -> IndexOptions:
        if index == "Flat" and index_parameters is not None:
            raise click.UsageError("--index-parameters is for an --index other than Flat, which is exact")
        return IndexOptions(index=index, parameters=index_parameters)

    return bundle(function, options, "index_options", make)
