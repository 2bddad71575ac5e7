"""HTTP in front of a guarded model. It loads nothing that attacks."""

from oneway.serving.app import serving_app
from oneway.serving.frames import GuardedFrames
from oneway.serving.guarded import GuardedModel, GuardedScores
from oneway.serving.logs import start_logging
from oneway.serving.proxied_model import ProxyOptions, open_upstream
from oneway.serving.proxy import check_proxy, proxy_app
from oneway.serving.running import listen, run
from oneway.serving.settings import ServingSettings, load_settings
from oneway.serving.tensors import GuardedTensors, TensorBatch

__all__ = [
    "GuardedFrames",
    "GuardedModel",
    "GuardedScores",
    "GuardedTensors",
    "ProxyOptions",
    "ServingSettings",
    "TensorBatch",
    "check_proxy",
    "listen",
    "load_settings",
    "open_upstream",
    "proxy_app",
    "run",
    "serving_app",
    "start_logging",
]
