"""Whose folder it is, and who else could write to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gr00t_trt.common.private_folder import distrust, make_private

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no user ids here")


def test_a_folder_is_made_for_this_user_alone_and_an_older_one_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "above" / "own"
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    make_private(folder)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert distrust(folder) is None
    assert distrust(tmp_path / "nothing") is None


@pytest.mark.parametrize("mode", [0o702, 0o720, 0o777])
def test_what_others_can_write_to_is_not_trusted(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert f"others may write to it (mode {mode:04o})" == distrust(tmp_path)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    real, link, dead = tmp_path / "real", tmp_path / "link", tmp_path / "dead"
    real.mkdir(mode=0o755)
    link.symlink_to(real)
    dead.symlink_to(tmp_path / "nowhere")
    assert distrust(link) is None
    real.chmod(0o777)
    assert "others may write" in str(distrust(link))
    assert distrust(dead) == "it is a dead link"


def test_what_belongs_to_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.stat(tmp_path).st_uid
    if owner == 0:
        os.chown(tmp_path, 65534, -1)
        owner = 65534
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert str(distrust(tmp_path)).startswith(f"it belongs to user {owner}")
