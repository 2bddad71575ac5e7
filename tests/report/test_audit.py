"""An audit in words: one sentence for each case, and none that says more than was measured."""

import copy
import io
import json
from pathlib import Path

from rich.console import Console

from oneway.auditing import InversionRecord
from oneway.evaluation import FLAGS
from oneway.evaluation.records import numerics_of
from oneway.report import audit as words
from oneway.report.audit import (
    attackers_table,
    distortion_line,
    flag_lines,
    is_stale,
    matching_table,
    privacy_table,
    utility_table,
    verdict,
)
from oneway.report.sentences import audit_limits

COMMITTED = json.loads(
    (Path(__file__).parents[2] / "results" / "audit-lenet-adversarial-noise.json").read_text(
        "utf-8"
    )
)["inversion"]
PLAN = COMMITTED["plan"] | {"left_out": []}
TRAINED = {"epochs": 12, "gain": 0.003, "shown": True}

QUALITY = {
    "top_1": 0.9,
    "top_5": 0.99,
    "negative_log_likelihood": 0.3,
    "expected_calibration_error": 0.02,
    "brier_score": 0.15,
    "failure_auroc": 0.85,
}
COST = {"p50_milliseconds": 1.25, "p99_milliseconds": 2.5, "queries_per_second": 4000.4}
SEEN = {
    "error": 0.012,
    "error_worst_5_percent": 0.003,
    "error_worst_1_percent": 0.001,
    "gain_largest_5_percent": 0.02,
    "gain_largest_1_percent": 0.03,
    "reidentified_rank_1": 0.25,
    "reidentified_rank_5": 0.5,
    "reidentified_by": "static",
    "gallery": 200,
    "psnr_decibels": 19.2,
    "ssim": 0.61,
}


def one_control(expected, passed):
    return {
        "name": "any",
        "expected": expected,
        "measured": 0.1,
        "passed": passed,
        "attack": "retrained",
        "input_transform": "within-label",
    }


def record_of(**changes):
    """A record of an audit that went well; part of it changed."""
    record = {
        "defense": "adversarial-noise",
        "baselines": {"clean": 0.01, "label": 0.03, "prior": 0.09},
        "adaptive_error": 0.016,
        "strongest": ["retrained", "optimising", "retrained"],
        "errors": {"label-only": 0.03, "static": 0.05, "retrained": 0.016, "optimising": 0.017},
        "closed_gap": 0.3,
        "closed_gap_interval": {"low": 0.25, "estimate": 0.3, "high": 0.354},
        "closed_gap_least_confident": 0.12,
        "closed_gap_least_confident_interval": {"low": -0.2, "estimate": 0.12, "high": 0.45},
        "least_confident_queries": 25,
        "label_changes": 0,
        "void": False,
        "controls": {
            "identity": one_control("broken", True),
            "label-only": one_control("holds", True),
        },
        "plan": PLAN,
        "seeds": [0, 1, 2],
        "stopped": None,
        "convergence": {"static": TRAINED, "retrained": TRAINED | {"epochs": 24}},
        "clean_convergence": {"static": TRAINED},
        "auxiliary": 4000,
        "queries": 500,
        "flags": [],
        "privacy": {
            "released": dict(SEEN),
            "clean": {**SEEN, "reidentified_rank_1": 0.5},
            "label": {**SEEN, "reidentified_rank_1": 0.01},
        },
        "reidentified": {
            "label-only": {"rank_1": 0.01, "rank_5": 0.03},
            "static": {"rank_1": 0.25, "rank_5": 0.5},
            "retrained": {"rank_1": 0.125, "rank_5": 0.5},
            "optimising": {"rank_1": 0.0625, "rank_5": 0.5},
        },
        "utility": {
            "clean": dict(QUALITY),
            "released": {**QUALITY, "top_1": 0.8},
            "logit_distortion": 1.5,
            "l1_mean": 0.1,
            "l1_p99": 0.7,
            "l1_max": 1.9,
            "top_5_agreement": 0.975,
            "rank_correlation": 0.5,
            "cost": {
                "bare": dict(COST),
                "guarded": {**COST, "p50_milliseconds": 7.0},
                "failed": None,
            },
        },
    }
    return InversionRecord.from_json({**COMMITTED, **copy.deepcopy(record), **changes}, "a test")


def headline(**changes):
    return verdict(record_of(**changes))[0]


def shown(table):
    stream = io.StringIO()
    Console(file=stream, width=160).print(table)
    return stream.getvalue()


