"""Cells that are odd or missing: what they mean is said, or the column is refused by name."""

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from laws import looped
from oneway.checks import class_name
from oneway.data.classes import ClassOrder, map_labels
from oneway.data.tables import Levels, RecordEncoding, load_records, read_table_file
from oneway.errors import CorruptDataError, InvalidOptionError

ODD = ["1,250", "?", "<5", "3%", "unknown", ".", "-", "31.01.2024", "4711secret"]


def csv(folder, *columns, name="some.csv"):
    """Write a .csv file of columns: each a name and its cells, quoted where they hold a comma."""
    rows = zip(*([head, *cells] for head, cells in columns), strict=True)
    quoted = [[f'"{cell}"' if "," in cell else cell for cell in row] for row in rows]
    path = folder / name
    path.write_text("\n".join(map(",".join, quoted)) + "\n", encoding="utf-8")
    return path


NUMBERS = [str(number) for number in (12, 7.5, -3, 12, 40)]


@looped("odd", ODD)
def test_a_column_of_numbers_with_an_odd_cell_is_refused_with_counts_and_remedies(tmp_path, odd):
    path = csv(tmp_path, ("bmi", [*NUMBERS, odd]))
    with pytest.raises(CorruptDataError, match="of 6 cells that are not empty, 5 are num") as error:
        load_records(path, label=None)
    message = str(error.value)
    for part in ("column 'bmi' of", "--missing-value TEXT", "--categorical bmi", "missing_values="):
        assert part in message
    assert f"{odd!r}" not in message
    assert "4711" not in message
    nearly = odd in ("1,250", "3%")
    assert f"{int(nearly)} have a decimal comma" in message
    assert f"{int(not nearly)} are no numbers" in message


def test_a_few_numbers_among_texts_are_refused_if_they_are_more_various(tmp_path):
    cells = ["unknown"] * 30 + [str(number) for number in range(10)]
    with pytest.raises(CorruptDataError, match=r"'lab' of .* 10 are numbers, 0 have .* 30 are no"):
        load_records(csv(tmp_path, ("lab", cells)), label=None)


@looped("cells", [["1,5", "2,5", "1,5"], ["3%", "4%", "3%"], ["1.250,5", "2.250,5", "1.250,5"]])
def test_numbers_of_another_notation_are_no_categories(tmp_path, cells):
    with pytest.raises(CorruptDataError, match="0 are numbers, 3 have a decimal comma"):
        load_records(csv(tmp_path, ("dose", cells)), label=None)


@looped("cells", [["30-39", "40-49", "30-39"], ["<5", "5-10", ">10", "<5"], ["a", "b", "c1", "1"]])
def test_texts_with_digits_stay_categories(tmp_path, cells):
    records = load_records(csv(tmp_path, ("group", [*cells, cells[0]])), label=None)
    assert records.encoding.columns[0].categories == tuple(sorted(set(cells)))


def test_codes_of_digits_and_letters_are_categories_once_they_are_called_so(tmp_path):
    cells = ["250", "V45", "401", "250", "250.01"]
    path = csv(tmp_path, ("diagnosis", cells), ("class", ["1", "1b", "2", "2", "2"]))
    records = load_records(path, label="class", categorical=("diagnosis",))
    assert records.encoding.columns[0].categories == ("250", "250.01", "401", "V45")
    assert records.class_names == ("1", "1b", "2")
    frame = records.encoding.decode_frame(records.queries)
    assert frame["diagnosis"].tolist() == cells
    # Another table of such codes may hold digits alone.
    path = csv(tmp_path, ("diagnosis", ["401", "250"]), name="other.csv")
    other = load_records(path, label=None, encoding=records.encoding)
    assert records.encoding.decode_frame(other.queries)["diagnosis"].tolist() == ["401", "250"]


@looped("text", ["?", "-999", "unknown"])
def test_texts_that_mean_missing_are_missing_in_columns_of_any_kind(tmp_path, text):
    path = csv(
        tmp_path,
        ("age", ["30", text, "50", f" {text}"]),
        ("ward", ["ICU", "ER", text, "ER"]),
        ("smoker", ["True", text, "False", "True"]),
    )
    records = load_records(path, label=None, missing_values=(text,))
    frame = records.encoding.decode_frame(records.queries)
    assert frame["age"].tolist()[::2] == [30, 50]
    assert {name: frame[name].isna().tolist() for name in frame} == {
        "age": [False, True, False, True],
        "ward": [False, False, True, False],
        "smoker": [False, True, False, False],
    }
    assert records.notes == (
        "missing values, encoded as such: of 4 rows in column 'age' 2, 'ward' 1, 'smoker' 1",
    )


