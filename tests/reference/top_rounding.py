"""Top rounding once more, slowly: whole numbers of units, one row at a time, plain Python."""

import math

from reference.wen2021 import first_maximum


def round_half_even(value: float) -> int:
    """Round to the nearest whole number; Python's own rule is the one that is meant."""
    return round(value)


def top_rounded(logits: list[float], count: int, decimals: int) -> tuple[dict[int, int], float]:
    """Return the units of each class that is told, and what each of all the others has."""
    classes, units = len(logits), 10**decimals
    largest = max(logits)
    powers = [math.exp(value - largest) for value in logits]
    label = first_maximum(logits)
    # The label first; a sort keeps the order of equals.
    ranked = [label, *sorted((k for k in range(classes) if k != label), key=lambda k: -logits[k])]
    told = ranked[: min(count, classes - 1)]
    exact = {k: units * powers[k] / sum(powers) for k in told}
    # Python rounds halves to even numbers, as is meant.
    kept = {k: round(exact[k]) for k in told}
    while sum(kept.values()) > units:
        # Who gained most gives a unit back, once; of equals the last.
        giver = max(
            (k for k in told if kept[k] == round(exact[k])),
            key=lambda k: (kept[k] - exact[k], told.index(k)),
        )
        kept[giver] -= 1
    rivals = [k for k in told[1:] if kept[k] >= kept[label] and kept[k] > 0]
    if rivals:
        kept[rivals[-1]] -= 1
        kept[label] += 1
    kept = {k: number for k, number in kept.items() if number > 0}
    return kept, (units - sum(kept.values())) / units / (classes - len(kept))


def released_row(logits: list[float], count: int, decimals: int) -> list[float]:
    """Return the probabilities; a label below the even rest is raised to it."""
    kept, rest = top_rounded(logits, count, decimals)
    row = [kept[k] / 10**decimals if k in kept else rest for k in range(len(logits))]
    label = first_maximum(logits)
    row[label] = max(row[label], rest)
    return [value / sum(row) for value in row]
