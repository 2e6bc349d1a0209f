from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from patchssl.backbones import Backbone, Preprocess
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource
from patchssl.errors import CheckpointError, DataError, TrainingError
from patchssl.evaluate.probes.augmented import Loading, Probe, Recipe, train_on_crops
from patchssl.evaluate.probes.crops import AugmentedCrops
from patchssl.evaluate.probes.sgd import fresh_heads
from patchssl.structs import Tokens

RECIPE = Recipe(tokens="cls", num_epochs=4, batch_size=10, learning_rate=0.2, seed=3)
LOADING = Loading(batch_size=4, num_workers=0, precision="fp32", max_bad_fraction=0.1)


class MeanColour(nn.Module):
    """Its class token is the mean of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class MeanReader:
    def num_blocks(self, network: MeanColour) -> int:
        return 1

    def last_blocks(self, network: MeanColour, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        patches = pixels.flatten(2).transpose(1, 2) * network.scale
        return (Tokens(patches.mean(dim=1), patches, (pixels.shape[2], pixels.shape[3])),)

    def attention(self, network: MeanColour, pixels: Tensor) -> Tensor:
        raise NotImplementedError


def backbone() -> Backbone:
    return Backbone.of(
        MeanColour(),
        MeanReader(),
        spec="mean",
        family="test",
        arch="mean",
        dim=3,
        patch_px=1,
        preprocess=Preprocess(image_px=8, resize_px=8),
    )


def source(num: int = 26) -> ArraySource:
    """Images of three colours with noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(num) % 3
    pixels = generator.integers(0, 90, (num, 12, 12, 3)) + 120 * np.eye(3, dtype=int)[labels][:, None, None]
    ids = tuple(f"{index}.png" for index in range(num))
    return ArraySource(pixels.astype(np.uint8), ids, labels, ("b", "g", "r"), "drawn", "drawn")


def features_of(pixels: Tensor) -> Tensor:
    return backbone().preprocess.normalise(pixels).mean(dim=(2, 3))


def held_images() -> tuple[np.ndarray, np.ndarray]:
    images = source(9)
    pixels = torch.from_numpy(images.pixels).permute(0, 3, 1, 2)
    assert images.labels is not None
    return features_of(pixels).numpy(), images.labels


def train(
    recipe: Recipe = RECIPE,
    loading: Loading = LOADING,
    images: ArraySource | None = None,
    checkpoint: Path | None = None,
    progress: list[int] | None = None,
) -> Probe:
    images = source() if images is None else images
    assert images.labels is not None
    return train_on_crops(
        backbone(),
        images,
        images.labels,
        held_images(),
        recipe,
        loading,
        num_classes=3,
        checkpoint=checkpoint,
        progress=None if progress is None else progress.append,
    )


