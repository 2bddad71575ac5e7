"""The randomness that a random defense is given."""

from torch import Generator

from oneway.errors import InvalidOptionError


def check_generator(generator: Generator | None) -> None:
    """Refuse anything but a generator on the CPU.

    Raises:
        InvalidOptionError: It is something else.
    """
    if not isinstance(generator, Generator) or generator.device.type != "cpu":
        raise InvalidOptionError(
            "generator must be a torch.Generator on the CPU; noise is drawn there and then "
            "moved. Seed it so that no client can guess its draws."
        )
