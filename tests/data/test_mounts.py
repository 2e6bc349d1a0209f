"""Which file systems' folders do not tell of changes."""

import os
from pathlib import Path

from patchssl.data.mounts import untold_devices

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
36 22 0:31 / /mnt/bucket rw,nosuid shared:2 - fuse.gcsfuse bucket rw,user_id=0
37 22 0:32 / /mnt/a\\040b rw master:1 shared:3 - fuse /dev/fuse rw
38 22 8:1 / /mnt/ntfs rw - fuseblk /dev/sda1 rw
39 22 0:33 / /sys/fs/fuse/connections rw - fusectl fusectl rw
"""


def test_by_hand(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert untold_devices(tmp_path / "mounts") == {os.makedev(0, 31), os.makedev(0, 32)}


def test_a_system_without_such_a_list(tmp_path: Path) -> None:
    assert untold_devices(tmp_path / "none") == frozenset()


def test_of_this_system() -> None:
    assert all(isinstance(device, int) for device in untold_devices())
