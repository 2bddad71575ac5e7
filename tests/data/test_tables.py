"""Records: what becomes of a table's rows, what comes back, and what is refused and how."""

import sys
from functools import partial

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from laws import looped
from oneway.data.classes import ClassOrder, map_labels
from oneway.data.tables import RecordEncoding, load_records
from oneway.data.tables.files import read_table_file
from oneway.errors import (
    CorruptDataError,
    InvalidOptionError,
    InvalidTensorError,
    MissingDataError,
    MissingExtraError,
    UnknownNameError,
)

UNSEEN = "4711secret"

AUXILIARY = {
    "age": np.array([20, 60, 40, 30]),
    "job": np.array(["cook", "smith", "cook", "baker"]),
    "income": np.array([1.5, -2.25, 1e6, 3.0]),
    "member": np.array([True, False, True, True]),
    "month": np.array([1, 12, 10, 1]),
    "constant": np.array([7.5, 7.5, 7.5, 7.5]),
}
TEST = {
    "age": np.array([25, 70, 10]),
    "job": np.array(["baker", "smith", "baker"]),
    "income": np.array([2.5, 2e6, 0.0]),
    "member": np.array([False, False, False]),
    "month": np.array([12, 10, 10]),
    "constant": np.array([7.5, 8.0, 7.0]),
}
fit = partial(RecordEncoding.fit, categorical=("month",))


def fitted() -> RecordEncoding:
    return fit(AUXILIARY)


def write_csv(path, table):
    pandas.DataFrame(table).to_csv(path, index=False)


def write_parquet(path, table):
    parquet.write_table(pyarrow.table({name: list(cells) for name, cells in table.items()}), path)


def write_npz(path, table):
    np.savez(path, **table)


WRITERS = {".csv": write_csv, ".parquet": write_parquet, ".npz": write_npz}


def write(folder, suffix, table, name="some"):
    path = folder / f"{name}{suffix}"
    WRITERS[suffix](path, table)
    return path


def test_each_column_has_its_places_range_and_sorted_categories():
    encoding = fitted()
    assert [(c.name, c.kind, c.start, c.stop) for c in encoding.columns] == [
        ("age", "numeric", 0, 1),
        ("job", "categorical", 1, 4),
        ("income", "numeric", 4, 5),
        ("member", "categorical", 5, 7),
        ("month", "categorical", 7, 10),
        ("constant", "numeric", 10, 11),
    ]
    by_name = {column.name: column for column in encoding.columns}
    assert (by_name["age"].low, by_name["age"].high) == (20, 60)
    assert by_name["job"].categories == ("baker", "cook", "smith")
    assert by_name["member"].categories == (False, True)
    assert by_name["month"].categories == (1, 10, 12)
    assert encoding.length == 11


def test_a_record_is_encoded_as_a_person_would_by_hand():
    encoded = fitted().encode(AUXILIARY)
    assert encoded.dtype == torch.float32
    expected = [0.0, 0, 1, 0, 2.25 / (1e6 + 2.25) + 1.5 / (1e6 + 2.25), 0, 1, 1, 0, 0, 0.5]
    torch.testing.assert_close(encoded[0], torch.tensor(expected))


def test_numbers_beyond_the_auxiliary_range_are_clipped_for_the_truth_and_not_for_the_query():
    encoding = fitted()
    queries = encoding.encode(TEST)
    assert queries[:, 0].tolist() == [0.125, 1.25, -0.25]
    clipped = encoding.clip(queries)
    assert clipped[:, 0].tolist() == [0.125, 1.0, 0.0]
    assert clipped[:, 10].tolist() == [0.5, 0.5, 0.5]
    decoded = encoding.decode(queries)
    assert decoded[:, 0].tolist() == [25, 70, 10]
    assert decoded[:, 5].tolist() == [7.5, 8.0, 7.0]
    np.testing.assert_allclose(decoded[:, 2], TEST["income"], atol=2e6 * 2.0**-23)


def test_the_model_gets_numbers_as_they_are_and_texts_as_places():
    decoded = fitted().decode(fitted().encode(TEST), np.float32)
    assert decoded.dtype == np.float32
    assert decoded[:, 1].tolist() == [0, 2, 0]  # baker, smith, baker
    assert decoded[:, 3].tolist() == [0, 0, 0]
    assert decoded[:, 4].tolist() == [12, 10, 10]


