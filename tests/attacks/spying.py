"""A registered attack under its own name that shows what it is given."""


def spied(attack, watch):
    """Return the same attack, which first calls ``watch`` with the attacker's knowledge."""

    class Spied(type(attack)):
        def __call__(self, knowledge, train):
            watch(knowledge)
            return super().__call__(knowledge, train)

    return Spied()
