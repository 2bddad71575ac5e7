"""Data of every kind becomes the same queries."""

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from oneway.errors import InvalidOptionError, InvalidTensorError, OnewayError
from oneway.interface import Reading, read_rows
from oneway.interface.data import read_pair

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 5), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Pairs(torch.utils.data.Dataset):
    """A data set of PyTorch, as torchvision's are after ToTensor."""

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, at):
        return torch.from_numpy(PIXELS[at]).float()[None] / 255, int(LABELS[at])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    for at, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        (place / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / str(label) / f"{at}.png")
    np.savez(place.parent / "all.npz", images=PIXELS, labels=LABELS)
    return place


def test_images_are_the_same_queries_however_they_come(folder):
    expected = torch.from_numpy(PIXELS).float()[:, None] / 255
    forms = {
        "bytes": PIXELS,
        "floats": PIXELS[:, None] / np.float32(255),
        "channels last": PIXELS[..., None],
        "a tensor": torch.from_numpy(PIXELS)[:, None],
        "a file": folder.parent / "all.npz",
        "a path in text": str(folder.parent / "all.npz"),
        "a data set": Pairs(),
        "a pair": (PIXELS, LABELS),
        "a subset": torch.utils.data.Subset(Pairs(), range(6)),
    }
    for name, data in forms.items():
        rows = read_rows(data, "the queries")
        torch.testing.assert_close(rows.queries, expected, msg=name)
        if rows.labels is not None:
            assert rows.labels.tolist() == LABELS.tolist(), name
    assert sum(read_rows(data, "").labels is not None for data in forms.values()) == 5
    rows = read_rows(folder, "the queries")  # sorted by class
    order = np.argsort(LABELS, kind="stable")
    torch.testing.assert_close(rows.queries, expected[order])
    assert rows.names == ("0", "1", "2")


def test_tables_are_the_same_queries_however_they_come(tmp_path):
    frame = pandas.DataFrame({"age": [20.0, 30, 50], "ward": ["b", "a", "b"], "risk": [1, 0, 1]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    reading = Reading(label="risk")
    forms = (tmp_path / "rows.csv", tmp_path / "rows.parquet", frame, frame.set_index("ward"))
    rows, *others = (read_rows(form, "the rows", reading) for form in forms[:3])
    for other in others:
        torch.testing.assert_close(other.queries, rows.queries)
        assert other.labels.tolist() == rows.labels.tolist() == [1, 0, 1]
        assert [c.name for c in other.encoding.columns] == ["age", "ward"]
    named = read_rows((frame[["age", "ward"]], ["x", "y", "x"]), "the rows")
    torch.testing.assert_close(named.queries, rows.queries)
    assert (named.labels.tolist(), named.names) == ([0, 1, 0], ("x", "y"))
    # A matrix is a table without names of columns.
    matrix = read_rows(frame[["age", "risk"]].to_numpy(), "the rows")
    assert matrix.queries.tolist() == [[0, 1], [pytest.approx(1 / 3), 0], [1, 1]]


def test_what_cannot_be_queries_is_refused_before_any_work(tmp_path):
    frame = pandas.DataFrame({"age": [20.0, 30]})
    with pytest.raises(InvalidOptionError, match="must both be tables, or both images"):
        read_pair((frame, "the attacker's data"), (tmp_path / "is not there", "the queries"))
    with pytest.raises(InvalidTensorError, match=r"must be a path, an array, .* but is int"):
        read_rows(3, "the queries")
    with pytest.raises(InvalidTensorError, match="of 0 items"):
        read_rows(torch.utils.data.Subset(Pairs(), []), "the queries")
    with pytest.raises(InvalidOptionError, match="classes of its own"):
        read_rows((frame.assign(y=1), [0, 1]), "the queries", Reading(label="y"))
    with pytest.raises(OnewayError, match="shape"):
        read_rows((PIXELS, LABELS[:3]), "the queries")


def test_rows_that_both_tables_hold_by_chance_are_left_out_of_the_queries():
    own = np.arange(40.0).reshape(20, 2)
    test = np.concatenate([own[:2], own[:-1] + 0.5])
    rows = read_pair((own, "own"), (test, "test"))[1]
    assert len(rows.queries) == 19
    assert rows.notes[-1].startswith("2 of 21 rows are left out")
    same = read_pair((own, "own"), (own, "test"))[1]  # an audit refuses this
    assert len(same.queries) == 20
