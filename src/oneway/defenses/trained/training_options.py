"""Options of training that several trained defenses share."""

from oneway.options import Options, option


class TrainingOptions(Options):
    """Options of every training of a network."""

    epochs: int = option("Passes over the training rows.", default=8)
    learning_rate: float = option("Learning rate of Adam.", default=1e-3, above=0)
    batch_size: int = option("Rows per step.", default=64, least=2)
