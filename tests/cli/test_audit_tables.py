"""`oneway audit` on tables: columns and classes by name, and refusals before any work."""

import joblib
import numpy as np
import pandas
import pytest

from laws import looped
from oneway.auditing import ModelAudit
from oneway.errors import OverlappingSplitsError
from oneway.interface import AuditSource, Reading
from optional import later

make_column_transformer = later("sklearn.compose:make_column_transformer")
LogisticRegression = later("sklearn.linear_model:LogisticRegression")
make_pipeline = later("sklearn.pipeline:make_pipeline")
OneHotEncoder = later("sklearn.preprocessing:OneHotEncoder")

ORDER = ["low", "high", "middle"]


def patients(rows, seed):
    generator = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {"ward": generator.choice(["ICU", "ER"], rows), "age": generator.integers(20, 90, rows)}
    )
    frame["pressure"] = generator.normal(120, 15, rows).round(3)
    return frame.assign(risk=np.array(ORDER)[(frame["age"] > 45).astype(int) + (frame["age"] > 65)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A fitted pipeline, and tables of which neither holds all of its classes."""
    folder = tmp_path_factory.mktemp("tables")
    train, own, test = patients(300, 0), patients(400, 1), patients(120, 2)
    encoder = make_column_transformer((OneHotEncoder(), ["ward"]), remainder="passthrough")
    model = make_pipeline(encoder, LogisticRegression(max_iter=5000))
    model.fit(train.drop(columns="risk"), train["risk"])
    joblib.dump(model, folder / "model.joblib")
    own = own[own["risk"] != "high"]
    test = test[test["risk"] != "middle"]
    own.to_csv(folder / "OWN.CSV", index=False)
    test[["risk", "pressure", "age", "ward"]].to_csv(folder / "test.csv", index=False)
    return folder, model, own, test


def opened(folder, auxiliary, test):
    """What an audit opens of a model and two tables."""
    model = (str(folder / "model.joblib"), {"trust_pickle": True})
    return AuditSource(model, auxiliary, test, reading=Reading(label="risk")).open()


def test_classes_that_a_table_lacks_move_no_label_and_columns_go_by_name(place):
    folder, model, own, test = place
    audited = opened(folder, folder / "OWN.CSV", folder / "test.csv")
    assert audited.class_names == ("high", "low", "middle")
    places = {name: place for place, name in enumerate(model.classes_)}
    assert audited.labels.tolist() == [places[name] for name in test["risk"]]
    assert audited.auxiliary_labels.tolist() == [places[name] for name in own["risk"]]
    predicted = audited.target.logits(audited.test).argmax(-1)
    bare = model.predict(test.drop(columns="risk"))
    # Numbers beyond the auxiliary range are clipped, and nothing else differs.
    same = np.array([places[name] for name in bare]) == predicted.numpy()
    assert same.mean() > 0.98


def test_records_that_are_equal_by_chance_are_left_out_and_copies_are_refused(place, tmp_path):
    folder, _, own, test = place
    tables = {"chance": [test, own[:5]], "copies": [test, own[:100]], "none": [test]}
    for name, parts in tables.items():
        pandas.concat(parts).to_csv(tmp_path / f"{name}.csv", index=False)
    audited = opened(folder, folder / "OWN.CSV", tmp_path / "chance.csv")
    assert len(audited.test) == len(audited.labels) == len(test)
    assert any(f"5 of {len(test) + 5} rows are left out" in note for note in audited.notes)
    assert not any(
        "left out" in note
        for note in opened(folder, folder / "OWN.CSV", tmp_path / "none.csv").notes
    )
    with pytest.raises(OverlappingSplitsError, match="share 100 records"):
        opened(folder, folder / "OWN.CSV", tmp_path / "copies.csv")


def never_audited(*_, **__):
    pytest.fail("an audit began before wrong input was refused")


CHANGES = {
    "missing column": (lambda f: f.drop(columns="age"), "lacks 'age' and also has none"),
    "extra column": (lambda f: f.assign(id=range(len(f))), "also has 'id'. Drop"),
    "odd cell": (
        lambda f: f.assign(age=f["age"].astype(str).where(f["age"] < 80, ">80 4711")),
        "column 'age' of",
    ),
    "no class of the model": (
        lambda f: f.assign(risk=f["risk"].replace("low", "tiny")),
        "classes that the model does not have: 'tiny'",
    ),
}


@looped("name", CHANGES)
def test_a_table_that_does_not_fit_is_refused_before_any_work(
    oneway, place, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(ModelAudit, "run", never_audited)
    folder = place[0]
    change, message = CHANGES[name]
    for source, table in (("OWN.CSV", "own.csv"), ("test.csv", "test.csv")):
        change(pandas.read_csv(folder / source)).to_csv(tmp_path / table, index=False)
    result = oneway(
        "audit",
        folder / "model.joblib",
        "--model-option",
        "trust_pickle=true",
        "--attacker-data",
        tmp_path / "own.csv",
        "--queries",
        tmp_path / "test.csv",
        "--label",
        "risk",
        "--out",
        tmp_path / "out",
    )
    assert result.exit_code == 2, (result.output, result.exception)
    assert message in result.stderr
    assert "4711" not in result.output
    assert not (tmp_path / "out").exists()
