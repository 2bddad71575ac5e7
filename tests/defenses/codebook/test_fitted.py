"""Fresh traffic is not taken for what was fitted, and what was fitted is not taken for fresh."""

import pytest
import torch

from oneway.defenses import SecretKey
from oneway.defenses.codebook import FittedQueries, HeldOut
from oneway.defenses.codebook.fitted import refuse_training
from oneway.errors import CorruptDataError, InvalidOptionError, OnewayError
from oneway.files import read_tensors, write_tensors
from rows import FLOATING

KEY = SecretKey(b"k" * 32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(weights, count, seed):
    """Queries of one value each, drawn with these weights."""
    chosen = torch.multinomial(weights, count, replacement=True, generator=seeded(seed))
    return chosen.unsqueeze(-1).float()


def zipf(power, values=3000):
    return torch.arange(1, values + 1).double() ** -power


def atom(share, values=3000):
    weights = torch.full((values,), (1 - share) / (values - 1)).double()
    weights[0] = share
    return weights


TRAFFIC = {
    "zipf 1.1": zipf(1.1),
    "zipf 1.3": zipf(1.3),
    "half one query": atom(0.5),
    "nearly one query": atom(0.97),
    "evenly few": torch.ones(300).double(),
    "evenly many": torch.ones(100_000).double(),
}


def test_fresh_traffic_is_held_out_however_often_it_repeats():
    for name, weights in TRAFFIC.items():
        for seed in range(4):
            sizes = (300, 300) if seed % 2 else (400, 100)
            fitted = FittedQueries.of("", draws(weights, sizes[0], 2 * seed), key=KEY)
            found = fitted.judge(draws(weights, sizes[1], 2 * seed + 1))
            assert found.answer == "yes", (name, seed)


def test_the_expected_number_of_shared_queries_is_that_of_fresh_traffic():
    for name in ("zipf 1.1", "evenly few"):
        shared, expected = 0, 0.0
        for seed in range(20):
            fitted = FittedQueries.of("", draws(TRAFFIC[name], 200, 100 + 2 * seed), key=KEY)
            found = fitted.judge(draws(TRAFFIC[name], 150, 101 + 2 * seed))
            shared, expected = shared + found.shared, expected + found.expected
        assert shared == pytest.approx(expected, rel=0.06), name


def test_what_was_fitted_is_noticed_in_traffic_of_any_kind():
    for name in ("zipf 1.1", "evenly few", "evenly many", "half one query"):
        rows = draws(TRAFFIC[name], 1000, 1)
        fitted = FittedQueries.of("", rows[200:], key=KEY)
        assert fitted.judge(rows).answer == "no", name  # the file that was split, as a whole
        assert fitted.judge(rows[:200]).answer == "yes", name
    # Fifty fitted rows among a thousand, or each query three times.
    unlike = torch.arange(2000.0).unsqueeze(-1)
    fitted = FittedQueries.of("", unlike[:1000], key=KEY)
    assert fitted.judge(unlike[950:1950]) == HeldOut("no", 50, pytest.approx(25, abs=0.1))
    assert fitted.judge(unlike[997:1997]).answer == "yes"  # three move no figure
    thrice = unlike[:500].repeat(3, 1)
    assert FittedQueries.of("", thrice, key=KEY).judge(thrice).answer == "no"


def test_a_query_is_the_same_in_every_type_that_holds_it():
    values = torch.tensor([[0.0, 0.25], [0.5, 1.0], [0.75, 0.0]])
    fitted = FittedQueries.of("", values, key=KEY)
    for dtype in FLOATING:
        assert fitted.judge(values.to(dtype).view(3, 1, 1, 2)).shared == 3, dtype
    assert fitted.judge(torch.tensor([[-0.0, 0.25]])).shared == 1
    assert fitted.judge(torch.tensor([[0.25, 0.0]])).shared == 0


def test_groups_on_both_sides_are_refused():
    queries, groups = torch.rand(8, 2, generator=seeded()), torch.tensor([5, 5, 6, 7, -1, 8, 8, 8])
    fitted = FittedQueries.of("", queries[:4], groups[:4], key=KEY)
    assert fitted.judge(queries[4:], groups[4:]).answer == "yes"
    assert fitted.judge(queries[4:]).answer == "not checked"
    with pytest.raises(InvalidOptionError, match=r"but 2 of the 4 groups .* Leave out"):
        fitted.judge(queries[2:], groups[2:])


@pytest.mark.parametrize("key", [None, KEY])
def test_digests_come_back_from_a_file_that_shows_no_query(tmp_path, key):
    queries, groups = torch.rand(40, 3, generator=seeded()), torch.arange(40) // 2
    fitted = FittedQueries.of("ab", queries, groups, key=key)
    path = tmp_path / "guard.fitted"
    fitted.save(path)
    again = FittedQueries.load(path, key)
    assert (again.table, again.queries, again.groups) == ("ab", fitted.queries, fitted.groups)
    assert again.judge(queries).shared == 40
    stored = read_tensors(path, "", "")[0]["queries"]
    assert stored.shape == (40, 16)
    assert [row.tobytes() for row in stored.numpy()] == sorted(fitted.queries)
    # Another salt, or another key, gives other digests.
    others = FittedQueries.of("ab", queries, key=SecretKey(b"o" * 32) if key else None)
    assert not others.queries.keys() & fitted.queries.keys()
    bare = FittedQueries.of("ab", queries, key=key)
    bare.save(path)
    assert FittedQueries.load(path, key).groups == frozenset()


def test_a_file_without_its_key_or_of_something_else_is_refused(tmp_path):
    path = tmp_path / "guard.fitted"
    FittedQueries.of("ab", torch.rand(4, 3), key=KEY).save(path)
    for key, text in ((None, "made with a key"), (SecretKey(b"o" * 32), "another key")):
        with pytest.raises(InvalidOptionError, match=f"{text}.*--key-file"):
            FittedQueries.load(path, key)
    FittedQueries.of("ab", torch.rand(4, 3)).save(path)
    tensors, header = read_tensors(path, "", "")
    for changes in (
        {"kind": "codebook"},
        {"salt": "short"},
        {"salt": 3},
        {"salt": "0" * 64},
        {"check": 7},
    ):
        write_tensors(path, tensors, header | changes)
        with pytest.raises(CorruptDataError, match="oneway codebook"):
            FittedQueries.load(path)
    for name, tensor in (
        ("queries", torch.zeros(4, 16)),
        ("queries", torch.zeros(4, 15, dtype=torch.uint8)),
        ("counts", torch.ones(3, dtype=torch.int64)),
        ("counts", torch.zeros(4, dtype=torch.int64)),
        ("counts", torch.ones(4)),
        ("groups", torch.zeros(2, dtype=torch.uint8)),
    ):
        write_tensors(path, tensors | {name: tensor}, header)
        with pytest.raises(CorruptDataError, match="not a fitted queries"):
            FittedQueries.load(path)
    with pytest.raises(OnewayError, match="no fitted queries file"):
        FittedQueries.load(tmp_path / "absent")


def test_training_inputs_among_the_queries_are_refused_without_a_value():
    training = torch.rand(30, 2, generator=seeded())
    queries = torch.rand(20, 2, generator=seeded(1))
    refuse_training(queries, training)
    queries[7] = training[3]
    with pytest.raises(InvalidOptionError, match="but 1 of 20 queries are training") as caught:
        refuse_training(queries, training)
    assert f"{float(training[3, 0]):.3f}" not in str(caught.value)
    with pytest.raises(InvalidOptionError, match=r"shape of queries, \(2,\), but have \(3,\)"):
        refuse_training(queries, torch.rand(4, 3))
    with pytest.raises(InvalidOptionError, match="not given"):
        refuse_training(None, training)
