"""Copies a version's folder and checks the weights in the copy against the digest in the log."""

from __future__ import annotations

import shutil
from pathlib import Path

from fulgurite.events import PolicyUpdate
from services.common.policies.route_targets import BadTarget, weights_path
from services.learner.files import complete_folder, sha256


class Damaged(BadTarget):
    """The weights are not those that were published."""


def pull(update: PolicyUpdate, target: Path) -> list[Path]:
    """Copy the folder of a version to `target`, which appears only when it is complete.

    Returns the files. Raises BadTarget, Damaged, OSError.
    """
    weights = _source(update)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadTarget(f"{target} exists and is not an empty folder: choose another one")
    assert update.artifact is not None
    with complete_folder(target.absolute()) as part:
        shutil.copytree(weights.parent, part, dirs_exist_ok=True)
        found = sha256(part / weights.name)
        if found != update.artifact.sha256:
            raise Damaged(
                f"{weights} has SHA-256 {found}, but policy.updates names "
                f"{update.artifact.sha256} for {update.version}: the file was damaged or replaced "
                "after it was published. Restore it from a backup, or pull another version"
            )
    return sorted(path for path in target.rglob("*") if path.is_file())


def _source(update: PolicyUpdate) -> Path:
    if update.artifact is None:
        raise BadTarget(f"the update {update.version} in policy.updates names no weights")
    path = weights_path(update)
    if path is None:
        raise BadTarget(
            f"the weights of {update.version} are at {update.artifact.uri}, which is no file: copy "
            "them with the tools of that store"
        )
    if path.is_file():
        return path
    if path.parent.parent.is_dir():
        raise BadTarget(
            f"the weights of {update.version} are gone: {path} is not there. The learner keeps the "
            "newest publish.keep, and what is routed; `fulgurite policy list` shows what is there"
        )
    raise BadTarget(
        f"{path} cannot be seen here: run the command where the learner's FULGURITE_DATA_DIR is "
        "mounted"
    )
