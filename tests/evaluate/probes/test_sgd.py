import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchssl.evaluate.probes.sgd import (
    Heads,
    _batches,
    converged,
    count_correct,
    fresh_heads,
    head_scores,
    logits,
    mean_losses,
    sgd_step,
    train_heads,
)

COLUMNS = [(0, 4), (2, 7), (0, 7)]
RATES = [0.02, 0.3]
NUM_CLASSES = 3


def heads_of(seed: int = 0, rates: list[float] = RATES) -> Heads:
    return fresh_heads(COLUMNS, rates, NUM_CLASSES, seed=seed)


def as_layer(heads: Heads, head: int) -> tuple[slice, float, nn.Linear]:
    """The columns, learning rate and weights of one head, read from the layout that the class documents."""
    num_rates = len(heads.rates) // heads.num_classes
    group, place = divmod(head, num_rates)
    columns = slice(*heads.columns[group])
    layer = nn.Linear(columns.stop - columns.start, heads.num_classes)
    with torch.no_grad():
        # (width, C, R) -> (C, width)
        layer.weight.copy_(heads.weights[group].unflatten(1, (heads.num_classes, num_rates))[:, :, place].T)
        layer.bias.copy_(heads.bias[group].unflatten(0, (heads.num_classes, num_rates))[:, place])
    return columns, float(heads.rates[place]), layer


def data(num: int = 40, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 7, generator=generator), torch.randint(0, NUM_CLASSES, (num,), generator=generator)


def test_one_step_worked_by_hand() -> None:
    heads = fresh_heads([(0, 1)], [0.5], 2, seed=0)
    heads.weights[0].zero_()
    features, targets = torch.tensor([[2.0]]), torch.tensor([1])
    sgd_step(heads, features, targets, factor=1.0)
    # Both classes have probability 1/2, so the gradient of W is 2 · (1/2, -1/2) and that of b (1/2, -1/2).
    assert heads.weights[0].tolist() == [[-0.5, 0.5]]
    assert heads.bias.tolist() == [[-0.25, 0.25]]
    sgd_step(heads, features, targets, factor=0.5)
    # Now the logits are ∓1.25 and the gradient of W is ±2 p with p = 1 / (1 + e^2.5).
    p = 1 / (1 + math.exp(2.5))
    moved = 0.5 * 0.5 * (0.9 * 1.0 + 2 * p)
    torch.testing.assert_close(heads.weights[0], torch.tensor([[-0.5 - moved, 0.5 + moved]]))
    torch.testing.assert_close(heads.bias[0, 1].item(), 0.25 + 0.25 * (0.9 * 0.5 + p))


