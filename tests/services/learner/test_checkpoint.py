"""A checkpoint is there whole, or told to be damaged: never half of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.learner.checkpoint import CheckpointState, CheckpointStore
from services.learner.errors import CheckpointDamaged


def state(serial: int) -> CheckpointState:
    return CheckpointState(
        policy="policy",
        topic="trajectories",
        topic_id="t",
        epoch=1,
        step=serial,
        version=f"policy@1.{serial}",
        serial=serial,
        positions=(),
        settled={},
    )


def tensors(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights.bin").write_bytes(bytes(100))
    (folder / "optimizer.bin").write_bytes(bytes(10))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore(tmp_path, "policy", durable=False)
    made.write(state(1), tensors)
    made.write(state(2), None)
    return made


def test_the_newest_comes_back_with_the_tensors_of_the_one_before(store: CheckpointStore) -> None:
    found = store.latest()
    assert found is not None
    assert found[0].step == 2
    assert found[1] == store.folder / "00000002" / "trainer"


def test_without_tensors_there_is_no_trainers_folder(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "policy", durable=False)
    assert store.latest() is None
    store.write(state(1), None)
    found = store.latest()
    assert found is not None
    assert found[1] is None


@pytest.mark.parametrize(
    "name", ["state.json", "trainer/model/weights.bin", "trainer/optimizer.bin"]
)
@pytest.mark.parametrize("size", [None, 0, 5])
def test_a_restore_that_broke_off_is_told_with_the_remedy(
    store: CheckpointStore, name: str, size: int | None
) -> None:
    path = store.folder / "00000002" / name
    if size is None:
        path.unlink()
    else:
        os.truncate(path, size)
    with pytest.raises(CheckpointDamaged, match="FULGURITE_DATA_DIR") as told:
        store.latest()
    assert "00000002" in str(told.value)
    assert path.name in str(told.value) or name == "state.json"


def test_a_checkpoint_from_before_sizes_were_kept_is_taken(store: CheckpointStore) -> None:
    path = store.folder / "00000002" / "state.json"
    path.write_bytes(
        path.read_bytes().replace(b',"files":{"model/weights.bin":100,"optimizer.bin":10}', b"")
    )
    found = store.latest()
    assert found is not None
    assert found[0].files == {}


def write_batch(path: Path) -> None:
    path.write_bytes(b"batch")


def test_batches_stay_until_the_next_tensors(store: CheckpointStore) -> None:
    for serial in (3, 4):
        store.write(state(serial), None, write_batch)
    store.write(state(5), None)
    assert [path.name for path in store.batches()] == [
        "00000003.safetensors",
        "00000004.safetensors",
    ]
    found = store.latest()
    assert found is not None
    assert found[0].batches == {"00000003.safetensors": 5, "00000004.safetensors": 5}
    os.truncate(store.batches()[0], 1)
    with pytest.raises(CheckpointDamaged, match=r"00000003\.safetensors missing or incomplete"):
        store.latest()
    store.write(state(6), tensors)
    assert store.batches() == []


def test_tensors_written_beside_the_loop_replace_the_batches_up_to_their_step(
    store: CheckpointStore,
) -> None:
    for serial in (3, 4):
        store.write(state(serial), None, write_batch)
    beside = store.folder_beside(3)
    (beside / "new.bin").write_bytes(bytes(7))
    found = store.latest()
    assert found is not None
    assert "new.bin" not in found[0].files, (
        "they are part of no checkpoint before they are complete"
    )
    store.adopt(beside, 3, 5)
    found = store.latest()
    assert found is not None
    assert (found[0].version, found[0].serial) == ("policy@1.4", 5)
    assert found[0].files == {"new.bin": 7}
    assert [path.name for path in store.batches()] == ["00000004.safetensors"]
    assert not beside.exists()


def test_what_a_killed_learner_was_writing_is_removed(tmp_path: Path) -> None:
    killed = CheckpointStore(tmp_path, "policy", durable=False)
    killed.folder_beside(1)
    assert list(CheckpointStore(tmp_path, "policy", durable=False).folder.iterdir()) == []
