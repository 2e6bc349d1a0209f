"""What has changed in a tree of folders since it was listed: only that is listed again."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from patchssl.data.folder_tree import LISTED, LOOP, UNREADABLE, Found, Tree, find, folder_stamp


@dataclass(slots=True)
class _Changes:
    """Folders, by their paths.

    Attributes:
        again: that have to be listed again, since something may have been put into them or taken away.
        gone: that are no longer there, or are others, with all below them.
    """

    again: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Known:
    """What was known of a folder that is listed again.

    Attributes:
        state: what it was.
        real: where it lies, if it was reached by a link.
        inside: the folders in it that are as they were, and whether these are links.
    """

    state: int
    real: str
    inside: dict[str, bool] = field(default_factory=dict)


def find_again(root: Path, tree: Tree) -> Tree:
    """A tree as `find` would list it now.

    The times of a folder change when something is put into it, taken away or renamed, so that it is enough to ask for
    the times of all folders. Another folder in the place of an old one is told by its inode, and links that led to no
    folder are asked whether they do now.

    Args:
        root: the folder.
        tree: what it held.

    Returns:
        The same tree if nothing has changed.
    """
    found = Found.below(root)
    changes = _changes(found, tree)
    if changes is None:
        return find(root)
    if not changes.again:
        return tree
    known = _known(tree, changes)
    for path in sorted(changes.again):
        if not _lies_in_one_of(path, changes.gone):
            _list_again(found, path, known[path], changes.gone)
    if all(known[path].state == found.folders.get(path, (None, ""))[0] == UNREADABLE for path in changes.again):
        return tree
    _keep_the_rest(found, tree, changes)
    return found.tree()


def _changes(found: Found, tree: Tree) -> _Changes | None:
    """What has to be listed again; None where the root itself is another folder."""
    changes = _Changes()
    for path, known, state, real in tree.known():
        above = _above(path)
        if path and above in changes.gone:
            changes.gone.add(path)
            continue
        full = found.full(path)
        now = folder_stamp(full)
        if now is None or now[:2] != known[:2] or (real and os.path.realpath(full) != real):
            if not path:
                return None
            changes.gone.add(path)
            changes.again.add(above)
        elif state != LOOP and (state != LISTED or now != known):
            changes.again.add(path)
    for path in tree.links:
        above = _above(path)
        if above not in changes.gone and os.path.isdir(found.full(path)):  # noqa: PTH112 - paths are text
            changes.again.add(above)
    return changes


def _known(tree: Tree, changes: _Changes) -> dict[str, _Known]:
    known = dict[str, _Known]()
    for path, _, state, real in tree.known():
        if path in changes.again:
            known[path] = _Known(state, real)
        above, _, name = path.rpartition(os.sep)
        if path and above in known and path not in changes.gone:
            known[above].inside[name] = bool(real)
    return known


def _list_again(found: Found, path: str, known: _Known, gone: set[str]) -> None:
    """List a folder again, and what has come into it; add to what is gone."""
    prefix = path + os.sep if path else ""
    folders = dict(found.list_folder(path, known.real))
    gone |= {prefix + name for name, is_link in known.inside.items() if folders.get(name) != is_link}
    for name, is_link in folders.items():
        if known.inside.get(name) != is_link:
            found.walk(prefix + name, is_link=is_link)


def _keep_the_rest(found: Found, tree: Tree, changes: _Changes) -> None:
    """Add what was not listed again."""
    outdated = changes.again | changes.gone
    for path, stamp, state, real in tree.known():
        if path and _above(path) in changes.gone:
            changes.gone.add(path)
            outdated.add(path)
        elif path not in outdated:
            found.add(path, stamp, state, real)
    found.files += [path for path in tree.files if _above(path) not in outdated]
    found.links += [path for path in tree.links if _above(path) not in outdated]


def _above(path: str) -> str:
    """The folder that a path lies in."""
    return path.rpartition(os.sep)[0]


def _lies_in_one_of(path: str, folders: set[str]) -> bool:
    """Whether a path is one of these folders or lies below one."""
    while path:
        if path in folders:
            return True
        path = _above(path)
    return False
