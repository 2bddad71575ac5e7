"""What a page states: sentences, cut where marks stand, and the list of all claims."""

from oneway.report.claims import claims_page, statements
from oneway.report.measured import END
from planted_records import release_record
from report.test_measured import stored

CLAIM = 'small "near" closed_gap > 0'
PAGE = f"""\
# A title

It hides *much* (one seed)<!-- claim: {CLAIM} -->, [and
it](b.md) leaves
little.<!-- basis: definition --> oneway is 3.2. `This` is
"bare." (So it is.)

- Two marks<!-- claim: a ? 0 --><!-- claim: b
c -->. An end

```text
No code.
```

<!-- measured: x -->
| none | of |
| --- | --- |
| this | . |
{END}
| a cell | .5 is 0.5 |
| --- | --- |
![a picture](c.png)
"""


def test_statements_end_at_marks_and_at_ends_of_sentences():
    assert [(each.words, each.claims, each.basis) for each in statements(PAGE)] == [
        ("A title", (), ()),
        ("It hides much", (CLAIM,), ()),
        (", and it leaves little.", (), ("definition",)),
        ("oneway is 3.2.", (), ()),
        ('This is "bare."', (), ()),
        ("(So it is.)", (), ()),
        ("Two marks", ("a ? 0", "b\nc"), ()),
        (".", (), ()),
        ("An end", (), ()),
        ("a cell", (), ()),
        (".5 is 0.5", (), ()),
        ("a picture", (), ()),
    ]


def test_claims_are_listed_with_what_the_records_say(tmp_path):
    records = [
        release_record("near", seed, closed_gap=gap) for seed, gap in enumerate((0.48, 0.52))
    ]
    measurements = stored(tmp_path, records)
    pages = {
        "here.md": f"It is so<!-- claim: {CLAIM} -->, it is not<!-- claim: small\n"
        '"absent" closed_gap > 0 -->. It must be<!-- basis: tests/a.py -->. '
        "It can be<!-- basis: proof -->. It is called so<!-- basis: definition -->.",
        "there.md": "Nothing to see.",
    }
    listed = claims_page(pages, measurements, "oneway results")
    assert "| It is so | `" + CLAIM + "` | 0.2459 to 0.7541 | - |\n" in listed
    assert '| it is not | `small "absent" closed_gap > 0` | - | not measured |\n' in listed
    assert "| It must be | `tests/a.py` | - | - |\n" in listed
    assert "| It can be | *proof* | - | - |\n" in listed
    assert listed.count("| ") == listed.count(" |\n") * 4
    assert "there.md" not in listed
