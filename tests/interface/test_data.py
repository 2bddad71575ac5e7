"""Data of every kind becomes the same queries."""

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from pyarrow import table as arrow

from oneway.errors import CorruptDataError, InvalidOptionError, InvalidTensorError, OnewayError
from oneway.interface import Reading, open_model, read_rows
from oneway.interface.data import read_pair
from optional import later

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
        "tuples of one": torch.utils.data.TensorDataset(expected),
        "big-endian numbers": expected.numpy().astype(">f4"),
        "tensors on a graph": [(image.clone().requires_grad_(), 1) for image in expected],
        "a file of one array": folder.parent / "all.npy",
    }
    np.save(folder.parent / "all.npy", PIXELS)
    for name, data in forms.items():
        rows = read_rows(data, "the queries")
        torch.testing.assert_close(rows.queries, expected, msg=name)
        if rows.labels is not None and name != "tensors on a graph":
            assert rows.labels.tolist() == LABELS.tolist(), name
    assert sum(read_rows(data, "").labels is not None for data in forms.values()) == 6
    rows = read_rows(folder, "the queries")  # sorted by class
    order = np.argsort(LABELS, kind="stable")
    torch.testing.assert_close(rows.queries, expected[order])
    assert rows.names == ("0", "1", "2")


def test_tables_are_the_same_queries_however_they_come(tmp_path):
    frame = pandas.DataFrame({"age": [20.0, 30, 50], "ward": ["b", "a", "b"], "risk": [1, 0, 1]})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    reading = Reading(label="risk")
    patients = frame.set_index(pandas.Index(["Ann", "Bo", "Cy"], name="patient"))  # no column
    forms = (tmp_path / "rows.csv", tmp_path / "rows.parquet", frame, patients, arrow(frame))
    rows, *others = (read_rows(form, "the rows", reading) for form in forms)
    for other in others:
        torch.testing.assert_close(other.queries, rows.queries)
        assert other.labels.tolist() == rows.labels.tolist() == [1, 0, 1]
        assert [c.name for c in other.encoding.columns] == ["age", "ward"]
    texts = ["x", "y", "x"]
    for classes in (texts, pandas.Series(texts), pandas.Categorical(texts)):
        named = read_rows((frame[["age", "ward"]], classes), "the rows")
        torch.testing.assert_close(named.queries, rows.queries)
        assert (named.labels.tolist(), named.names) == ([0, 1, 0], ("x", "y"))
    assert read_rows(list(zip(PIXELS[:3], texts, strict=True)), "").names == ("x", "y")
    # A matrix is a table without names of columns.
    matrix = read_rows(frame[["age", "risk"]].to_numpy(), "the rows")
    assert matrix.queries.tolist() == [[0, 1], [pytest.approx(1 / 3), 0], [1, 1]]
    np.save(tmp_path / "rows.npy", frame[["age", "risk"]].to_numpy())
    sparse = later("scipy.sparse:csr_array")(frame[["age", "risk"]].to_numpy())
    tensor = torch.from_numpy(sparse.toarray()).to_sparse()
    for other in (tmp_path / "rows.npy", sparse, tensor):
        assert torch.equal(read_rows(other, "the rows").queries, matrix.queries)


def test_a_frame_that_holds_anything_else_is_refused_by_column_and_without_a_cell():
    frame = pandas.DataFrame({"age": [20.0, 30, 50]})
    for column in (
        pandas.Series([1, "SECRET", 2.5], dtype=object),
        pandas.cut(frame.age, [0, 25, 60]),
        frame.age + 1j,
    ):
        with pytest.raises(CorruptDataError, match="but 'odd' holds") as refused:
            read_rows(frame.assign(odd=column), "the rows")
        assert "SECRET" not in str(refused.value)
        dropped = read_rows(frame.assign(odd=column), "the rows", Reading(drop=("odd",)))
        assert torch.equal(dropped.queries, read_rows(frame, "the rows").queries)
    with pytest.raises(CorruptDataError, match="'age' stands for more than one"):
        read_rows(pandas.concat([frame, frame], axis=1), "the rows")
    sparse = frame.assign(age=pandas.arrays.SparseArray(frame.age))
    assert torch.equal(read_rows(sparse, "").queries, read_rows(frame, "").queries)


