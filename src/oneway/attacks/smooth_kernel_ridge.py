"""Kernel ridge regression with a smooth kernel."""

from typing import ClassVar

from oneway.attacks.kernel_ridge import KernelRidge


class SmoothKernelRidge(KernelRidge):
    """Regress inputs on released scores with a smooth kernel.

    With many classes, or with scores without noise, it can be the best of the regressions. It is an
    attacker of its own, since leave-one-out errors flatter it on a codebook that was fitted to the
    attacker's own rows: a choice by these errors would drop better regressions.
    """

    name: ClassVar = "smooth-kernel-ridge"
    knows: ClassVar = "released scores of its own images, read by a smooth kernel ridge regression"
    left_out: ClassVar = "late"
    numerics: ClassVar = 1
    regressions: ClassVar = (("within-label", "rational quadratic"),)
