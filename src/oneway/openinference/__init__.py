"""Messages of the Open Inference Protocol, version 2, and of plain JSON, for clients and servers.

Source:
    https://github.com/open-inference/open-inference-protocol, REST; and Triton's extension for
    binary tensor data.
"""
