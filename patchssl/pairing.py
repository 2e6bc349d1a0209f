"""Pairs of rows for the loss: every teacher view with every other view."""

from collections.abc import Sequence

import torch
from torch import Tensor

from patchssl.structs import Pairs, PatchMatch


def cls_pairs(num_images: int, num_teacher_views: int, group_views: Sequence[int]) -> Pairs:
    """Pair the class token of each teacher view with that of every other view of the same image.

    Rows are image-major within a group of views, (B, V) flattened, and the groups follow one another. The first
    group begins with the teacher's views; a view is not paired with itself.

    Args:
        num_images: B.
        num_teacher_views: T.
        group_views: V of each group of student views.
    """
    students, teachers, view_pairs = [], [], []
    first_row = first_view = 0
    for group, num_views in enumerate(group_views):
        image, view, teacher = torch.meshgrid(
            torch.arange(num_images), torch.arange(num_views), torch.arange(num_teacher_views), indexing="ij"
        )  # (B, V, T)
        other = (view != teacher) if group == 0 else torch.ones_like(view, dtype=torch.bool)
        students.append((first_row + image * num_views + view)[other])
        teachers.append((image * num_teacher_views + teacher)[other])
        view_pairs.append(((first_view + view) * num_teacher_views + teacher)[other])
        first_row += num_images * num_views
        first_view += num_views
    return Pairs(torch.cat(students), torch.cat(teachers), torch.cat(view_pairs))


def patch_pairs(matches: Sequence[PatchMatch], num_teacher_patches: int) -> tuple[list[Tensor], Pairs]:
    """Pair the patches that a matching has brought together, leaving out student patches without a partner.

    Args:
        matches: for each group of student views, index and mask (B, V, T, N). A view's match with itself, in the
            first group, is ignored.
        num_teacher_patches: patches of one teacher view; teacher rows are (B, T, N) flattened.

    Returns:
        For each group, the (M_g,) rows of (B, V, N) flattened that have a partner; and the pairs, whose student
        rows count these kept rows, group after group.
    """
    kept: list[Tensor] = []
    students, teachers, view_pairs = [], [], []
    first_row = first_view = 0
    for group, match in enumerate(matches):
        _, num_views, num_teacher_views, num_patches = match.mask.shape
        mask = match.mask.clone()
        if group == 0:
            same = torch.arange(min(num_views, num_teacher_views), device=mask.device)
            mask[:, same, same] = False
        used = mask.any(dim=2).flatten()  # (B * V * N,)
        kept.append(used.nonzero()[:, 0])
        new_row = first_row + used.cumsum(0) - 1
        image, view, teacher, patch = mask.nonzero(as_tuple=True)  # (P,) each
        students.append(new_row[(image * num_views + view) * num_patches + patch])
        partner = match.index[image, view, teacher, patch]
        teachers.append((image * num_teacher_views + teacher) * num_teacher_patches + partner)
        view_pairs.append((first_view + view) * num_teacher_views + teacher)
        first_row += len(kept[-1])
        first_view += num_views
    return kept, Pairs(torch.cat(students), torch.cat(teachers), torch.cat(view_pairs))


def mean_weights(pairs: Pairs, num_pairs: int) -> Tensor:
    """(P,) the weight of each pair in a mean over num_pairs, which these are all of or a part of."""
    return torch.full((len(pairs),), 1 / max(1, num_pairs), device=pairs.student.device)


def flat_weights(pairs: Pairs, num_per_view_pair: Tensor) -> Tensor:
    """The weights of the authors' loss: pairs of views count alike, and so do all tokens, CLS or patch, within one.

    Args:
        pairs: P pairs of one kind of token, which are all of a batch's or a part of them.
        num_per_view_pair: (L,) how many pairs of tokens, of any kind, a batch has in each pair of views; those of a
            view with itself have none.

    Returns:
        (P,); over all tokens of a batch they sum to 1.
    """
    num_view_pairs = int((num_per_view_pair > 0).sum())
    weight = 1 / (num_view_pairs * num_per_view_pair.clamp(min=1).float())
    return weight[pairs.view_pair]


def count_per_view_pair(pairs: Pairs, num_view_pairs: int) -> Tensor:
    """(L,) int64: how many pairs of tokens there are in each pair of views, L = num_view_pairs."""
    return torch.bincount(pairs.view_pair, minlength=num_view_pairs)
