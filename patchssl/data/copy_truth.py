"""Which queries are copies of which references: the ground truth of copy detection, whatever the data's layout."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from patchssl.data.images import ImageSource
from patchssl.errors import DataError

ONE_BLOCK = "queries"


@dataclass(frozen=True, eq=False, slots=True)
class CopyTruth:
    """What each query is and what it was made from.

    Attributes:
        blocks: query → the block that it counts in, as `strong` or `jpegqual_15`; `queries` where there are none.
        positives: query → the references that it is a copy of; none for a query that is no copy.
    """

    blocks: Mapping[str, str]
    positives: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if self.blocks.keys() != self.positives.keys():
            raise DataError(
                f"{len(self.blocks)} queries have a block and {len(self.positives)} a list of positives; "
                "each needs both"
            )
        if not any(self.positives.values()):
            raise DataError(f"none of the {len(self.blocks)} queries is a copy of any reference; nothing can be found")

    @property
    def num_pairs(self) -> int:
        """How many pairs of a query and a reference are right."""
        return sum(map(len, self.positives.values()))

    @property
    def num_negative(self) -> int:
        """How many queries are no copies."""
        return sum(not found for found in self.positives.values())

    def fingerprint(self) -> str:
        """A hash of all names, blocks and pairs, equal on any machine."""
        digest = hashlib.sha256()
        for query in sorted(self.blocks):
            told = "\0".join((query, self.blocks[query], *sorted(self.positives[query])))
            digest.update(f"{told}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class CopyData:
    """Images of copy detection and their ground truth.

    Attributes:
        layout: `copydays`, `disc` or `generic`.
        sources: `references`, then where there are such `distractors`, `training` and `whitening`, `queries` last.
        truth: of the queries, by the ids of the sources.
        told: what was chosen in opening, by name, for a result row's settings.
    """

    layout: str
    sources: Mapping[str, ImageSource]
    truth: CopyTruth
    told: Mapping[str, str]
