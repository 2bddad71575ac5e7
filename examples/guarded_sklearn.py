"""Guard a scikit-learn classifier: it fits, predicts and scores like any other.

    python examples/guarded_sklearn.py

Needs `pip install 'oneway[sklearn]'`.
"""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from oneway.adapters.scikit_learn import GuardedClassifier
from oneway.defenses import build_defense


def main() -> None:
    """Fit a guarded classifier, and compare it with an unguarded one."""
    images, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(images / 16, labels, random_state=0)
    defense = build_defense("rounding", {"decimals": 2}, None)
    guarded = GuardedClassifier(LogisticRegression(max_iter=200), defense)
    guarded.fit(train, train_labels)
    clean = guarded.estimator_
    same = (guarded.predict(test) == clean.predict(test)).all()
    print("labels kept:", bool(same))
    print("accuracy:", round(guarded.score(test, test_labels), 3))
    print("first row:", guarded.predict_proba(test[:1])[0])


if __name__ == "__main__":
    main()
