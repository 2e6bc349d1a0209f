import pytest

from patchssl.evaluate.forward import Work, plan_work
from patchssl.pooling import Part

CLS, MEAN = Part("cls", 1), Part("mean", 1)


@pytest.mark.parametrize(
    ("lacking", "batch_size", "expected"),
    [
        ([], 4, []),
        # A batch fits into a shard: each is by itself, so that batches do not depend on what is missing.
        ([(0, (CLS,)), (1, (CLS,))], 4, [(0, 1, (CLS,)), (1, 2, (CLS,))]),
        ([(0, (CLS,)), (1, (CLS,))], 7, [(0, 1, (CLS,)), (1, 2, (CLS,))]),
        # A batch of two shards takes two neighbours …
        ([(0, (CLS,)), (1, (CLS,)), (2, (CLS,))], 8, [(0, 2, (CLS,)), (2, 3, (CLS,))]),
        # … and neither others nor neighbours that lack something else.
        ([(0, (CLS,)), (2, (CLS,))], 8, [(0, 1, (CLS,)), (2, 3, (CLS,))]),
        ([(0, (CLS,)), (1, (CLS, MEAN))], 8, [(0, 1, (CLS,)), (1, 2, (CLS, MEAN))]),
    ],
)
def test_shards_go_together_where_a_batch_needs_several(
    lacking: list[tuple[int, tuple[Part, ...]]], batch_size: int, expected: list[tuple[int, int, tuple[Part, ...]]]
) -> None:
    found = plan_work(lacking, shard_images=4, batch_size=batch_size)
    assert found == [Work(range(start, stop), parts) for start, stop, parts in expected]
