"""HTTP in front of a guarded model. It loads nothing that attacks."""

from oneway.serving.app import serving_app
from oneway.serving.guarded_model import GuardedModel
from oneway.serving.logs import start_logging
from oneway.serving.running import listen, run
from oneway.serving.settings import ServingSettings, load_settings

__all__ = [
    "GuardedModel",
    "ServingSettings",
    "listen",
    "load_settings",
    "run",
    "serving_app",
    "start_logging",
]
