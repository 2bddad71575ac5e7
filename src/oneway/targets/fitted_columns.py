"""What a fitted estimator expects of a table: its columns, and the categories of boosters."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from oneway.checks import class_name, first_names
from oneway.errors import InvalidOptionError, InvalidTensorError
from oneway.extras import load_extra

WRAPPERS = ("estimator", "estimator_", "best_estimator_", "calibrated_classifiers_", "estimators_")
"""Attributes that hold the classifiers that another classifier asks with its own queries."""


def feature_names(estimator: Any) -> tuple[str, ...] | None:
    """Return the columns that an estimator was fitted on; None if it was fitted on a matrix."""
    names = getattr(estimator, "feature_names_in_", None)  # scikit-learn, LightGBM, XGBoost
    if names is not None:
        return tuple(map(str, names))
    names = getattr(estimator, "feature_names_", None)  # CatBoost
    names = names or getattr(estimator, "feature_name_", None) or ()  # LightGBM before 4.5
    # These two make up names for the columns of a matrix.
    if all(re.fullmatch(rf"(Column_)?{i}", str(name)) for i, name in enumerate(names)):
        return None
    return tuple(map(str, names))


def feature_count(estimator: Any) -> int | None:
    """Return how many features an estimator was fitted on; None if it does not say."""
    # A CatBoost that was loaded from a file says 0.
    names = getattr(estimator, "feature_names_", None)
    return getattr(estimator, "n_features_in_", None) or (len(names) if names else None)


def match_columns(wanted: Sequence[str], columns: Sequence[Any], name: str) -> list[Any]:
    """Return the columns of a table in the order in which a model was fitted on them.

    Args:
        wanted: The columns that the model was fitted on.
        columns: The table's columns; one that is no text is compared by its text. A space in
            their names may be an underscore in ``wanted``: LightGBM writes it so.
        name: What messages call the model.

    Raises:
        InvalidTensorError: Columns are missing or too many, or have one name; the message names
            them.
    """
    by_text = {str(column): column for column in columns}
    if len(by_text) < len(columns):
        raise InvalidTensorError(
            f"{name} was fitted on columns by name, but the table has one name for several "
            "columns. Give each a name of its own."
        )
    spaced = {text.replace(" ", "_"): text for text in by_text if text not in wanted}
    found = {want: want if want in by_text else spaced.get(want) for want in wanted}
    missing = [want for want, text in found.items() if text is None]
    extra = [text for text in by_text if text not in found.values()]
    if missing or extra:
        add = "Add the columns that it lacks. " if missing else ""
        raise InvalidTensorError(
            f"{name} was fitted on the columns {_listed(wanted)}, but the table lacks "
            f"{_listed(missing)} and also has {_listed(extra)}. {add}Drop what is no input of the "
            "model: --drop COLUMN (drop=(...)); name the label: --label COLUMN (label=...)."
        )
    return [by_text[text] for text in found.values() if text is not None]


def _listed(names: Sequence[str]) -> str:
    return first_names(list(map(repr, names))) or "none"


@dataclass(frozen=True)
class FittedCategories:
    """The pandas categories that a LightGBM or XGBoost model was fitted on.

    These models replace a category by its place among the categories of the fit. A column of texts
    is refused by them, and one of other categories may be misread without a word.

    Attributes:
        known: The categories of a column, by its name.
        unplaced: Categories of columns that LightGBM does not name, in the columns' order.
        unordered: Columns that LightGBM splits by category.
        strict: Whether other categories are refused, as by XGBoost; LightGBM takes them as missing.
    """

    known: Mapping[str, Any] = field(default_factory=dict)
    unplaced: tuple[Any, ...] = ()
    unordered: tuple[str, ...] = ()
    strict: bool = False

    def __bool__(self) -> bool:
        return bool(self.known or self.unplaced)

    def cast(self, frame: Any, name: str) -> Any:
        """Return a frame with these categories in place of texts or other categories.

        Args:
            frame: The columns that the model was fitted on, in order. Not modified.
            name: What messages call the model.

        Raises:
            InvalidTensorError: The columns of categories cannot be identified, or XGBoost was
                not fitted on some of them.
        """
        pandas = load_extra("pandas", extra="records", purpose="asking a model with a table")
        known = self.known or self._placed(frame, pandas, name)
        cast = {
            column: self._cast_column(frame[column], categories, pandas, name)
            for column, categories in known.items()
        }
        return frame.assign(**cast)

    def _placed(self, frame: Any, pandas: Any, name: str) -> dict[str, Any]:
        kinds = pandas.api.types
        texts = [
            column
            for column in frame
            if not (kinds.is_numeric_dtype(frame[column]) or kinds.is_bool_dtype(frame[column]))
        ]
        both = [column for column in frame if column in texts or column in self.unordered]
        for columns in (texts, both):
            if len(columns) == len(self.unplaced):
                return dict(zip(columns, self.unplaced, strict=True))
        raise InvalidTensorError(
            f"{name} was fitted on {len(self.unplaced)} columns of pandas categories, but the "
            f"table has {len(both)} columns of texts, categories or category codes: "
            f"{_listed(both)}. Write the columns of categories as texts."
        )

    def _cast_column(self, column: Any, categories: Any, pandas: Any, name: str) -> Any:
        index = pandas.Index(categories)
        places = {class_name(category): place for place, category in enumerate(index)}
        codes, values = pandas.factorize(column)
        by_code = np.array([places.get(class_name(value), -1) for value in values] + [-1])
        unseen = int((by_code[codes[codes >= 0]] < 0).sum())
        if unseen and self.strict:
            raise InvalidTensorError(
                f"column {column.name!r} has {unseen} of {len(column)} rows whose category is "
                f"none of the {len(index)} that {name} was fitted on. Merge such categories as "
                "the fit did, or leave these rows out."
            )
        return pandas.Categorical.from_codes(by_code[codes], categories=index)


def fitted_categories(estimator: Any, name: str) -> FittedCategories:
    """Return the pandas categories of a LightGBM or XGBoost model, or of one that is wrapped.

    Raises:
        InvalidOptionError: XGBoost was fitted on categories, but does not keep them.
    """
    for inner in _asked_with_the_same(estimator):
        if hasattr(inner, "get_booster"):
            return _of_xgboost(inner, name)
        if hasattr(inner, "booster_"):
            return _of_lightgbm(inner)
    return FittedCategories()


def _asked_with_the_same(estimator: Any, depth: int = 4) -> Iterator[Any]:
    """Yield an estimator, and those inside it that get its own queries."""
    yield estimator
    for attribute in WRAPPERS if depth else ():
        inner = vars(estimator).get(attribute) if hasattr(estimator, "__dict__") else None
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None and hasattr(one, "predict_proba"):
                yield from _asked_with_the_same(one, depth - 1)


def _of_xgboost(estimator: Any, name: str) -> FittedCategories:
    booster = estimator.get_booster()
    names = booster.feature_names or []
    kinds = booster.feature_types or []
    columns = [column for column, kind in zip(names, kinds, strict=False) if kind == "c"]
    if not columns:
        return FittedCategories()
    kept = {}
    if hasattr(booster, "get_categories"):
        kept = dict(booster.get_categories(export_to_arrow=True).to_arrow())
    lost = [column for column in columns if kept.get(column) is None]
    if lost:
        raise InvalidOptionError(
            f"{name} was fitted on pandas categories in {_listed(lost)}, but this XGBoost model "
            "does not keep them, so that its codes may be read as other categories. Fit it with "
            "XGBoost 3.1 or newer, or encode the categories in a pipeline."
        )
    return FittedCategories({column: kept[column].to_pandas() for column in columns}, strict=True)


def _of_lightgbm(estimator: Any) -> FittedCategories:
    booster = estimator.booster_
    lists = tuple(getattr(booster, "pandas_categorical", None) or ())
    if not lists:
        return FittedCategories()
    splits = booster.dump_model(num_iteration=1).get("feature_infos", {})
    unordered = tuple(
        column for column in booster.feature_name() if splits.get(column, {}).get("values")
    )
    if len(unordered) == len(lists):
        return FittedCategories(dict(zip(unordered, lists, strict=True)))
    return FittedCategories(unplaced=lists, unordered=unordered)