def test_where_the_trained_attackers_failed_the_headline_says_so_and_states_a_bound():
    failed = "The trained attackers failed: none does better than the label alone."
    label = ["label-only"] * 3
    fell_back = {"closed_gap": 1.0, "strongest": label}
    # Older records have no bound, and say of a failure what their intervals say.
    for old in (fell_back, {"closed_gap": 0.98, "closed_gap_interval": ends(0.95, 0.98, 1.01)}):
        assert headline(**old).startswith(f"{failed} Nothing is claimed of G")
    known = {"attack_failed": True, "detection_limit": 0.05, "closed_gap_at_least": 0.9289}
    assert headline(**fell_back, **known) == (
        f"{failed} G ≥ 0.92 against these attackers, who find known leaks that are worth 5 % of "
        "the gap."
    )
    blind = {"attack_failed": True, "detection_limit": None, "closed_gap_at_least": None}
    assert "not known to find a leak" in headline(**fell_back, **blind)
    few = {"attack_failed": True, "detection_limit": 0.05, "closed_gap_at_least": None}
    assert "too few queries" in headline(**fell_back, **few)


def ends(low, estimate, high):
    return {"low": low, "estimate": estimate, "high": high}


def test_the_headline_says_what_the_gap_means():
    more = "little leaks on average, but the least confident queries leak more."
    for gap, meaning in (
        (-0.2, "an attacker who retrains learns more than from clean scores."),
        (0.0, "most of what clean scores reveal still leaks."),
        (0.49, "most of what clean scores reveal still leaks."),
        (0.5, "part of what clean scores reveal still leaks."),
        (0.89, "part of what clean scores reveal still leaks."),
        (0.9, more),
        (0.99, more),
    ):
        assert headline(closed_gap=gap) == (
            f"The release closes G = {gap:.2f} of the gap (95 % interval: 0.25 to 0.35), and 0.12 "
            f"(-0.20 to 0.45) for the least confident 5 % of queries (25): {meaning}"
        )


def test_what_is_not_known_is_left_out_of_the_headline():
    assert headline(closed_gap_least_confident=None, closed_gap_interval=None) == (
        "The release closes G = 0.30 of the gap: most of what clean scores reveal still leaks."
    )


def test_an_interval_without_end_is_no_verdict():
    endless = {"low": "-inf", "estimate": 0.3, "high": "inf"}
    line = headline(closed_gap=1.0, closed_gap_interval=endless)
    assert line.startswith("Inconclusive:")
    assert "closes" not in line


def test_next_to_nothing_leaks_only_if_that_is_true_of_the_least_confident_queries():
    line = headline(closed_gap=0.95, closed_gap_least_confident=0.9)
    assert line.endswith("next to nothing leaks beyond the label, to these attackers.")
    for high, leak in ((0.89, "leak"), (0.9, "may leak"), ("inf", "may leak")):
        line = headline(
            closed_gap=0.95,
            closed_gap_least_confident=0.5,
            closed_gap_least_confident_interval={"low": 0.1, "estimate": 0.5, "high": high},
        )
        assert line.endswith(f"but the least confident queries {leak} more."), high


def test_nothing_is_good_that_no_decoder_attacked():
    hidden = {"closed_gap": 0.95, "closed_gap_least_confident": 0.9}
    assert words.headline(record_of(**hidden)).tone == "good"
    quick = ("label-only", "cell-means", "kernel-ridge", "stack")
    judged = words.headline(record_of(**hidden, errors=dict.fromkeys(quick, 0.03)))
    assert judged.tone == "mixed"
    assert judged.sentence.endswith("None of them trained a decoder: give the audit more time.")


def test_too_few_least_confident_queries_give_no_number():
    endless = {"low": "-inf", "estimate": 0.12, "high": "inf"}
    line = headline(closed_gap_least_confident_interval=endless, least_confident_queries=5)
    assert "; the least confident 5 % of queries (5) are too few for an estimate" in line
    assert "0.12" not in line


def test_what_was_not_measured_is_said_with_the_reason():
    assert not any("Not measured" in line for line in verdict(record_of()))
    plan = PLAN | {"seeds": 3}
    stopped = record_of(seeds=[0], stopped="TargetFailedError: status 503", plan=plan)
    sentence = "Not measured: 2 of 3 seeds (TargetFailedError: status 503)."
    assert sentence in verdict(stopped)
    utility = dict(record_of().utility)
    reason = "TargetFailedError while bare answers were timed: status 503"
    utility["cost"]["failed"] = reason
    utility["cost"]["bare"] = dict.fromkeys(COST)
    record = record_of(utility=utility)
    assert f"Not measured: the server's time for an answer ({reason})." in verdict(record)
    lines = shown(utility_table(record)).splitlines()
    assert next(line for line in lines if "median" in line).split()[-2:] == ["-", "7.00"]


