"""FAISS indexes from factory strings: made, trained and filled in blocks, with errors that tell what to change."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.search.blocks import row_blocks, take_rows
from patchssl.evaluate.search.index import finite_units

EXAMPLES = "Flat, IVF1024,Flat, IVF1024,PQ48, HNSW32, OPQ48_384,IVF1024,PQ48x4fs,RFlat or PCAW256,L2norm,Flat"
PARAMETER_EXAMPLES = "nprobe=16 (IVF), efSearch=64 (HNSW), quantizer_efSearch=64 (IVF…_HNSW) or k_factor_rf=8 (RFlat)"

_LEAST_SAMPLE = 65_536
_SAMPLE_PER_LIST = 64
_BLOCK_BYTES = 64 * 2**20
_TOO_FEW = re.compile(
    r"Number of training points \((\d+)\) should be at least as large as number of clusters \((\d+)\)"
)
_MESSAGE = re.compile(r"Error in .*? at \S+:\d+: (?:Error: '(.*?)' failed:? ?)?(.*)", flags=re.DOTALL)
_FRACTIONAL = "k_factor"


@dataclass(frozen=True, eq=False, slots=True)
class BuiltIndex:
    """An index that is filled.

    Attributes:
        index: of FAISS.
        num_training: vectors that it was trained on; 0 where it needs none.
        build_s: how long training and filling took.
    """

    index: Any
    num_training: int
    build_s: float

    def num_bytes(self) -> int:
        """What the index takes when FAISS writes it; nothing is kept of what is written."""
        num = 0

        def count(written: bytes) -> None:
            nonlocal num
            num += len(written)

        writer: Any = getattr(faiss, "PyCallbackIOWriter")  # noqa: B009 - its type stubs lack it
        faiss.write_index(self.index, writer(count))
        return num

    def parameters(self) -> dict[str, float]:
        """The parameters of the search that decide between speed and recall, as they are set."""
        ivf, graph = faiss.try_extract_index_ivf(self.index), _innermost(self.index)
        found: dict[str, float] = {} if ivf is None else {"nprobe": int(ivf.nprobe)}
        return {**found, "efSearch": int(graph.hnsw.efSearch)} if hasattr(graph, "hnsw") else found


def make_index(factory: str, dim: int, parameters: str | None = None) -> Any:
    """Make an empty index for inner products.

    Args:
        factory: as `faiss.index_factory` reads it.
        dim: D.
        parameters: of the search, as `faiss.ParameterSpace` reads them: `nprobe=16` or `nprobe=16,efSearch=64`.

    Raises:
        ConfigError: FAISS does not know the string or the parameter, or has no such index for D or inner products.
    """
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(_why_not(factory, dim, _reason(error))) from None
    if _innermost(index).metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ConfigError(f"index {factory!r} has no search by inner product in FAISS; take one such as {EXAMPLES}")
    for transform in _transforms(index):
        if isinstance(transform, faiss.PCAMatrix) and transform.d_out > transform.d_in:
            raise ConfigError(
                f"index {factory!r} makes {transform.d_out} dimensions of features that have {transform.d_in}; allowed "
                f"are 1 to {transform.d_in}"
            )
    given = parse_parameters(parameters)
    quantized = _innermost(index)
    if hasattr(quantized, "do_polysemous_training") and "ht" not in given:
        # It numbers the centroids for searches by Hamming distance, and takes most of the time of training a PQ.
        quantized.do_polysemous_training = False
    for name, value in given.items():
        try:
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        except RuntimeError:
            raise ConfigError(
                f"index {factory!r} has no parameter {name!r}; there are {PARAMETER_EXAMPLES}, each for its kind"
            ) from None
    return index


def parse_parameters(parameters: str | None) -> dict[str, float]:
    """Read `nprobe=16,efSearch=64`; None gives none.

    Raises:
        ConfigError: a part is no NAME=NUMBER, a name stands twice, or a number is not above 0 or no whole one.
    """
    found: dict[str, float] = {}
    for part in [] if parameters is None else parameters.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = np.nan
        whole = value.is_integer() or name.startswith(_FRACTIONAL)
        if not name or name in found or not (np.isfinite(value) and value > 0 and whole):
            raise ConfigError(
                f"index parameters are {parameters!r}, of which {part!r} cannot be used; give each once as NAME=NUMBER "
                f"with whole numbers above 0, separated by commas: {PARAMETER_EXAMPLES}"
            )
        found[name] = int(value) if value.is_integer() else value
    return found


def build_index(
    factory: str,
    parts: Sequence[NDArray[np.float32]],
    *,
    training: Sequence[NDArray[np.float32]] | None = None,
    parameters: str | None = None,
    seed: int = 0,
) -> BuiltIndex:
    """Train an index where it needs that, and fill it; of the rows, one block is held beside it.

    It is trained on at most 65,536 rows or 64 for each list of an IVF, whichever is more (FAISS takes 39 to 256 for a
    centroid), drawn by the seed. An HNSW graph that several threads build differs a little from run to run.

    Args:
        factory: as of `make_index`.
        parts: matrices (m, D), together the database; their rows are normalised here.
        training: other matrices (t, D) to train on; None for the database.
        parameters: as of `make_index`.
        seed: of the sample.

    Raises:
        ConfigError: as make_index; or the index cannot be filled.
        DataError: there are too few training vectors, they have too few dimensions, or features are NaN or infinite.
    """
    index = make_index(factory, parts[0].shape[1], parameters)
    start = time.perf_counter()
    sample = None if index.is_trained else _sample(index, parts if training is None else training, seed)
    if sample is not None:
        _train(index, factory, sample)
    with _told(factory):
        for first, block in row_blocks(parts, max(1, _BLOCK_BYTES // (4 * parts[0].shape[1]))):
            index.add(finite_units(block, "database", first))
    return BuiltIndex(index, 0 if sample is None else len(sample), time.perf_counter() - start)


def _sample(index: Any, parts: Sequence[NDArray[np.float32]], seed: int) -> NDArray[np.float32]:
    """Rows to train on, in their order."""
    ivf = faiss.try_extract_index_ivf(index)
    most = max(_LEAST_SAMPLE, 0 if ivf is None else _SAMPLE_PER_LIST * int(ivf.nlist))
    num = sum(map(len, parts))
    chosen = np.arange(num) if num <= most else np.random.default_rng(seed).choice(num, most, replace=False)
    return finite_units(take_rows(parts, np.sort(chosen)), "training")


def _train(index: Any, factory: str, sample: NDArray[np.float32]) -> None:
    for needed, what in _needs(index):
        if len(sample) < needed:
            raise DataError(_too_few(factory, len(sample), needed, what))
    with _told(factory):
        index.train(sample)
    for transform in _transforms(index):
        if isinstance(transform, faiss.LinearTransform) and not np.isfinite(faiss.vector_to_array(transform.A)).all():
            raise DataError(
                f"index {factory!r} cannot whiten {len(sample)} training vectors to {transform.d_out} dimensions: they "
                "vary in fewer; reduce the dimensions or give more varied training vectors"
            )


def _needs(index: Any) -> Iterator[tuple[int, str]]:
    """How many training vectors the parts of an index need at least, and for what."""
    for transform in _transforms(index):
        if isinstance(transform, faiss.PCAMatrix):
            whitens = transform.eigen_power != 0
            yield transform.d_out + int(whitens), f"PCA to {transform.d_out} dimensions"
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        yield int(ivf.nlist), f"{ivf.nlist} lists"
    quantizer = getattr(_innermost(index), "pq", None)
    if quantizer is not None:
        yield int(quantizer.ksub), f"2^{quantizer.nbits} centroids of each part of the PQ"


def _too_few(factory: str, num: int, needed: int, what: str) -> str:
    return (
        f"index {factory!r} needs at least {needed:,} training vectors ({what}), and {num:,} came; take a smaller "
        "index or give more vectors"
    )


def _transforms(index: Any) -> list[Any]:
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain: Any = index.chain
    return [faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size())]


def _innermost(index: Any) -> Any:
    """The index that holds the codes, without transforms before it and refinement after it."""
    while True:
        index = faiss.downcast_index(index)
        if isinstance(index, faiss.IndexPreTransform):
            index = index.index
        elif isinstance(index, faiss.IndexRefine):
            index = index.base_index
        else:
            return index


@contextmanager
def _told(factory: str) -> Iterator[None]:
    """What FAISS refuses, as our errors."""
    try:
        yield
    except RuntimeError as error:
        found = _TOO_FEW.search(str(error))
        if found:
            num, needed = map(int, found.groups())
            raise DataError(_too_few(factory, num, needed, "centroids of its k-means")) from None
        raise ConfigError(f"index {factory!r} cannot be built: {_reason(error)}; take one such as {EXAMPLES}") from None


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the place in its code; without a message the condition that does not hold."""
    found = _MESSAGE.match(str(error))
    if found is None:
        return str(error)
    condition, message = found.groups()
    return message.strip() or f"{condition} does not hold"


def _why_not(factory: str, dim: int, reason: str) -> str:
    parts = {int(number) for number in re.findall(r"PQ(\d+)", factory)}
    widths = [int(number) for number in re.findall(r"(?:PCAW?R?|RR|OPQ\d+_)(\d+)", factory)]
    width = widths[-1] if widths else dim
    wrong = [number for number in parts if number == 0 or width % number]
    if wrong:
        allowed = ", ".join(str(number) for number in range(1, width + 1) if width % number == 0)
        return (
            f"index {factory!r} cuts {width} dimensions into {', '.join(map(str, wrong))} parts; the number of parts "
            f"must divide them: {allowed}"
        )
    return f"FAISS cannot make index {factory!r} for {dim} dimensions: {reason}; take one such as {EXAMPLES}"