def test_a_frame_has_the_table_s_names_and_categories():
    frame = fitted().decode_frame(fitted().encode(TEST))
    assert list(frame) == list(TEST)
    assert frame["job"].tolist() == TEST["job"].tolist()
    assert frame["month"].tolist() == TEST["month"].tolist()
    assert frame["member"].tolist() == TEST["member"].tolist()
    assert frame["age"].tolist() == TEST["age"].tolist()
    assert (frame["member"].dtype, frame["age"].dtype) == (np.bool_, np.int64)
    assert (frame["month"].dtype, frame["income"].dtype) == (np.int64, np.float64)


def test_a_reconstruction_decodes_to_its_likeliest_category():
    encoding = fit({"job": AUXILIARY["job"], "month": AUXILIARY["month"]})
    guess = torch.tensor([[0.3, 0.6, 0.1, 0.2, 0.3, 0.5]])
    assert encoding.decode(guess).tolist() == [[1, 12]]
    assert encoding.decode(guess.numpy()).tolist() == [[1, 12]]


# Two that differ do so by more than the 1e-38th of any, or float32 could not hold the codes.
FLOAT = st.floats(-1e15, 1e15).filter(lambda number: number == 0 or abs(number) > 1e-6)
NUMBER = (
    FLOAT | st.integers(-(2**40), 2**40).map(float) | st.integers(-500, 500).map((0.01).__mul__)
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict, dict]:
    """Draw an auxiliary table and another whose categories are among its own."""
    rows, others = draw(st.integers(3, 6)), draw(st.integers(1, 6))
    auxiliary, other = {}, {}
    for place in range(draw(st.integers(1, 4))):
        name = f"column {place}"
        kind = draw(st.sampled_from(["numbers", "texts", "booleans"]))
        if kind == "numbers":
            values = [draw(st.lists(NUMBER, min_size=n, max_size=n)) for n in (rows, others)]
        else:
            values = st.text(max_size=3) if kind == "texts" else st.booleans()
            known = draw(st.lists(values, min_size=rows - 1, max_size=rows - 1))
            some = st.lists(st.sampled_from(known), min_size=others, max_size=others)
            values = [[*known, known[0]], draw(some)]
        dtype = object if kind == "texts" else None
        auxiliary[name], other[name] = (np.array(column, dtype) for column in values)
    return auxiliary, other


@given(tables())
def test_blocks_sum_to_1_and_the_auxiliary_table_fills_0_to_1(case):
    auxiliary, other = case
    encoding = RecordEncoding.fit(auxiliary)
    own, others = encoding.encode(auxiliary), encoding.clip(encoding.encode(other))
    assert torch.equal(encoding.clip(own), own)
    for encoded in (own, others):
        assert ((encoded >= 0) & (encoded <= 1)).all()
        for column in encoding.columns:
            block = encoded[:, column.start : column.stop]
            if column.kind == "categorical":
                assert set(block.unique().tolist()) <= {0, 1}
                assert (block.sum(1) == 1).all()
    for column in encoding.columns:
        if column.kind == "numeric" and column.low < column.high:
            values = own[:, column.start]
            assert (values.min(), values.max()) == (0, 1)


@given(tables())
def test_decoding_gives_the_very_record_back(case):
    auxiliary, other = case
    encoding = RecordEncoding.fit(auxiliary)
    for table in (auxiliary, other):
        encoded = encoding.encode(table)
        decoded, frame = encoding.decode(encoded), encoding.decode_frame(encoded)
        for place, column in enumerate(encoding.columns):
            values = table[column.name]
            if column.kind == "categorical":
                assert frame[column.name].tolist() == values.tolist()
                codes = decoded[:, place].astype(int)
                if column.content == "texts":
                    assert [column.categories[code] for code in codes] == values.tolist()
                else:
                    assert codes.tolist() == values.tolist()
                continue
            # Half a step of float32 in units of the code, and twice that for a whole number.
            code = np.abs((values - column.low) / column.span) + (column.low == column.high)
            doubt = code * column.span * 2.0**-22 + np.abs(values) * 2.0**-49
            doubt += np.abs(column.low) * 2.0**-49 + column.span * 2.0**-148
            np.testing.assert_array_less(np.abs(decoded[:, place] - values), doubt + 1e-300)


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20), st.integers(-3000, 3000))
def test_whole_numbers_come_back_whole(values, beyond):
    encoding = RecordEncoding.fit({"count": np.array(values)})
    asked = np.array([*values, beyond])
    decoded = encoding.decode(encoding.encode({"count": asked}))
    assert decoded[:, 0].tolist() == asked.tolist()