def test_a_void_audit_says_nothing_about_the_release_in_its_headline():
    controls = {
        "identity": one_control("broken", True),
        "permutation": one_control("broken", False),
        "planted-leak": one_control("read", False),
        "label-only": one_control("holds", None),
    }
    for defense in ("adversarial-noise", "none", "guarded endpoint"):
        for gap in (None, -0.1, 0.3, 1.0):
            lines = verdict(
                record_of(void=True, controls=controls, defense=defense, closed_gap=gap)
            )
            assert lines[0] == (
                "VOID: these attackers misjudged permutation, planted-leak, whose leak is known. "
                "Nothing below says anything about the release."
            )
            assert not any("Controls passed" in line for line in lines)
            assert "G =" not in " ".join(lines)


def test_without_a_defense_the_headline_is_what_leaks():
    line = headline(defense="none", closed_gap=0.0, adaptive_error=0.009)
    assert line.startswith("Undefended, the scores take 70 % off the error that the label alone")
    none = headline(defense="none", closed_gap=None, adaptive_error=0.03)
    assert none == "Undefended, the scores reveal no more to these attackers than the label does."


def test_without_a_gap_the_headline_leaves_open_why():
    line = headline(closed_gap=None)
    assert line.startswith("There is no gap to close")
    assert "too weak" in line


def test_a_verdict_never_promises_more_than_was_tried():
    lines = verdict(record_of())
    assert "No label-preserving release can help" in lines[-1]
    assert lines[-2] == (
        "Decoders were trained on up to 4000 queried examples, for 12 to 24 epochs (twice as "
        "many gained less than 1 % of the gap), with 3 seeds; 500 test queries. They reconstruct "
        "no better than this; a stronger attacker may exist."
    )
    for word in ("prevent", "secure", "safe"):
        assert word not in " ".join(lines).lower()
    late = TRAINED | {"shown": False}
    convergence = {"static": late, "retrained": TRAINED, "averaging": late}
    line = verdict(record_of(seeds=[4], convergence=convergence))[-2]
    assert "12 epochs (more might still lower the error of static, averaging), with 1 seed" in line
    line = verdict(record_of(clean_convergence={"static": late}))[-2]
    assert "12 to 24 epochs (more might still lower the error of static on clean scores)" in line
    line = verdict(record_of(convergence={}, clean_convergence={}))[-2]
    assert "for epochs whose number this record lacks, with 3 seeds" in line
    quick = record_of(plan={**PLAN, "decoders": False})
    assert verdict(quick)[-2].startswith("No decoders were trained; attackers have 4000 queried")
    assert audit_limits(quick)[0].startswith("Attackers with 4,000 queried examples, who train no")


def test_an_audit_that_had_no_time_for_decoders_is_not_called_old():
    quick = numerics_of(["label-only", "cell-means", "kernel-ridge", "stack"])
    for numerics, decoders, stale in (
        (quick, False, False),
        (quick, True, True),
        ({**quick, "kernel-ridge": 0}, False, True),
        ({name: quick[name] for name in quick if name != "kernel-ridge"}, False, True),
    ):
        plan = {**PLAN, "decoders": decoders}
        assert is_stale(record_of(errors={}, numerics=numerics, plan=plan)) == stale


def test_baselines_and_the_strongest_attackers_are_named_once_each():
    assert verdict(record_of())[1] == (
        "Baselines (mean squared error): best attack on clean scores 0.0100, given the label alone "
        "0.0300, answering with the mean input 0.0900. Strongest attack on the release: 0.0160 "
        "(optimising, retrained)."
    )


def test_people_learn_how_often_they_are_re_identified():
    assert verdict(record_of())[2] == (
        "Re-identified at rank 1 among 200 true inputs: 25.0 % of queries (static attacker, the "
        "best); 50.0 % from clean scores, 1.0 % from the label alone, 0.5 % by chance."
    )


def test_people_learn_how_many_queries_are_identified_by_asking_about_candidates():
    shares = {
        "gallery": 200,
        "chance": 0.005,
        "distance": "L1",
        "repeats": 1,
        "clean_rank_5": 1.0,
        "label_rank_5": 0.05,
        "rank_5": 1.0,
        "clean_rank_1": 1.0,
        "label_rank_1": 0.015,
    }
    matching = {
        "true inputs": {"rank_1": 1.0, **shares},
        "noisy copies": {"rank_1": 0.75, **shares, "clean_rank_1": 0.875},
    }
    assert verdict(record_of(matching=matching))[3] == (
        "Identified at rank 1 by asking about each of 200 candidates (matching attacker): 100.0 % "
        "of queries among true inputs, 75.0 % among noisy copies; 100.0 % and 87.5 % from clean "
        "scores, 1.5 % and 1.5 % from the label alone, 0.5 % by chance."
    )
    assert not any("matching" in line for line in verdict(record_of())), "of an older record"
    cells = matching_table(record_of(matching=matching)).cells()
    assert cells[0] == ["true inputs, rank 1", "1.0000", "1.0000", "0.0150"]
    assert cells[3] == ["noisy copies, rank 5", "1.0000", "1.0000", "0.0500"]


