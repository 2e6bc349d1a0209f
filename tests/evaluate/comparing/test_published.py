import io
from collections import Counter

import pytest

from patchssl.errors import DataError
from patchssl.evaluate.comparing.published import Published, matching, parse_published, read_published

HEADER = "task,protocol,dataset,metric,model,value,source,note,verified\n"
LINE = "knn,dino,ImageNet-1K,top1,DINO,0.745,a paper,,true\n"


def parse(text: str) -> tuple[Published, ...]:
    return parse_published(io.StringIO(text))


def test_a_line_by_hand() -> None:
    assert parse(HEADER + LINE) == (
        Published(
            task="knn",
            protocol="dino",
            dataset="ImageNet-1K",
            metric="top1",
            model="DINO",
            value=0.745,
            source="a paper",
            note="",
            verified=True,
        ),
    )
    assert parse(HEADER) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task,value\nknn,0.5\n", "has the columns"),
        ("", "has the columns"),
        (HEADER + LINE.replace("0.745", "74.5"), r"published.csv:2: has the value '74.5'"),
        (HEADER + LINE.replace("0.745", "much"), "a fraction from 0 to 1"),
        (HEADER + LINE.replace("0.745", "nan"), "a fraction from 0 to 1"),
        (HEADER + LINE.replace("knn", "guess"), "has the task 'guess'; allowed: knn, linear"),
        (HEADER + LINE.replace("true", "yes"), "has 'yes' as verified"),
        (HEADER + LINE.replace("a paper", " "), "has no source"),
        (HEADER + LINE.replace(",true", ""), "more or fewer fields"),
        (HEADER + LINE.replace(",true", ",true,more"), "more or fewer fields"),
        (HEADER + LINE + LINE.replace("0.745", "0.746"), r"published.csv:3: says the same as a line before it"),
        (HEADER + LINE.replace("DINO", '"DI'), "unexpected end of data"),
    ],
)
def test_lines_that_are_not_as_they_should_be_are_refused(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        parse(text)


def test_the_figures_of_the_package_are_all_there() -> None:
    figures = read_published()
    assert Counter(figure.task for figure in figures) == {"knn": 43, "linear": 40, "copydetect": 14, "retrieval": 74}
    unverified = [figure for figure in figures if not figure.verified]
    assert [(figure.model, figure.value) for figure in unverified] == [("MSN ViT-S/16", 0.769)]
    # A figure chosen by the test images says so.
    linear = [figure for figure in figures if figure.task == "linear" and figure.protocol in ("dino", "ibot", "dinov2")]
    assert all("test-selected" in figure.note for figure in linear if "not recorded" not in figure.note)


@pytest.mark.parametrize(
    ("task", "dataset", "metric", "model", "source", "value"),
    [
        ("knn", "ImageNet-1K", "top1", "DINO ViT-S/16", "Table 2", 0.745),
        ("linear", "ImageNet-1K", "top1", "DINO ViT-B/8", "Table 2", 0.801),
        ("knn", "CIFAR-10", "top1@k200", "DINO ResNet-18 (800 epochs, batch 512)", "lightly", 0.848),
        ("copydetect", "Copydays", "strong_map", "DINO ViT-B/8", "Table 4", 0.855),
        ("retrieval", "ROxford5k", "map_medium", "DINO ViT-S/16", "Table 3", 0.418),
        ("retrieval", "ROxford5k", "map_medium", "DINO ViT-S/16", "Table 16", 0.372),
        ("retrieval", "RParis6k", "map_hard", "DINOv2 ViT-g/14", "DINOv2 (arXiv 2304.07193) Table 9", 0.826),
    ],
)
def test_some_figures(task: str, dataset: str, metric: str, model: str, source: str, value: float) -> None:
    found = [
        figure.value
        for figure in read_published()
        if (figure.task, figure.dataset, figure.metric, figure.model) == (task, dataset, metric, model)
        and source in figure.source
    ]
    assert found == [value]


def test_filters() -> None:
    figures = read_published()
    assert matching(figures) == figures
    imagenet = matching(figures, datasets=["imagenet1k"])
    assert imagenet == matching(figures, datasets=["ImageNet-1K"])
    assert {figure.dataset for figure in imagenet} == {"ImageNet-1K"}
    assert {figure.dataset for figure in matching(figures, datasets=["cifar*"])} == {"CIFAR-10", "CIFAR-100"}
    assert {figure.task for figure in matching(figures, tasks=["knn", "copy*"])} == {"knn", "copydetect"}
    neighbours = matching(figures, tasks=["knn"], metric="top1@k20")
    assert {figure.metric for figure in neighbours} == {"top1", "top1@k20", "top1@k200"}
    assert matching(figures, metric="top7") == ()