def test_rows_of_tables_are_compared_by_their_values_whatever_the_encoding():
    frame = pandas.DataFrame(
        {"age": [20.0, 30, np.nan, 1e300], "ward": ["b", None, "c", "b"], "ill": [True, False] * 2}
    )
    rows = read_rows(frame, "the rows").compared
    part = read_rows(frame[["ill", "ward", "age"]][1:], "").compared  # in another order
    assert torch.equal(part, rows[1:])
    assert rows.isfinite().all()
    for column in range(3):  # each column counts
        assert len(rows[:, column].unique()) == len(frame.iloc[:, [0, 2, 1][column]].unique())


def test_a_function_gets_the_floating_type_of_its_array():
    """An MLflow model with a signature of float32 takes nothing else."""
    asked = []

    def score(rows):
        asked.append(rows.dtype)
        return np.stack([rows[:, 0], -rows[:, 0]], 1)

    for kind in (np.float32, np.float64):
        rows = read_rows(np.arange(6.0).reshape(3, 2).astype(kind), "the rows")
        rows.asked(open_model(score, outputs="logits"))(rows.queries)
    assert asked == [np.float32, np.float64]


def test_columns_of_a_matrix_are_those_of_a_model_that_was_fitted_on_names():
    values = np.random.default_rng(0).normal(size=(40, 12))
    frame = pandas.DataFrame(values, columns=[f"measure {place}" for place in range(12)])
    model = later("sklearn.linear_model:LogisticRegression")().fit(frame, values[:, 0] > 0)
    target = open_model(model)
    asked = [
        rows.asked(target)(rows.queries) for rows in (read_rows(d, "") for d in (frame, values))
    ]
    torch.testing.assert_close(*asked)
    fewer = read_rows(values[:, 1:], "")
    with pytest.raises(InvalidTensorError, match="fitted on 12 features"):
        fewer.asked(target)(fewer.queries)
    with pytest.raises(InvalidTensorError, match=r"'measure 9', … \(12 in all\), but") as refused:
        read_rows(frame.assign(more=1), "").asked(target)
    assert "measure 11" not in str(refused.value)


def test_a_model_is_asked_with_a_missing_value_as_its_frame_has_it():
    """To a one-hot encoder None and NaN are two categories."""
    for column in (["a", "b", None, "a"], [True, False, None, True], ["a", "b", np.nan, "a"]):
        frame = pandas.DataFrame({"ward": pandas.Series(column, dtype=object)})
        rows = read_rows(frame, "the rows")
        asked = rows.encoding.decode_frame(rows.queries)
        assert [repr(value) for value in asked.ward] == [repr(value) for value in column]


def test_what_cannot_be_queries_is_refused_before_any_work(tmp_path):
    frame = pandas.DataFrame({"age": [20.0, 30]})
    with pytest.raises(InvalidOptionError, match="must both be tables, or both images"):
        read_pair((frame, "the attacker's data"), (tmp_path / "is not there", "the queries"))
    with pytest.raises(InvalidTensorError, match=r"must be a path, an array, .* but is int"):
        read_rows(3, "the queries")
    with pytest.raises(InvalidTensorError, match=r"numbers, .* but are str\. .*pass the \(N, K\)"):
        read_rows(["good film", "bad film"], "the queries")
    with pytest.raises(InvalidTensorError, match=r"numbers, .* but are str\. .*pass the \(N, K\)"):
        read_rows(np.array(["ok", "good film"], object), "the queries")
    with pytest.raises(InvalidTensorError, match=r"is DataLoader\. Pass its `dataset`"):
        read_rows(torch.utils.data.DataLoader(Pairs()), "the queries")
    (tmp_path / "rows.csv.gz").write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"that ends in .npz, .* but got .*csv\.gz"):
        read_rows(tmp_path / "rows.csv.gz", "the queries")
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