def test_controls_vouch_for_the_attackers():
    passed, unclear = (
        "Controls passed: ",
        "Controls inconclusive (their attackers read no more",
    )
    broken, read = one_control("broken", True), one_control("read", True)
    unknown = one_control("broken", None)
    for controls, lines in (
        ({}, ["No controls were run: these attackers are untested."]),
        (
            {"identity": broken, "label-only": one_control("holds", True)},
            [f"{passed}identity, label-only."],
        ),
        (
            {"planted-leak": read, "identity": unknown},
            [f"{passed}planted-leak.", f"{unclear} from clean scores than the label): identity."],
        ),
        ({"identity": unknown}, [f"{unclear} from clean scores than the label): identity."]),
    ):
        said = [line for line in verdict(record_of(controls=controls)) if "ontrols" in line]
        assert said == lines


def test_what_was_left_out_for_lack_of_time_is_said_only_if_something_was():
    assert not any("left out" in line.lower() for line in verdict(record_of()))
    plan = PLAN | {"left_out": ["the optimising attacker", "2 of 3 seeds"]}
    missing = "eft out for lack of time: the optimising attacker; 2 of 3 seeds"
    # Beside G, before anything is said about what it means.
    facts, meaning = verdict(record_of(plan=plan))[0].split(missing)
    assert "closes G = 0.30 of the gap" in facts
    assert meaning.startswith(". With the attackers that ran, ")
    for options in ({"defense": "none"}, {"closed_gap": None}):
        assert verdict(record_of(plan=plan, **options))[0].endswith(f"L{missing}.")


def test_a_flag_is_one_line_with_its_page():
    flags = [{"name": name, "detail": "because"} for name in FLAGS]
    assert flag_lines(record_of(flags=flags)) == [
        f"flag {name}: because [docs/flags/{name}.md]" for name in FLAGS
    ]
    assert flag_lines(record_of()) == []


def test_each_attacker_has_a_row_with_what_it_knows():
    text = shown(attackers_table(record_of()))
    for part in ("label-only", "0.0300", "static", "0.0500", "retrained", "0.0160", "optimising"):
        assert part in text
    assert "released scores of its own images" in text


def test_privacy_has_a_column_for_whose_reconstructions():
    lines = shown(privacy_table(record_of())).splitlines()
    row = next(line for line in lines if "re-identified, rank 1" in line)
    assert row.split()[-3:] == ["0.2500", "0.5000", "0.0100"]
    assert any("PSNR" in line for line in lines)


def test_records_are_shown_by_column_and_without_what_only_images_have():
    privacy = dict(record_of().privacy)
    for one, value in zip(privacy.values(), (0.75, 0.875, 0.5), strict=True):
        del one["psnr_decibels"], one["ssim"]
        one["columns"] = {
            "sex": {"kind": "categorical", "value": value},
            "age": {"kind": "numeric", "value": value / 10},
        }
    text = shown(privacy_table(record_of(privacy=privacy)))
    assert "PSNR" not in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["sex,"] == ["sex,", "accuracy", "0.7500", "0.8750", "0.5000"]
    assert rows["age,"] == ["age,", "error", "0.0750", "0.0875", "0.0500"]


def test_utility_without_true_labels_shows_gaps_and_not_zeros():
    utility = dict(record_of().utility)
    utility["clean"] = utility["released"] = dict.fromkeys(QUALITY)
    lines = shown(utility_table(record_of(utility=utility))).splitlines()
    row = next(line for line in lines if "Brier" in line)
    assert row.split()[-2:] == ["-", "-"]
    row = next(line for line in lines if "median" in line)
    assert row.split()[-2:] == ["1.25", "7.00"]
    row = next(line for line in lines if "per second" in line)
    assert row.split()[-1] == "4000"


def test_distortion_of_a_release_with_zeros_is_infinite():
    assert "logits 1.500; 0 labels changed" in distortion_line(record_of())
    utility = dict(record_of().utility) | {"logit_distortion": None}
    line = distortion_line(record_of(utility=utility, label_changes=3))
    assert "logits infinite (zeros); 3 labels changed" in line
    assert "(99th percentile 0.7000, maximum 1.9000)" in line