def trained_by_torch(recipe: Recipe) -> tuple[nn.Linear, list[float]]:
    """The same by a plain loop: whole batches, autograd, torch's optimiser and schedule."""
    images = source()
    assert images.labels is not None
    layer = nn.Linear(3, 3)
    initial = fresh_heads([(0, 3)], [1.0], 3, seed=recipe.seed)
    with torch.no_grad():
        layer.weight.copy_(initial.weights[0].T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=recipe.learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.num_epochs, eta_min=0)
    size = recipe.batch_size
    crops = AugmentedCrops(
        images, side=8, batch_size=size, piece_size=size, num_epochs=recipe.num_epochs, seed=recipe.seed
    )
    features, labels = held_images()
    accuracies = []
    for epoch in range(recipe.num_epochs):
        for place in range(len(crops.bounds)):
            pixels, keys, _ = crops[epoch * len(crops.bounds) + place]
            answers = layer(features_of(pixels))
            loss = nn.functional.cross_entropy(answers, torch.from_numpy(images.labels[keys.index.numpy()]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        answers = layer(torch.from_numpy(features)).argmax(1).numpy()
        accuracies.append(float(np.mean(answers == labels)))
    return layer, accuracies


def test_equals_a_plain_training_loop() -> None:
    layer, accuracies = trained_by_torch(RECIPE)
    progress: list[int] = []
    probe = train(progress=progress)
    torch.testing.assert_close(probe.head.weights[0], layer.weight.detach().T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probe.head.bias[0], layer.bias.detach(), rtol=1e-5, atol=1e-5)
    assert probe.accuracies == pytest.approx(accuracies)
    assert sum(progress) == 4 * 26
    # Three colours are told apart, and the best epoch is never below the last.
    assert probe.hits["top1"].mean() == probe.accuracies[-1] == 1.0
    assert probe.best_hits["top1"].mean() == max(probe.accuracies)
    assert probe.hits["top5"].all()
    assert probe.num_unreadable == 0


def test_workers_and_pieces_change_rounding_only() -> None:
    expected = train().head.weights[0]
    for loading in (replace(LOADING, num_workers=2), replace(LOADING, batch_size=100), replace(LOADING, batch_size=1)):
        torch.testing.assert_close(train(loading=loading).head.weights[0], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(train(loading=replace(LOADING, num_workers=1)).head.weights[0], expected)
    assert not torch.equal(train(replace(RECIPE, seed=4)).head.weights[0], expected)


class InterruptedHere(Exception):  # noqa: N818 - it is no error
    pass


def test_an_interrupted_training_goes_on_to_the_same_end(tmp_path: Path) -> None:
    path = tmp_path / "probe.pt"
    whole = train()

    class Stop(list[int]):
        def append(self, num: int) -> None:
            super().append(num)
            if sum(self) > 2 * 26 + 9:
                raise InterruptedHere

    with pytest.raises(InterruptedHere):
        train(checkpoint=path, progress=Stop())
    assert [file.name for file in tmp_path.iterdir()] == ["probe.pt"]
    progress: list[int] = []
    resumed = train(checkpoint=path, progress=progress)
    assert progress[0] == 2 * 26
    assert sum(progress) == 4 * 26
    assert torch.equal(resumed.head.weights[0], whole.head.weights[0])
    assert torch.equal(resumed.head.bias_momentum, whole.head.bias_momentum)
    assert resumed.accuracies == whole.accuracies
    np.testing.assert_array_equal(resumed.best_hits["top1"], whole.best_hits["top1"])
    # Once it is done there is nothing left to do.
    done = train(checkpoint=path)
    assert torch.equal(done.head.weights[0], whole.head.weights[0])
    np.testing.assert_array_equal(done.hits["top1"], whole.hits["top1"])


def test_checkpoints_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe.pt"
    train(checkpoint=path)
    for recipe in (replace(RECIPE, seed=4), replace(RECIPE, num_epochs=5), replace(RECIPE, learning_rate=0.1)):
        with pytest.raises(CheckpointError, match=r"probe.pt is no checkpoint of this probe"):
            train(recipe, checkpoint=path)
    with pytest.raises(CheckpointError, match="is no checkpoint of this probe"):
        train(images=source(25), checkpoint=path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be read as the checkpoint of a linear probe"):
        train(checkpoint=path)
    with pytest.raises(CheckpointError, match=f"there is no folder {tmp_path / 'none'} to save probe.pt in"):
        train(checkpoint=tmp_path / "none" / "probe.pt")


class Damaged(ArraySource):
    """Its first image cannot be read."""

    def read(self, index: int) -> Image.Image:
        if index == 0:
            raise UnreadableImage(self.ids[index], "is truncated")
        return super().read(index)


def test_unreadable_images_are_left_out_up_to_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    whole = source()
    damaged = Damaged(whole.pixels, whole.ids, whole.labels, whole.classes, "drawn", "drawn")
    probe = train(images=damaged, loading=replace(LOADING, batch_size=1))
    assert probe.num_unreadable == 1
    assert caplog.text.count("left out 0.png: is truncated") == 1
    assert probe.accuracies[-1] == 1.0
    with pytest.raises(DataError, match="1 of 26 images are unreadable"):
        train(images=damaged, loading=replace(LOADING, max_bad_fraction=0.01))


def test_a_head_that_diverges_is_an_error() -> None:
    with pytest.raises(TrainingError, match=r"not finite after epoch \d: the learning rate 1e\+38 is too high"):
        train(replace(RECIPE, learning_rate=1e38))
