"""What an experiment's numbers say in words: the words follow the numbers, and claim no more."""

import dataclasses

from oneway.benchmark import summarise
from oneway.evaluation import Flag
from oneway.report.experiments import command_of, how_facts, seeds_of
from oneway.report.findings import findings, report_lines
from report.planted import ENVIRONMENT, STEPS, record_of

PAPER = "paper, step 0.1"


def words(*records):
    return "\n".join(findings(summarise([record_of(), *records])))


def test_the_papers_claim_holds_where_its_attacker_does_worse_than_the_label():
    for static, holds in ((0.061, True), (0.14, True), (0.059, False), (0.02, False)):
        text = words(record_of(PAPER, static=static))
        assert ("here the paper's claim holds" in text) == holds, static
        assert ("less than the label alone would give." in text) == (not holds), static
        assert f"{static / 0.02:.1f} times the error it had without a defense" in text


PHRASES = {
    "reveals more to an attacker who adapts than clean scores did": ((-0.2, 0.012),),
    "undoes most of the defense": ((0.0, 0.02), (0.49, 0.04)),
    "undoes part of the defense": ((0.51, 0.04), (0.94, 0.0576)),
    "No attacker did much better than with the label alone": ((0.96, 0.0584),),
}


def test_the_reading_of_the_gap_follows_the_gap():
    for phrase, cases in PHRASES.items():
        for gap, error in cases:
            text = words(record_of(PAPER, retrained=error, gap=gap, static=0.14))
            assert f"{error / 0.02:.2f} times the clean error, so that G is {gap:.2f}" in text
            assert [other for other in PHRASES if other in text] == [phrase], gap


def test_two_step_sizes_are_compared_in_words():
    for large, phrase in ((0.025, "larger step leaks more"), (0.035, "larger step leaks less")):
        records = [record_of("paper, step 0.4", retrained=large), record_of(PAPER, retrained=0.03)]
        text = words(*records)
        assert phrase in text
        assert f"error is 0.0300 at step 0.1, {large:.4f} at step 0.4" in text


def test_a_claim_that_the_seeds_do_not_decide_is_not_said_to_hold():
    errors = (0.05, 0.06, 0.075)
    text = words(*(record_of(PAPER, seed, static=error) for seed, error in enumerate(errors)))
    assert "about what the label alone would give: these seeds do not decide it" in text
    assert "claim holds" not in text


def test_seeds_that_overlap_do_not_tell_two_steps_apart():
    errors = {0.1: (0.030, 0.034, 0.032), 0.4: (0.029, 0.034, 0.031)}
    text = words(
        *(
            record_of(f"paper, step {step}", seed, retrained=error)
            for step, by_seed in errors.items()
            for seed, error in enumerate(by_seed)
        )
    )
    assert "do not decide whether the two ends differ" in text
    assert "leaks more" not in text
    assert "leaks less" not in text


def test_steps_of_searches_that_differ_otherwise_are_not_compared():
    first, second = record_of(PAPER), record_of("paper, step 0.4")
    second.options["search"] = "momentum"
    for record in (first, second):
        for row in record.spec["releases"]:
            if row["name"] == "paper, step 0.4":
                row["options"]["search"] = "momentum"
    assert "larger step" not in words(first, second)


def test_one_step_size_is_not_compared_nor_is_another_surrogate():
    assert "larger step" not in words(record_of(PAPER))
    assert STEPS["hardened"] == STEPS[PAPER]
    assert "larger step" not in words(record_of(PAPER), record_of("hardened", retrained=0.01))


def test_releases_are_ranked_by_the_gap_they_close():
    text = words(
        record_of(PAPER, gap=0.25, accuracy=0.5),
        record_of("hardened", gap=0.75),
        record_of("paper, step 0.4", gap=None),
    )
    assert (
        "By closed gap: hardened 0.75 (98.1 % accuracy, L1 0.346); "
        f"{PAPER} 0.25 (50.0 % accuracy, L1 0.346)." in text
    )
    names = [f"defense {place}" for place in range(8)]
    many = [record_of(name, gap=place / 10, names=("none", *names), defense="rounding")
            for place, name in enumerate(names)]  # fmt: skip
    text = "\n".join(findings(summarise(many)))
    assert "By closed gap: defense 7 0.70" in text
    assert "defense 3 0.30" in text
    assert "; and 3 more." in text


def test_an_attacker_who_retrained_to_less_than_the_label_is_not_believed():
    for retrained, failed in ((0.061, True), (0.059, False)):
        text = words(record_of(PAPER, retrained=retrained, gap=1.0))
        assert (f"did worse ({retrained:.4f}) than the label alone (0.0600)" in text) == failed


def test_an_attacker_who_did_not_run_is_not_spoken_of():
    record = dataclasses.replace(
        record_of(PAPER, gap=1.0), errors={"label-only": 0.06}, adaptive_error=0.06
    )
    text = words(record, record_of("paper, step 0.4", gap=0.5))
    assert f"“{PAPER}”: the paper's attacker" not in text
    assert "larger step" not in text
    assert f"“{PAPER}”: the strongest attacker has 3.00 times" in text


def test_baselines_seeds_limits_and_flags_are_always_said():
    records = [
        record_of(seed=0),
        record_of(
            seed=1,
            flags=(Flag("labels-changed", "3 labels changed or tied in what was released"),),
        ),
    ]
    text = "\n".join(findings(summarise(records)))
    assert all(f"{baseline} ± 0.0000" in text for baseline in ("0.0200", "0.0600", "0.0800"))
    assert "2 seeds of splits" in text
    assert "up to 3000 queried images" in text
    assert "No label-preserving release can help" in text
    assert (
        "flag labels-changed: labels changed or tied in what was released: none (1 of 2 seeds) "
        "[docs/flags/labels-changed.md]" in text
    )
    assert "1 seed of splits" in words()


def test_few_seeds_are_said_to_be_few():
    one, two = (f"Only {ran} run: do not quote" for ran in ("1 seed was", "2 seeds were"))
    for seeds, start in (([4], one), ([0, 1], two), ([0, 1, 2], "")):
        lines = report_lines(summarise([record_of(seed=seed) for seed in seeds]))
        notices = [line for line in lines if line.startswith("Only")]
        assert [notice.partition(". ")[0] for notice in notices] == ([start] if start else [])


def test_every_seed_and_every_machine_is_named():
    other = dataclasses.replace(ENVIRONMENT, processor="Another", device="Some GPU", cores=16)
    records = [record_of(seed=0), record_of(seed=1, environment=other), record_of(PAPER, seed=0)]
    facts = how_facts(summarise(records))
    assert dict(facts)["Seeds"] == f"0, 1 (none); 0 ({PAPER})"
    assert [text for name, text in facts if name == "Hardware"] == [
        "Some Processor 9000, 2 cores, 1 of them used; device cpu",
        "Another, 16 cores, 1 of them used; device Some GPU",
    ]
    assert seeds_of(summarise(records[:2])) == "0, 1"


def test_the_command_that_makes_records_is_named():
    for names, command in {
        ("table1-mnist", "cpu"): "oneway reproduce table1 --data mnist --preset cpu",
        ("table2-faces", "paper"): "oneway reproduce table2 --data faces --preset paper",
        ("leaderboard", "faces"): "oneway leaderboard --data faces",
        ("demo-digits", ""): "oneway demo --data digits",
        ("my-own", ""): "oneway reproduce my-own.toml",
    }.items():
        assert command_of(*names) == command