@given(st.integers(0, 4), st.lists(st.integers(-999, 999), min_size=2, max_size=20))
def test_numbers_of_few_decimals_come_back_exactly(decimals, digits):
    values = np.array([float(f"{digit}e-{decimals}") for digit in digits])
    encoding = RecordEncoding.fit({"dose": values})
    assert encoding.decode(encoding.encode({"dose": values}))[:, 0].tolist() == values.tolist()


def test_fractions_next_to_whole_numbers_stay_fractions():
    values = np.array([0, 10, 2.9999, 3.00001, 7.5])
    encoding = RecordEncoding.fit({"dose": values})
    decoded = encoding.decode(encoding.encode({"dose": values}))
    np.testing.assert_allclose(decoded[:, 0], values, rtol=0, atol=10 * 2.0**-24)


def test_encoding_depends_on_the_auxiliary_table_alone():
    encoding = fitted()
    alone = encoding.encode({name: values[:1] for name, values in TEST.items()})
    assert torch.equal(alone, encoding.encode(TEST)[:1])


@looped("suffix", WRITERS)
def test_a_table_is_loaded_then_another_with_its_encoding(tmp_path, suffix):
    labels = np.array(["no", "yes", "no", "maybe"])
    extra = np.array(["a", "b", "c", "d"])
    first = write(tmp_path, suffix, {"id": extra, **AUXILIARY, "class": labels})
    second = write(tmp_path, suffix, {"id": extra[:3], **TEST, "class": labels[1:]}, "other")
    auxiliary = load_records(first, label="class", drop=("id",), categorical=("month",))
    assert auxiliary.encoding == fit(AUXILIARY)
    assert torch.equal(auxiliary.encoded, fitted().encode(AUXILIARY))
    assert auxiliary.queries.equal(auxiliary.encoded)
    assert auxiliary.clipped == {}
    assert auxiliary.labels.tolist() == [1, 2, 1, 0]
    assert auxiliary.labels.dtype == torch.int64
    test = load_records(
        second, label="class", drop=("id",), categorical=("month",), encoding=auxiliary.encoding
    )
    assert torch.equal(test.queries, fitted().encode(TEST))
    assert torch.equal(test.encoded, fitted().clip(test.queries))
    assert test.clipped == {"age": 2, "income": 1, "constant": 2}
    assert test.labels.tolist() == [2, 1, 0]
    assert test.class_names == ("maybe", "no", "yes")


def test_classes_are_the_table_s_own_whatever_the_auxiliary_table_has(tmp_path):
    auxiliary = load_records(write_path(tmp_path, x=[1.0, 2, 3]), label=None)
    assert auxiliary.labels is None
    path = write_path(tmp_path, x=[1.0, 2, 3], y=[10, 2, 10])
    own = load_records(path, label="y", encoding=auxiliary.encoding)
    assert (own.labels.tolist(), own.class_names) == ([1, 0, 1], ("2", "10"))
    order = ClassOrder(("2", "3", "10"), "the model")
    assert map_labels(own.labels, own.class_names, order, "the table").tolist() == [2, 0, 2]


def write_path(folder, **table):
    return write(folder, ".npz", {name: np.array(values) for name, values in table.items()})