def test_values_that_mean_missing_are_missing_in_files_of_arrays(tmp_path):
    np.savez(tmp_path / "t.npz", age=[1, -9, 3], ward=np.array(["a", "?", "a"]), dose=[0.5, -9, 1])
    columns = read_table_file(tmp_path / "t.npz", missing_values=("?", "-9")).columns
    np.testing.assert_array_equal(columns["age"], [1, np.nan, 3])
    np.testing.assert_array_equal(columns["dose"], [0.5, np.nan, 1])
    assert columns["ward"].tolist() == ["a", None, "a"]
    with pytest.raises(InvalidOptionError, match=r"in a tuple: \('\?',\)"):
        read_table_file(tmp_path / "t.npz", missing_values="?")


def test_words_of_pandas_and_quoted_blanks_are_missing(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text('age,ward\n"12",ICU\n"",<NA>\n"13",ICU\nNULL,None\n')
    records = load_records(path, label=None)
    frame = records.encoding.decode_frame(records.queries)
    expected = pandas.read_csv(path)
    pandas.testing.assert_frame_equal(frame, expected)


def test_a_missing_value_in_a_column_without_one_in_the_auxiliary_table_is_refused(tmp_path):
    own = csv(tmp_path, ("age", ["1", "2", "3"]), ("ward", ["a", "b", "a"]), name="own.csv")
    other = csv(tmp_path, ("age", ["1", "", ""]), ("ward", ["a", "", "b"]), name="other.csv")
    encoding = load_records(own, label=None).encoding
    with pytest.raises(CorruptDataError, match=r"of 3 rows in column 'age' 2, 'ward' 1\. Fill"):
        load_records(other, label=None, encoding=encoding)


def test_a_number_is_wanted_where_the_auxiliary_table_has_numbers(tmp_path):
    own = csv(tmp_path, ("age", NUMBERS), name="own.csv")
    other = csv(tmp_path, ("age", ["old", "young", "1"]), name="other.csv")
    with pytest.raises(CorruptDataError, match=r"'age' of .* 1 are numbers, .* and 2 are no num"):
        load_records(other, label=None, encoding=load_records(own, label=None).encoding)


def test_a_column_without_any_value_is_refused(tmp_path):
    with pytest.raises(CorruptDataError, match=r"'empty' of .* has no value in any row. Drop it"):
        load_records(csv(tmp_path, ("empty", ["", ""]), ("n", ["1", "2"])), label=None)


@st.composite
def holed(draw):
    """A table with missing values in a numeric, a text and a boolean column."""
    rows = draw(st.integers(3, 9))

    def column(values):
        first = draw(values)  # twice, so that no column has another category in each row
        rest = draw(st.lists(values | st.none(), min_size=rows - 2, max_size=rows - 2))
        return [first, first, *rest]

    numbers = column(st.integers(-50, 50).map(float))
    return {
        "number": np.array([np.nan if value is None else value for value in numbers]),
        "text": np.array(column(st.sampled_from("abc")), object),
        "flag": np.array(column(st.booleans()), object),
    }


@given(holed())
def test_missing_values_are_encoded_in_0_to_1_and_decoded_as_missing(table):
    encoding = RecordEncoding.fit(table)
    encoded = encoding.encode(table)
    assert torch.equal(encoding.clip(encoded), encoded)
    assert ((encoded >= 0) & (encoded <= 1)).all()
    frame = encoding.decode_frame(encoded)
    matrix = encoding.decode(encoded)
    for place, (name, values) in enumerate(table.items()):
        missing = pandas.isna(values)
        assert encoding.columns[place].missing == missing.any()
        np.testing.assert_array_equal(frame[name].isna(), missing)
        np.testing.assert_array_equal(np.isnan(matrix[:, place]), missing)
        assert frame[name][~missing].tolist() == values[~missing].tolist()


@given(holed(), st.data())
def test_columns_without_missing_values_are_encoded_as_if_there_were_none_elsewhere(table, data):
    whole = {"age": np.arange(len(table["text"])) % 7.0, "ward": np.array(["x", "y"] * 9)}
    whole = {name: values[: len(table["text"])] for name, values in whole.items()}
    order = data.draw(st.permutations([*whole, *table]))
    both = RecordEncoding.fit({name: (whole | table)[name] for name in order})
    encoded, alone = both.encode(whole | table), RecordEncoding.fit(whole)
    for column in alone.columns:
        [same] = [c for c in both.columns if c.name == column.name]
        expected = alone.encode(whole)[:, column.start : column.stop]
        assert torch.equal(encoded[:, same.start : same.stop], expected)


def test_declared_categories_of_parquet_come_back_as_declared(tmp_path):
    levels = pandas.CategoricalDtype(["lo", "mid", "hi", "never"], ordered=True)
    frame = pandas.DataFrame({"level": ["mid", "lo", None, "hi", "lo"]}).astype({"level": levels})
    frame.to_parquet(tmp_path / "some.parquet")
    records = load_records(tmp_path / "some.parquet", label=None)
    [column] = records.encoding.columns
    assert column.categories == ("hi", "lo", "mid", None)
    assert column.levels == Levels(("lo", "mid", "hi", "never"), ordered=True)
    pandas.testing.assert_frame_equal(records.encoding.decode_frame(records.queries), frame)


def test_numbers_between_stored_integers_stay_between_them():
    encoding = RecordEncoding.fit({"age": np.array([20, 60])})
    assert encoding.decode_frame(encoding.encode({"age": np.array([30])}))["age"].dtype == np.int64
    between = encoding.decode_frame(encoding.encode({"age": np.array([30.5])}))
    assert between["age"].tolist() == pytest.approx([30.5])


@looped("kind", [">f4", ">f8", "g", ">i2", "<U3", ">U3"])
def test_arrays_of_any_number_or_text_type_are_read(tmp_path, kind):
    values = np.array(["1", "2", "1"], kind) if "U" in kind else np.array([1, 2, 1], kind)
    np.savez(tmp_path / "some.npz", x=values, y=values)
    records = load_records(tmp_path / "some.npz", label="y")
    assert records.labels.tolist() == [0, 1, 0]
    assert records.class_names == ("1", "2")
    assert records.encoding.decode(records.queries)[:, 0].tolist() in ([1, 2, 1], [0, 1, 0])


@looped("kind", ["c16", "S3"])
def test_arrays_that_are_neither_numbers_nor_texts_are_refused(tmp_path, kind):
    np.savez(tmp_path / "some.npz", x=np.array([1, 2, 1]).astype(kind), y=[1, 2, 1])
    for label in ("x", "y"):
        with pytest.raises(CorruptDataError, match=r"'x' holds (complex128|bytes24)"):
            load_records(tmp_path / "some.npz", label=label)


def test_a_suffix_may_be_written_in_capitals(tmp_path):
    path = csv(tmp_path, ("age", ["1", "2"]), name="AUX.CSV")
    assert read_table_file(path).columns["age"].tolist() == [1, 2]
    parquet.write_table(pyarrow.table({"age": [1, 2]}), tmp_path / "AUX.Parquet")
    assert read_table_file(tmp_path / "AUX.Parquet").columns["age"].tolist() == [1, 2]


def test_a_class_has_one_text_whatever_its_type():
    ones = [1, 1.0, np.float32(1), np.int8(1), np.longdouble(1), "1", np.str_("1")]
    assert {class_name(value) for value in ones} == {"1"}
    assert {class_name(value) for value in (True, np.True_, "True")} == {"True"}
    assert class_name(1.5) == "1.5"
    assert class_name("01") == "01"


def test_labels_are_found_by_text_and_classes_that_a_table_lacks_move_none(tmp_path):
    np.savez(tmp_path / "some.npz", x=np.arange(3.0), y=np.array([2.0, 10.0, 2.0]))
    own = load_records(tmp_path / "some.npz", label="y")
    order = ClassOrder(("10", "1", "2"), "the model")
    assert map_labels(own.labels, own.class_names, order, "the table").tolist() == [2, 0, 2]
    assert (own.labels.tolist(), own.class_names) == ([0, 1, 0], ("2", "10"))


def test_a_leading_zero_is_counted_in_numbers_and_kept_in_categories(tmp_path):
    """Postal codes: pandas drops the zeros, and so does a model that was fitted on its frame."""
    path = csv(
        tmp_path, ("plz", ["01067", "10115", "01067", "80331"]), ("bed", ["1", "2", "3", "0"])
    )
    records = load_records(path, label=None)
    assert [column.kind for column in records.encoding.columns] == ["numeric", "numeric"]
    (note,) = records.notes
    assert note.startswith("column 'plz': 2 of 4 cells begin with a zero")
    assert "--categorical plz" in note

    codes = load_records(path, label=None, categorical=("plz",))
    assert codes.encoding.columns[0].categories == ("01067", "10115", "80331")
    assert codes.notes == ()
    others = csv(tmp_path, ("plz", ["80331", "10115"]), ("bed", ["1", "1"]), name="test.csv")
    again = load_records(others, label=None, categorical=("plz",), encoding=codes.encoding)
    assert again.encoded[:, :3].tolist() == [[0, 0, 1], [0, 1, 0]]


def test_hexadecimal_codes_are_texts_as_for_pandas(tmp_path):
    """Arrow's reader takes them for numbers."""
    path = csv(tmp_path, ("code", ["0x1F", "0x20", "0x1F"]))
    assert load_records(path, label=None).encoding.columns[0].categories == ("0x1F", "0x20")


def test_labels_with_leading_zeros_are_classes_of_their_own(tmp_path):
    path = csv(tmp_path, ("x", ["1", "2", "3"]), ("y", ["01", "1", "01"]))
    records = load_records(path, label="y")
    assert records.class_names == ("01", "1")
    assert records.labels.tolist() == [0, 1, 0]


FRAME = pandas.DataFrame({"age": [20.5, 31, 44, 52], "ward": ["A", "B", "A", "B"]})


@looped(
    ("name", "write", "index"),
    [
        ("rows.csv", lambda frame, path: frame.to_csv(path), [0, 1, 2, 3]),
        ("rows.csv", lambda frame, path: frame.to_csv(path), [7, 3, 9, 1]),
        ("rows.parquet", lambda frame, path: frame.to_parquet(path), [7, 3, 9, 1]),
        ("rows.parquet", lambda frame, path: frame.to_parquet(path), list("pqrs")),
    ],
)
def test_row_names_that_pandas_wrote_are_no_column_of_the_model(tmp_path, name, write, index):
    path = tmp_path / name
    write(FRAME.set_axis(index), path)
    records = load_records(path, label="ward")
    assert [column.name for column in records.encoding.columns] == ["age"]
    assert records.notes[0].startswith("row names that pandas wrote are left out, 1 of 3 columns:")


def test_row_names_that_the_user_drops_are_known(tmp_path):
    FRAME.set_axis([7, 3, 9, 1]).to_parquet(tmp_path / "rows.parquet")
    records = load_records(tmp_path / "rows.parquet", label="ward", drop=("__index_level_0__",))
    assert records.notes == ()
    assert len(records.encoding.columns) == 1


@looped("head", [("", "x"), ("x", ""), ("x", " ")])
def test_a_column_without_a_name_is_refused(tmp_path, head):
    path = csv(tmp_path, *((name, ["1.5", "2.5", "1.5"]) for name in head))
    with pytest.raises(CorruptDataError, match=rf"column {2 - (not head[0])} has no name"):
        load_records(path, label=None)


@looped(
    ("values", "kept"), [([2**53, 2**53 + 1, 5], 2), ([-(2**53), -(2**53) - 1, 5], 2), ([2**60], 1)]
)
def test_whole_numbers_that_float64_makes_one_are_refused(tmp_path, values, kept):
    np.savez(tmp_path / "ids.npz", id=np.array(values), x=np.arange(len(values)) / 2)
    if kept == len(values):
        assert load_records(tmp_path / "ids.npz", label=None).encoding.columns[0].high == 2**60
        return
    message = rf"'id' of .* of {len(values)} different ones {kept} stay different.*--drop id"
    with pytest.raises(CorruptDataError, match=message):
        load_records(tmp_path / "ids.npz", label=None)


def test_large_class_numbers_stay_apart(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(4) / 2, y=np.array([2**53 + 1, 2**53, 7, 2**53 + 1]))
    records = load_records(tmp_path / "a.npz", label="y")
    assert records.class_names == ("7", str(2**53), str(2**53 + 1))
    assert records.labels.tolist() == [2, 1, 0, 2]
