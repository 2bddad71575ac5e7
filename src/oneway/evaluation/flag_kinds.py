"""What every flag says, when it is raised, why that matters, and what to do then."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FlagKind:
    """A flag that an audit can raise; its texts are Markdown, links as from `docs/flags`.

    Attributes:
        says: What it says, as half a sentence.
        about: What is in question: the attack, or the release.
        raised_if: When it is raised.
        why: Why that matters.
        what_to_do: And then.
    """

    says: str
    about: str
    raised_if: str
    why: str
    what_to_do: str


FLAGS: dict[str, FlagKind] = {
    "attack-failed": FlagKind(
        says="an attacker does worse than one who is given the label alone",
        about="the attack",
        raised_if="""\
On some seed, an attacker's mean error on the test queries is above the label-only baseline by more
than the larger of

- two standard errors of the difference, query by query, and
- 1 % of the baseline.

Looked at are `retrained`, `adversarial-training`, `averaging` and `optimising`. Not `label-only`,
which is the baseline; and not `static`, whom a defense is meant to mislead: nothing is wrong with
that as long as `retrained` attacks, too, which it always does in an audit.""",
        why="""\
Whoever gets scores also gets the label, so an error above the label's is an attack that broke,
not a defense that worked. Its error must not be taken for privacy. The headline is safe, since
the strongest attacker counts and `label-only` is one of them; but then the closed gap is 1
because nobody managed to read more, which is weaker than that nobody can.

On faces, `static` errs by 0.1011 on the paper's noise, where the label alone gives 0.0458: taken
by itself that looks like twice the privacy of telling no scores at all. `retrained`, on the same
release, errs by 0.0330 ([results](../results.md), table1-faces).""",
        what_to_do="""\
- Look whether [not-trained-out](not-trained-out.md) or [control-failed](control-failed.md) is
  raised, too: then give the audit more time (`--minutes`, or none) or more auxiliary rows.
- Look at `plan.left_out` in `audit.json`: an input transform or width that was left out may be the
  one that reads this release.
- If all took part and the controls are as they must be, quote the closed gap with this flag
  beside it.""",
    ),
    "retraining-failed": FlagKind(
        says="an attacker who retrained does worse than one who did not",
        about="the attack",
        raised_if="""\
On some seed, `retrained` (trained on what is released) has a larger mean error than `static`
(trained on clean scores, fed what is released), by more than two standard errors of the
difference, query by query.""",
        why="""\
`retrained` could have learned whatever `static` knows: what it is trained on is what it is graded
on. If it is worse, its training failed, or the released scores are so noisy that clean ones teach
more. Either way a better attacker than both may exist, and the closed gap may be too large.""",
        what_to_do="""\
- Read the error of `averaging`, if the release is random: it takes the noise away before it
  trains.
- Give more auxiliary rows and more time. An attacker with few rows learns less from noisy scores
  than from clean ones.
- Quote the lower of the two errors, as the headline does, and say that it is that of `static`.""",
    ),
    "more-budget-smaller-gap": FlagKind(
        says="a stronger defense closes less of the gap",
        about="the release",
        raised_if="""\
A defense that has a strength is attacked at twice that strength, too, and leaks more there: one
decoder's mean error on the test queries is lower by more than two standard errors of the
difference, query by query, and by more than 5 %: decoders that were told the same differ by their
luck in training, too. Asked are

| defense | option that is doubled |
| --- | --- |
| `adversarial-noise` | `step_size` |
| `input-free-noise` | `step_size` |
| `gaussian-noise` | `standard_deviation` |
| `ssd` | `epsilon` |

whether the option was given (`--option step_size=0.1`) or left at the defense's default. The
decoder is one of the `retrained` kind, with the input transform `standardized` and the smallest
width in the plan, on the first seed. A guarded endpoint has no strength that could be doubled.""",
        why="""\
More change should hide more. Where it tells more, the change itself carries the query: it was
computed from it, and an attacker who trains on it reads it off. A defense that is stronger on
paper is then weaker, and tuning it for less leakage goes the wrong way.

On faces, the paper's noise at step 0.4 leaves `retrained` an error of 0.0330; at step 1 it is
0.0304, on clean scores 0.0404 ([results](../results.md), table2-faces).""",
        what_to_do="""\
- Do not raise the strength. Look at [tells-more-than-scores](tells-more-than-scores.md), which
  often comes with it.
- Audit at several strengths and quote the smallest gap among them beside yours.
- Take a release that is computed from the scores alone, and that many score vectors share.""",
    ),
    "unstable-answers": FlagKind(
        says="answers are random, or depend on the other queries of a batch",
        about="the release",
        raised_if="""\
64 test queries are asked twice in one order, once in reverse order, and the first 8 of them one
by one. Two answers differ if their L1 distance is above 0.001. The flag is raised if

- the same batch, asked twice, is answered differently, or the defense declares itself random
  (`deterministic = False`); or