def test_a_matrix_in_an_npz_file_is_a_column_each(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    records = load_records(write_path(tmp_path, x=x, y=[0, 1, 0]), label="y")
    assert [column.name for column in records.encoding.columns] == ["x.0", "x.1"]
    assert records.encoding.decode(records.queries).tolist() == x.tolist()


def test_dictionary_decimal_and_boolean_columns_of_parquet_are_read(tmp_path):
    words = pyarrow.array(["b", "a", "b"]).dictionary_encode()
    prices = pyarrow.array([1, 2, 3]).cast(pyarrow.decimal128(30, 2))
    flags = pyarrow.array([True, False, True])
    parquet.write_table(
        pyarrow.table({"word": words, "price": prices, "flag": flags}), tmp_path / "some.parquet"
    )
    encoding = load_records(tmp_path / "some.parquet", label=None).encoding
    assert [c.categories for c in encoding.columns] == [("a", "b"), (), (False, True)]


def test_nulls_of_parquet_are_missing_in_columns_of_any_kind(tmp_path):
    chunks = pyarrow.chunked_array(
        [pyarrow.array(some).dictionary_encode() for some in (["b", None], ["b"])]
    )
    table = {"whole": [1, None, 3], "flag": [None, None, True], "word": ["", "a", ""]}
    parquet.write_table(pyarrow.table({**table, "code": chunks}), tmp_path / "some.parquet")
    records = load_records(tmp_path / "some.parquet", label="word")
    frame = records.encoding.decode_frame(records.queries)
    assert frame["whole"].tolist()[::2] == [1, 3]
    assert frame["flag"].tolist()[2] is True
    assert frame["code"].tolist()[::2] == ["b", "b"]
    assert {name: frame[name].isna().tolist() for name in frame} == {
        "whole": [False, True, False],
        "flag": [True, True, False],
        "code": [False, True, False],
    }
    decoded = records.encoding.decode(records.queries)
    np.testing.assert_array_equal(decoded, [[1, np.nan, 0], [np.nan] * 3, [3, 1, 0]])
    assert records.notes == (
        "missing values, encoded as such: of 3 rows in column 'whole' 1, 'flag' 2, 'code' 1",
    )
    with pytest.raises(CorruptDataError, match=r"'flag' of .* has no class in 2 of 3 rows"):
        load_records(tmp_path / "some.parquet", label="flag")


def test_texts_of_the_auxiliary_table_stay_texts_where_cells_look_like_numbers(tmp_path):
    (tmp_path / "first.csv").write_text("code\nA\n1\nA\n")
    (tmp_path / "second.csv").write_text("code\n1\n1\n")
    auxiliary = load_records(tmp_path / "first.csv", label=None, categorical=("code",))
    test = load_records(tmp_path / "second.csv", label=None, encoding=auxiliary.encoding)
    assert test.encoded.tolist() == [[1, 0], [1, 0]]


def test_a_quoted_na_is_a_category_and_an_empty_cell_is_missing(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text('country,n\n"NA",1\nDE,2\n"NA",3\n')
    assert load_records(path, label=None).encoding.columns[0].categories == ("DE", "NA")
    path.write_text("country,n\nNA,1\nDE,\n,3\nDE,3\nNone,3\n")
    columns = load_records(path, label=None).encoding.columns
    assert [column.missing for column in columns] == [True, True]
    assert columns[0].categories == ("DE", None)


def told(error: pytest.ExceptionInfo) -> str:
    """Return an error's text with those it came from, which a log would show, too."""
    texts, cause = [], error.value
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return " ".join(texts)


@looped(
    ("changed", "message"),
    [
        (
            {"job": np.array(["cook", UNSEEN, UNSEEN])},
            r"column 'job' of the table has 2 of 3 rows whose category is none of the 3",
        ),
        ({"month": np.array([1, 4711, 1])}, r"column 'month' .* has 1 of 3 rows whose category"),
        ({"age": np.array([1, np.nan, 4711])}, r"none: of 3 rows in column 'age' 1\. Fill"),
        ({"age": np.array([1, np.inf, 4711])}, r"no infinite values.*'age' 1\."),
        ({"job": np.array(["cook", None, UNSEEN])}, r"none: of 3 rows in column 'job' 1\."),
        ({"age": np.array([UNSEEN] * 3)}, r"column 'age' .* must hold numbers.*but holds texts"),
        ({"member": np.array([0, 1, 4711])}, r"'member' .* hold booleans.*but holds numbers"),
        ({"job": np.array([4711] * 3)}, r"column 'job' .* must hold texts.*but holds numbers"),
        ({"age": np.array([1e300, 1, 2])}, r"column 'age' .* has 1 numbers so far beyond"),
        ({"age": np.array(["2020-01-01"] * 3, "M8[D]")}, r"'age' holds datetime64.*drop=\('age',"),
        ({"age": np.array([1, 2])}, r"one length and at least one row, but has 6 columns of 2, 3"),
        ({"age": None}, r"but lacks 'age' and also has none\. Name the label"),
        ({"shoe": np.arange(3)}, r"but lacks none and also has 'shoe'\."),
    ],
)
def test_another_table_that_does_not_fit_is_refused_without_showing_a_value(changed, message):
    table = {name: values for name, values in {**TEST, **changed}.items() if values is not None}
    with pytest.raises(CorruptDataError, match=message) as error:
        fitted().encode(table)
    assert "4711" not in told(error)


def test_columns_are_matched_by_name_whatever_their_order():
    turned = dict(reversed(TEST.items()))
    assert torch.equal(fitted().encode(turned), fitted().encode(TEST))


@looped(
    ("changed", "message"),
    [
        ({"job": np.array(["a", "b", "c", UNSEEN])}, r"'job'.*each of its 4 rows.*drop=\('job',"),
        ({"month": np.array([1, 2, 3, 4711])}, r"column 'month' .* has another category in each"),
        ({"age": np.array([-1.7e308, 1.7e308, 0, 4711])}, r"column 'age' .* farther apart than"),
        ({"age": np.array([object()] * 4)}, r"'age' holds object"),
    ],
)
def test_an_auxiliary_column_that_cannot_be_encoded_is_refused(changed, message):
    with pytest.raises(CorruptDataError, match=message) as error:
        fit({**AUXILIARY, **changed})
    assert "4711" not in told(error)


def test_an_empty_table_is_refused():
    for table in ({}, {"age": np.array([])}):
        with pytest.raises(CorruptDataError, match="at least one row"):
            RecordEncoding.fit(table)


def test_columns_are_named_in_tuples_and_must_be_there(tmp_path):
    path = write(tmp_path, ".npz", {**AUXILIARY, "class": np.array([0, 1, 0, 1])})
    with pytest.raises(
        UnknownNameError, match=r"unknown column of .* 'clas'\. Did you mean 'class'\?"
    ):
        load_records(path, label="clas")
    with pytest.raises(UnknownNameError, match=r"unknown column of .* 'id'"):
        load_records(path, label=None, drop=("id",))
    with pytest.raises(UnknownNameError, match=r"unknown column of .* 'class'"):
        load_records(path, label="class", categorical=("class",))
    with pytest.raises(InvalidOptionError, match=r"in a tuple, such as \('month',\)"):
        load_records(path, label="class", categorical="month")
    with pytest.raises(UnknownNameError, match="unknown categorical column of the encoding 'age'"):
        load_records(path, label="class", categorical=("age",), encoding=fitted())
    with pytest.raises(InvalidOptionError, match="no column left"):
        load_records(path, label="class", drop=tuple(AUXILIARY))


def test_labels_that_are_no_classes_are_refused(tmp_path):
    path = write_path(tmp_path, x=[1, 2, 3], y=[0.0, 0.4711, 1.0])
    with pytest.raises(CorruptDataError, match="but holds fractions") as error:
        load_records(path, label="y")
    assert "4711" not in told(error)


@looped(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3,4,4711secret\n", r"\(row 3 has 3 cells, not the 2 of the first\)"),
        (b"", r"no \.csv table with commas"),
        (b"a,a\n1,4711\n", "but 'a' stands for more than one"),
        (b"0.5,4711\n1,2\n", "must name the columns, but has numbers"),
        (b"a,b\n1,4711\xe9\n1,2\n", "Save it in UTF-8, not in Latin-1"),
        (b"na\xefve,b\n1,4711\n", "Save it in UTF-8, not in Latin-1"),
        ("a,b\n1,4711\n".encode("utf-16"), "Save it in UTF-8, not in Latin-1"),
        (b"a;b\n4711;2\n", "must have commas between cells, but its first line has none"),
        (b"day,b\n2020-01-01,1\n", r"'day' holds datetime64.*drop=\('day',\)"),
        (b"a,b\n", "at least one row"),
    ],
)
def test_a_csv_file_that_is_no_table_is_refused_without_showing_a_value(tmp_path, content, message):
    path = tmp_path / "some.csv"
    path.write_bytes(content)
    with pytest.raises(CorruptDataError, match=message) as error:
        load_records(path, label=None)
    assert "4711" not in told(error)


def test_files_of_another_kind_missing_or_broken_are_refused(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"\.csv, \.parquet, \.npz, but got some\.xlsx"):
        load_records("some.xlsx", label=None)
    for suffix in WRITERS:
        with pytest.raises(MissingDataError, match="no file"):
            load_records(tmp_path / f"none{suffix}", label=None)
    (tmp_path / "some.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(CorruptDataError, match=r"is no \.parquet file"):
        load_records(tmp_path / "some.parquet", label=None)
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 3, 3)))
    with pytest.raises(CorruptDataError, match=r"'images' has \(2, 3, 3\)"):
        load_records(tmp_path / "images.npz", label=None)


def test_a_package_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    path = write(tmp_path, ".csv", AUXILIARY)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"'pyarrow'.*oneway\[records\]"):
        read_table_file(path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match=r"'pandas'.*oneway\[records\]"):
        fitted().decode_frame(fitted().encode(TEST))


@looped("shape", [(3, 10), (11,), (3, 1, 11)])
def test_encoded_records_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidTensorError, match=r"shape \(N, "):
        fitted().decode(torch.zeros(shape))
