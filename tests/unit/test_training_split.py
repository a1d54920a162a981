"""Training on a part of the training split."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.integration.runs import WORKER, make_job, prepared
from yolov7.data.index import ImageIndex, load_index, save_index
from yolov7.data.selection import keep_images, select_images
from yolov7.training.loop import Trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("split"), train_images=12, val_images=2, image_size=64)


@pytest.fixture
def index(data: Path) -> ImageIndex:
    return load_index(data / "train.npz")


def test_more_images_contain_fewer_ones_whatever_the_order_and_the_names(index: ImageIndex) -> None:
    chosen = [set(keep_images(index, count).hashes) for count in (1, 3, 7, 12)]
    assert [len(hashes) for hashes in chosen] == [1, 3, 7, 12]
    assert all(few < many for few, many in itertools.pairwise(chosen))
    half = select_images(index, np.arange(6))
    assert set(keep_images(half, 3).hashes) == set(sorted(half.hashes)[:3])
    assert keep_images(index, 0) is keep_images(index, 13) is index


def test_images_keep_their_boxes(index: ImageIndex) -> None:
    kept = keep_images(index, 5)
    for place, name in enumerate(kept.hashes):
        whole = index.hashes.index(name)
        np.testing.assert_array_equal(kept.boxes_of(place), index.boxes_of(whole))
        np.testing.assert_array_equal(kept.labels_of(place), index.labels_of(whole))


def test_a_run_trains_on_these_images_and_says_so(data: Path, index: ImageIndex, tmp_path: Path) -> None:
    job = make_job(data, tmp_path / "few", max_images=5)
    trainer = Trainer(job, WORKER)
    trainer.resume()
    assert len(trainer._loader) == 2  # 5 images, 4 in a batch
    notes = (tmp_path / "few" / "notes.txt").read_text()
    assert "training uses 5 images of the training split (max_images=5)" in notes
    assert job.fingerprint != make_job(data, tmp_path, max_images=6).fingerprint


def test_the_same_images_alone_give_the_same_run(data: Path, index: ImageIndex, tmp_path: Path) -> None:
    """A training on a split that contains only these images ends with the same weights."""
    alone = tmp_path / "alone"
    alone.mkdir()
    save_index(alone / "train.npz", keep_images(index, 5))
    weights = []
    for folder, changes in ((data, {"max_images": 5}), (alone, {})):
        trainer = Trainer(make_job(folder, tmp_path / folder.name / "run", **changes), WORKER)
        trainer.resume()
        trainer.run_epoch()
        weights.append(trainer._state.model.state_dict())
    for name, value in weights[0].items():
        assert value.equal(weights[1][name]), name
