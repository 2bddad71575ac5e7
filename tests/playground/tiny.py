"""A playground that is trained in seconds, and how to serve one from a test."""

import contextlib
import dataclasses
import threading

from oneway.benchmark import bundled_spec
from oneway.inversion import TrainingSettings
from oneway.playground import Server, listen
from oneway.targets import TargetTrainingSettings
from playground.planted import PATIENCE


def tiny_spec():
    """Return the playground's spec with short trainings.

    A codebook of cells of five is certified by a fifth of the auxiliary rows: 900 leave about 57
    pairs that share a cell, where 30 are needed, whatever target a processor trains.
    """
    spec = bundled_spec("playground")
    training = TrainingSettings(
        epochs=3, batch_size=16, learning_rate=0.02, averaging=0.9, schedule="one-cycle"
    )
    return dataclasses.replace(
        spec,
        data=dataclasses.replace(spec.data, private=400, auxiliary=900, test=100),
        target=dataclasses.replace(
            spec.target,
            width=8,
            training=TargetTrainingSettings(epochs=3, learning_rate=0.01, label_smoothing=0.2),
        ),
        surrogate=dataclasses.replace(spec.surrogate, width=4, training=training),
        attackers=dataclasses.replace(
            spec.attackers,
            widths=(4,),
            input_transforms=("standardized",),
            training=training,
            most_epochs=training.epochs,  # one length, as in the playground itself
        ),
    )


@contextlib.contextmanager
def served(worker):
    """Serve a worker's page from a thread until the block ends; give its address."""
    started = threading.Event()
    with listen(0) as listener:
        server = Server(worker, started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert started.wait(PATIENCE)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
