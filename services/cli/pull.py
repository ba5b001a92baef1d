"""Copies a version's folder and checks the weights in the copy against the digest in the log."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from fulgurite.events import PolicyUpdate
from services.common.policies.route_targets import BadTarget, weights_path
from services.common.runtime import weights_index
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
        announced = {part / weights.name: update.artifact.sha256}
        _check(announced, weights.parent, update)
        if weights.name == weights_index.NAME:
            try:
                shards = weights_index.digests(part / weights.name)
            except weights_index.IndexUnreadable as error:
                raise Damaged(str(error)) from error
            _check(shards, weights.parent, update)
    return sorted(path for path in target.rglob("*") if path.is_file())


def _check(announced: Mapping[Path, str], source: Path, update: PolicyUpdate) -> None:
    """Raise Damaged unless copied files have the digests that were published."""
    for path, digest in announced.items():
        found = sha256(path)
        if found != digest:
            raise Damaged(
                f"{source / path.name} has SHA-256 {found}, but policy.updates names {digest} for "
                f"{update.version}: the file was damaged or replaced after it was published. "
                "Restore it from a backup, or pull another version"
            )


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