def test_all_heads_together_equal_each_trained_alone_by_torch() -> None:
    features, targets = data()
    heads = heads_of()
    alone = [as_layer(heads, head) for head in range(len(heads))]
    num_iterations, batch_size, rows = 30, 16, np.arange(4, 40)
    train_heads(heads, features, targets, rows=rows, num_iterations=num_iterations, batch_size=batch_size, seed=5)
    for head, (columns, rate, layer) in enumerate(alone):
        optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9, weight_decay=0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_iterations, eta_min=0)
        order = np.concatenate([np.random.default_rng([5, epoch]).permutation(36) for epoch in range(14)])
        for step in range(num_iterations):
            chosen = rows[order[step * batch_size : (step + 1) * batch_size]]
            loss = nn.functional.cross_entropy(layer(features[chosen, columns]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        _, _, trained = as_layer(heads, head)
        torch.testing.assert_close(trained.weight, layer.weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(trained.bias, layer.bias, rtol=1e-5, atol=1e-5)
        expected = layer(features[:, columns]).detach()
        np.testing.assert_allclose(head_scores(heads, head, features), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(heads, features)[:, :, head], expected, rtol=1e-4, atol=1e-5)
        correct = int((expected.argmax(1) == targets).sum())
        assert count_correct(heads, features, targets)[head] == correct
        mean_loss = nn.functional.cross_entropy(expected, targets).item()
        assert mean_losses(heads, features, targets)[head] == pytest.approx(mean_loss, rel=1e-4)


def test_a_step_follows_the_gradient_of_the_summed_loss() -> None:
    features, targets = data(9)
    heads = heads_of()
    before = [weight.clone().requires_grad_() for weight in heads.weights]
    bias = heads.bias.clone().requires_grad_()
    answers = [
        (features[:, slice(*columns)] @ weight + bias[group]).unflatten(1, (NUM_CLASSES, -1))
        for group, (columns, weight) in enumerate(zip(COLUMNS, before, strict=True))
    ]
    losses = [
        nn.functional.cross_entropy(answer[:, :, place], targets) for answer in answers for place in range(len(RATES))
    ]
    torch.stack(losses).sum().backward()
    sgd_step(heads, features, targets, factor=0.25)
    for weight, start in zip(heads.weights, before, strict=True):
        assert start.grad is not None
        torch.testing.assert_close(weight, start.detach() - 0.25 * heads.rates * start.grad)
    assert bias.grad is not None
    torch.testing.assert_close(heads.bias, bias.detach() - 0.25 * heads.rates * bias.grad)


def test_initial_weights_are_narrow_normal_and_follow_the_seed() -> None:
    heads = fresh_heads([(0, 300)], [0.1, 0.2], 50, seed=3)
    assert heads.weights[0].std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(heads.weights[0].mean().item()) < 2e-4
    assert not heads.bias.any()
    assert torch.equal(heads.weights[0], fresh_heads([(0, 300)], [0.1, 0.2], 50, seed=3).weights[0])
    assert not torch.equal(heads.weights[0], fresh_heads([(0, 300)], [0.1, 0.2], 50, seed=4).weights[0])


def test_permuting_the_classes_permutes_the_answers() -> None:
    features, targets = data()
    permutation = torch.tensor([2, 0, 1])
    one, other = heads_of(), heads_of()
    for heads in (one, other):
        for weight in heads.weights:
            weight.zero_()
    arguments = {"rows": np.arange(40), "num_iterations": 20, "batch_size": 8, "seed": 0}
    train_heads(one, features, targets, **arguments)  # type: ignore[arg-type]
    train_heads(other, features, permutation[targets], **arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(logits(other, features)[:, permutation], logits(one, features))


def test_separable_classes_are_learned_whole() -> None:
    targets = torch.arange(60) % NUM_CLASSES
    features = torch.cat((torch.eye(NUM_CLASSES)[targets] * 3, torch.zeros(60, 4)), dim=1)
    heads = fresh_heads([(0, 7)], [0.5], NUM_CLASSES, seed=0)
    train_heads(heads, features, targets, rows=np.arange(60), num_iterations=100, batch_size=20, seed=0)
    assert count_correct(heads, features, targets).tolist() == [60]
    assert count_correct(heads, features, targets - 5).tolist() == [0]


def test_a_head_that_diverges_spoils_no_other() -> None:
    features, targets = data()
    features = features * 1e4
    good, both = heads_of(rates=[1e-8]), heads_of(rates=[1e-8, 1e36])
    for group, weight in enumerate(good.weights):
        weight.copy_(both.weights[group][:, ::2])
    for heads in (good, both):
        train_heads(heads, features, targets, rows=np.arange(40), num_iterations=20, batch_size=16, seed=0)
    assert converged(good).tolist() == [True] * 3
    assert converged(both).tolist() == [True, False] * 3
    for head in range(3):
        np.testing.assert_allclose(head_scores(both, 2 * head, features), head_scores(good, head, features), rtol=1e-4)


def test_evaluating_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = data()
    heads = heads_of()
    counts, scores = count_correct(heads, features, targets), head_scores(heads, 3, features)
    losses = mean_losses(heads, features, targets)
    monkeypatch.setattr("patchssl.evaluate.probes.sgd._CHUNK_VALUES", 50)
    np.testing.assert_array_equal(count_correct(heads, features, targets), counts)
    np.testing.assert_allclose(head_scores(heads, 3, features), scores, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mean_losses(heads, features, targets), losses, rtol=1e-6)


@pytest.mark.parametrize(("num", "batch_size"), [(10, 4), (7, 16), (6, 6)])
def test_batches_go_through_all_images_again_and_again(num: int, batch_size: int) -> None:
    batches = list(_batches(num, batch_size, 12, seed=0))
    assert [len(batch) for batch in batches] == [batch_size] * 12
    places = np.concatenate(batches)
    for epoch in range(len(places) // num):
        assert sorted(places[epoch * num : (epoch + 1) * num]) == list(range(num))
    assert places[:num].tolist() != places[num : 2 * num].tolist()
