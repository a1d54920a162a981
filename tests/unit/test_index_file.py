"""The file of an index: what is stored of paths, and that no damage is read as data."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.property.test_fuzz import mutate_text
from tests.unit.data_files import make_index, write_coco, write_image
from yolov7.data.index import ImageIndex, load_index, save_index
from yolov7.data.read.coco import read_coco
from yolov7.errors import ArtifactError


def full_index(folder: Path) -> ImageIndex:
    """An index that has every column."""
    polygon = [10.0, 5.0, 30.0, 5.0, 30.0, 35.0]
    rows = [{"image_id": i % 3 + 1, "bbox": [10.3 + i, 5, 19.7, 30], "segmentation": [polygon]} for i in range(9)]
    return read_coco(write_coco(folder, images=[{}, {}, {}], annotations=rows))[0]


def test_an_index_is_the_same_after_it_was_stored(tmp_path: Path) -> None:
    index = full_index(tmp_path)
    save_index(tmp_path / "a.npz", index)
    loaded = load_index(tmp_path / "a.npz")
    assert loaded.evaluation_hash() == index.evaluation_hash()
    assert (loaded.paths, loaded.image_ids, loaded.category_ids) == (index.paths, (1, 2, 3), (3, 7))
    np.testing.assert_array_equal(loaded.objects_xywh, index.objects_xywh)
    save_index(tmp_path / "b.npz", loaded)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_images_inside_move_with_the_index_and_others_do_not(tmp_path: Path) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    for root, inner in ((project, "data"), (outside, ".")):
        index = make_index(root / inner)
        save_index(project / f"artifacts/{root.name}.npz", index, root=project)
    shutil.move(project, tmp_path / "deeper/copy")
    inside = load_index(tmp_path / "deeper/copy/artifacts/project.npz").paths
    assert inside[0] == tmp_path / "deeper/copy/data/0.png"
    assert load_index(tmp_path / "deeper/copy/artifacts/outside.npz").paths[0] == outside / "0.png"


@pytest.mark.parametrize("name", ["a\nb.png", "\udc80.png", "日本.png", "x" * 200 + ".png"])
def test_odd_paths_and_names_are_stored(tmp_path: Path, name: str) -> None:
    index = make_index(tmp_path, count=1)
    odd = ImageIndex(
        **(vars(index) | {"paths": (tmp_path / name,), "class_names": (name, "nul\0"), "image_ids": (10**30,)})
    )
    save_index(tmp_path / "a.npz", odd)
    loaded = load_index(tmp_path / "a.npz")
    assert (loaded.paths, loaded.class_names, loaded.image_ids) == (odd.paths, odd.class_names, (10**30,))


def test_a_thousand_mutations_are_refused_or_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    index = full_index(tmp_path)
    save_index(path, index)
    content, same, refused = path.read_bytes(), 0, 0
    messages: set[str] = set()
    for number in range(1000):
        path.write_bytes(_mutate(content, random.Random(number)))
        try:
            loaded = load_index(path)
        except ArtifactError as error:
            messages.add(str(error))
            refused += 1
        else:
            same += 1
            assert loaded.evaluation_hash() == index.evaluation_hash()
            assert (loaded.paths, loaded.class_names) == (index.paths, index.class_names)
    assert refused > 500
    assert all(text.isprintable() and "a.npz is damaged or of another version" in text for text in messages)
    assert same + refused == 1000


def _mutate(content: bytes, dice: random.Random) -> bytes:
    """Flip single bits, often in the directory of the archive, or change some bytes as in a text."""
    if dice.random() < 0.3:
        return mutate_text(content, dice)
    changed = bytearray(content)
    start = len(content) // 2 if dice.random() < 0.5 else 0
    for _ in range(dice.randint(1, 3)):
        changed[dice.randrange(start, len(content))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (b"", b"PK", b"PK\5\6" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match="damaged or of another version"):
            load_index(path)
    np.savez(path, version=np.int64(1), widths=np.zeros(3))
    with pytest.raises(ArtifactError, match=r"another version \(no digest\); prepare the data again"):
        load_index(path)
    write_image(tmp_path / "x.png")