- the answers are the same from time to time, but differ with order or company.

The first makes `averaging` one of the attackers: it asks each query 10 and 100 times.""",
        why="""\
Noise that is drawn anew for each answer is averaged away by whoever asks again; what counts is
the leakage of the mean answer. An answer that depends on its batch tells one client about
another's query, and no test of a single query says what it will be in service.

On MNIST, MID at beta 0.005 leaves `retrained` an error of 0.0373; who asks each query up to 100
times gets 0.0328 ([results](../results.md), table1-mnist; given the label alone it is 0.0405).""",
        what_to_do="""\
- Random by intent: read the error of `averaging`, and never quote the gap of an audit that left
  it out. Or derive the noise from the query, so that the same query is answered the same way.
- Random by accident: look for dropout that is on in service, and for sampling in preprocessing.
- Differs with the batch: look for normalization over the batch (a network that was not put in
  eval mode), or for padding.""",
    ),
    "labels-changed": FlagKind(
        says="the arg max changed in what was released",
        about="the release",
        raised_if="""\
For at least one test query, the arg max of the clean scores is not the only maximum of the
released vector. A tie counts, since a client's arg max may then be another class. `label_changes`
in `audit.json` says for how many queries.""",
        why="""\
A changed label is a wrong answer that the model did not give, and whoever relies on the service
pays for it. It also makes defenses incomparable: one that changes labels can hide more at the
cost of accuracy.

On faces, PPF changes 104 ± 32 of 2,400 labels. With its labels kept it changes 0 ± 0 and closes
the same gap, 0.61 ([results](../results.md), table1-faces): here the label_changes bought
nothing.""",
        what_to_do="""\
- Put the label modifier (`oneway.keep_label`) last in the defense; `gaussian-noise`,
  `dirichlet-noise`, `reverse-sigmoid` and `purification` have an option: `--option
  keep_label=true`.
- SeedResult and cast through `oneway.release`, which lifts the label by one step where rounding
  would tie it.
- If labels are changed by intent, quote accuracy with and without, and compare only with defenses
  at the same accuracy.""",
    ),
    "ties-or-zeros": FlagKind(
        says="released vectors hold exact ties or zeros",
        about="the release",
        raised_if="""\
At least one vector released for a test query has an entry that is exactly 0, or two entries that
are exactly equal, as float32. The flag says for which share of the vectors each holds. Undefended
models raise it, too, where they are so sure that float32 has no number for the rest. A
`--guarded` endpoint is seen as it answers. A `MODEL` that answers with confidences is seen less
sharply: its zeros are read as the smallest float32, so that a single one is not seen and two are
a tie, and a tie for the top is parted.""",
        why="""\
A zero has no logarithm. Decoders that take one then see a huge negative number, and a defense
that seed_results or cuts seems to win by breaking the attacker's scaling rather than by hiding
anything. Ties break clients who sort scores, and tell which classes a defense treated alike.""",
        what_to_do="""\
- Make sure that the input transforms `standardized`, `within-label` and `leading` took part
  (`plan.input_transforms` in `audit.json`): all read a zero as 0.3 of the smallest positive score,
  so that rounding breaks none. Only `faithful` is ever left out for lack of time.
- If rounding is the defense, nothing needs to be done: its gap counts as it was measured.
- If not, release more decimals, or cut later.""",
    ),
    "worse-calibrated": FlagKind(
        says="released probabilities are worse calibrated than clean ones",
        about="the release",
        raised_if="""\
The expected calibration error (15 bins; Guo et al., ICML 2017) on the test queries rises by more
than 0.02 from clean scores to released ones. Without true labels of the test queries it cannot be
told, and is not raised.""",
        why="""\
A score of 0.9 should be right nine times in ten. Clients set thresholds by it, and hand the rest
to a person. A defense that keeps every label may still make such thresholds worthless, which
accuracy does not show.""",
        what_to_do="""\
- Compare `utility.clean` and `utility.released` in `audit.json`: the negative log-likelihood and
  the Brier score say how much worse, `failure_auroc` whether mistakes can still be told by their
  top score.
- Lower the budget, or take a defense whose released vectors are means of clean ones, such as
  `prototypes`.
- Or tell clients to use labels alone.""",
    ),
    "tells-more-than-scores": FlagKind(
        says="the release depends on the input beyond the clean scores",
        about="the release",
        raised_if="""\
Either or both:

- the defense reads the query itself (`requires_input`), as `adversarial-noise` does;
- the strongest attacker on the release errs less than the best one on clean scores, by more than
  5 % and two standard errors of the difference, query by query, means over seeds.

Of a guarded endpoint only the second can be seen.""",
        why="""\
What is computed from clean scores alone can tell no more than they do. A release that is computed
from the query has no such bound: it may write the query into the scores while every label stays
the same.

On faces, the paper's noise leaves the retrained attacker an error of 0.0330, where clean scores
leave 0.0404: a closed gap of -1.37 ± 0.24 ([results](../results.md), table1-faces).""",
        what_to_do="""\
