"""ModelGuard: -W against a solver of linear programs, -S against one answer after the other."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laws import looped
from oneway.adapters import Guard
from oneway.contracts import TrainingData
from oneway.defenses.modelguard_s import Centroids, ModelGuardS
from oneway.defenses.modelguard_w import LEAD, LEAST, ModelGuardW
from oneway.defenses.module_files import load_module, save_module
from oneway.defenses.servable import open_guard
from oneway.errors import InvalidOptionError
from rows import leads, random_rows

CPU = torch.device("cpu")


def least_objective(clean, label, epsilon):
    """Solve the paper's linear program for one answer."""
    from scipy.optimize import linprog

    classes = len(clean)
    lead = min(LEAD, clean[label] - np.delete(clean, label).max())
    one, zero = np.eye(classes), np.zeros((classes, classes))
    rows = [np.hstack([one, -one]), np.hstack([-one, -one])]  # z >= |p - f|
    rows.append(np.hstack([zero[:1], np.ones((1, classes))]))  # sum z <= epsilon
    ahead = np.delete(one - one[label], label, axis=0)
    rows.append(np.hstack([ahead, np.zeros_like(ahead)]))
    bounds = [clean, -clean, [epsilon], np.full(classes - 1, -lead)]
    found = linprog(
        np.concatenate([np.log(clean + LEAST), np.zeros(classes)]),
        A_ub=np.vstack(rows),
        b_ub=np.concatenate(bounds),
        A_eq=np.hstack([np.ones((1, classes)), zero[:1]]),
        b_eq=[1],
    )
    return found.fun


@given(
    st.integers(2, 8),
    st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    st.floats(0.01, 2),
    st.integers(0, 10_000),
)
def test_w_reaches_the_least_objective_within_its_bounds(classes, scale, epsilon, seed):
    logits = random_rows(seed, 2, classes, torch.float64, scale)
    clean, moved = logits.softmax(-1), ModelGuardW(epsilon=epsilon)(logits).softmax(-1)
    assert ((moved - clean).abs().sum(-1) <= epsilon + 1e-9).all()
    reached = (moved * (clean + LEAST).log()).sum(-1)
    for row, label, value in zip(clean, logits.argmax(-1), reached, strict=True):
        assert float(value) == pytest.approx(
            least_objective(row.numpy(), int(label), epsilon), abs=2e-6
        )


def test_w_gives_the_least_likely_class_what_it_takes_from_the_label():
    clean = torch.tensor([[0.7, 0.2, 0.08, 0.02]], dtype=torch.float64)
    moved = ModelGuardW(epsilon=0.4)(clean.log()).softmax(-1)
    torch.testing.assert_close(moved, torch.tensor([[0.5, 0.2, 0.08, 0.22]]).double())


def one_by_one(rows, epsilon):
    """Answer as the paper's listing does, query after query."""
    vectors = {}
    for row in rows:
        known = vectors.setdefault(int(row.argmax()), [])
        near = [vector for vector in known if float((vector - row).abs().sum()) <= epsilon]
        if not near:
            known.append(row)
        yield near[0] if near else row


def material(logits):
    return TrainingData(None, None, None, logits, logits)


def quantizer(logits, **options):
    state, facts = ModelGuardS.train(material(logits), generator=torch.Generator(), **options)
    assert facts == {"vectors": len(state.vectors)}
    return ModelGuardS(state)


@given(st.integers(1, 12), st.floats(0.05, 1.5), st.integers(0, 10_000))
def test_s_as_published_answers_in_any_batches_as_one_query_after_the_other(size, epsilon, seed):
    logits = random_rows(seed, 24, 3, torch.float64, 1)
    guard = quantizer(logits, epsilon=epsilon)
    assert guard.remembers
    told = torch.cat([guard(part) for part in logits.split(size)]).softmax(-1)
    torch.testing.assert_close(told, torch.stack(list(one_by_one(logits.softmax(-1), epsilon))))
    # Asked again, the same.
    torch.testing.assert_close(guard(logits.flip(0)).flip(0).softmax(-1), told)


def test_s_as_published_lets_clean_scores_out_and_no_server_takes_it(tmp_path):
    logits = random_rows(3, 200, 4, torch.float64, 1)
    guard = quantizer(logits, epsilon=0.3)
    first, second = (guard(rows).softmax(-1) for rows in (logits[:1], logits[1:]))
    torch.testing.assert_close(first, logits[:1].softmax(-1))
    alone = quantizer(logits, epsilon=0.3)(logits.flip(0)).flip(0).softmax(-1)
    changed = (alone[1:] - second).abs().sum(-1) > 1e-9
    assert changed.double().mean() > 0.5  # it is the order of queries that decides
    path = tmp_path / "state.safetensors"
    save_module(path, guard.state, "modelguard-s", {})
    with pytest.raises(InvalidOptionError, match=r"clean scores of some queries.*grows=false"):
        open_guard("modelguard-s", {}, state=path, device=CPU)
    with pytest.raises(InvalidOptionError, match=r"clean scores of some queries.*grows=False"):
        Guard(guard, "logits")


@looped("epsilon", [0.1, 0.4, 1.0])
def test_s_fitted_covers_its_calibration_queries_and_releases_no_other_vectors(epsilon):
    logits = random_rows(4, 300, 4, torch.float64, 1)[:250]
    logits[:, 3] = -5  # no query has this label
    guard = quantizer(logits, epsilon=epsilon, grows=False)
    clean, told = logits.softmax(-1), guard(logits).softmax(-1)
    assert float((told - clean).abs().sum(-1).max()) <= epsilon + 1e-9
    others = random_rows(5, 200, 4, torch.float64, 1)
    distinct = guard(others).softmax(-1)
    state = guard.state
    assert torch.cdist(distinct, state.vectors, p=1).amin(-1).max() < 1e-9
    assert leads(guard(others), others.argmax(-1))
    own = state.labels.unsqueeze(0) == others.argmax(-1).unsqueeze(-1)
    apart = torch.cdist(others.softmax(-1), state.vectors, p=1).masked_fill(~own, 9).amin(-1)
    torch.testing.assert_close((distinct - others.softmax(-1)).abs().sum(-1), apart)


def test_s_fitted_serves_from_its_file(tmp_path):
    logits = random_rows(6, 100, 3, torch.float64, 1)
    guard = quantizer(logits, epsilon=0.5, grows=False)
    path = tmp_path / "state.safetensors"
    save_module(path, guard.state, "modelguard-s", {})
    assert isinstance(load_module(path, "modelguard-s").module, Centroids)
    served = open_guard("modelguard-s", {}, state=path, device=CPU)
    assert torch.equal(served.defense(logits), guard(logits))