- If G is below 0, do not deploy the defense: no defense at all would leak less.
- If the flag says only that the defense reads the query, the measured gap may still be above 0,
  but nothing bounds what a stronger decoder reads. Audit with more auxiliary rows, and at twice
  the strength ([more-budget-smaller-gap](more-budget-smaller-gap.md)).
- Prefer a defense that is a function of the scores.""",
    ),
    "too-few-seeds": FlagKind(
        says="fewer seeds than were asked for, or than a published number needs",
        about="the attack",
        raised_if="""\
Fewer than 3 seeds were run, or fewer than `--seeds` asked for: it asked for fewer than 3, the
plan left some out to fit into `--minutes`, or another seed would have taken longer than there was
time, or the model failed after the first (`stopped` in `audit.json` says how). The flag says how
many of how many were run.""",
        why="""\
A decoder's training depends on chance: its initial weights, the order of the rows, which rows it
held out. One run says little about the next one. The interval beside G is over queries and does
not contain this.

On faces, MID closes 0.64 ± 0.29 of the gap for the least confident 5 % of queries at beta 0.001,
and 0.81 ± 0.29 at 0.02 ([results](../results.md), table1-faces): even three seeds do not tell
which hides more there, and one would have told a story.""",
        what_to_do="""\
- For a look, nothing: one seed is a smoke run, and the flag says so.
- For a number that others will read, run three (`--seeds 3`, the default) and give `--minutes`
  enough, or leave it out. A rerun trains only what is not yet in `--cache`.""",
    ),
    "not-trained-out": FlagKind(
        says="the attackers were still learning when their time was over",
        about="the attack",
        raised_if="""\
The search for the plateau ended without one. It trains one decoder (input transform
`standardized`, the largest width in the plan) on clean scores and one on released scores, each for
some epochs and for twice as many, and doubles, from 6 epochs (more, if there are fewer than 6,400
auxiliary rows), as long as twice as many lower either held-out error by 1 % or more. It ends
without a plateau

- at 48 epochs, or 8 times those it began with (never after: what would be longer than that is not
  tried); or
- with `--minutes`, after a gain, once a third of the time is spent or twice the plan's expected
  time is longer than there is.""",
        why="""\
All attackers, on clean scores and on the release alike, get the number of epochs that was found.
If more would have gained, they are weaker than they need to be, and a release that is merely
harder to learn looks as if it hid something.""",
        what_to_do="""\
- Raise `--minutes`, or leave it out.
- If the most epochs do not suffice, raise the limit in Python, by
  `AuditSettings(most_epochs=...)`; or give more auxiliary rows, which are more steps per epoch.
- Quote the number of epochs with the gap: it is the gap to attackers who trained that long.""",
    ),
    "control-failed": FlagKind(
        says="the audit missed a planted leak, or saw one where there is none",
        about="the attack",
        raised_if="""\
An attack on a release whose leak is known came out otherwise:

| control | must be | fails if |
| --- | --- | --- |
| `identity`, clean scores | broken, G about 0 | G > 0.35 |
| `permutation`, scores under other classes' names | broken | G > 0.35 |
| `temperature`, 2 | broken | G > 0.35 |
| `class-offsets`, a fixed vector per predicted label | broken | G > 0.35 |
| `noisy-tail`, four entries as they are among noise | broken, as if the rest were even | G > 0.35 |
| `averaged-noise`, 1.5 nats, where answers are random | broken by averaging | G > 0.35 |
| `planted-leak`, entries of the query in low digits | read | less than 0.5 of their error is gone |
| `label-only` | unbroken, G about 1 | G < 0.65 |

Each is attacked by one decoder of the smallest width in the plan on up to 4,000 auxiliary rows,
and graded on up to 2,000 test queries, drawn at random. The decoder is of the `retrained` kind
with the input transform `within-label`, but for `noisy-tail` (input transform `leading`) and
`averaged-noise` (of the `averaging` kind, with the most answers in the plan). All but
`planted-leak` cannot be told, and neither pass nor fail, where clean scores (of `noisy-tail`: the
same release with the others spread evenly) improve on the label by six standard errors or less.""",
        why="""\
A large gap has two explanations: the release hides much, or the attackers are weak. Controls tell
them apart. Attackers who do not break a permutation would not break a defense either; a harness
that finds a gap in `label-only` leaks the truth somewhere. The audit is then void, and its report
says so first.""",
        what_to_do="""\
- Do not quote anything of this audit.
- A control that must be broken or read was not: give more auxiliary rows, more time (`--minutes`)
  or both. `attack` and `input_transform` in `audit.json` say which part of the attackers it vouched
  for.
- `label-only` did not hold: look for test queries that are nearly, but not to the bit, auxiliary
  ones. Those that are equal are refused before anything is asked.""",
    ),
}
"""Every flag by name. The documentation has a page of each, made from this."""
