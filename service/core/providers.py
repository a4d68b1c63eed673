"""Which ONNX Runtime execution providers a device setting means, asked for and then checked.

`cuda` and `tensorrt` never fall back: a service that was bought a GPU and runs on the CPU without a
word is the failure this file exists to prevent. `auto` may fall back, and its caller says so aloud.
"""

from collections.abc import Sequence
from typing import Final

from service.errors import DeviceUnavailable

DEVICES: Final = ("auto", "cuda", "tensorrt", "cpu")

_PROVIDERS: Final[dict[str, list[str]]] = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ],
}


def candidate_providers(device: str, available: Sequence[str]) -> list[list[str]]:
    """Provider lists to try, in order. Raises DeviceUnavailable if this build has no such provider.

    >>> candidate_providers("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"])
    [['CUDAExecutionProvider', 'CPUExecutionProvider'], ['CPUExecutionProvider']]
    """
    if device == "auto":
        cuda = _PROVIDERS["cuda"]
        return ([cuda] if cuda[0] in available else []) + [_PROVIDERS["cpu"]]
    wanted = _PROVIDERS[device]
    if wanted[0] not in available:
        raise DeviceUnavailable(
            f"device {device} was asked for, but this ONNX Runtime has only "
            f"{', '.join(available)}: install onnxruntime-gpu, "
            "or set ASTROLABE_DEVICE to cpu or auto"
        )
    return [wanted]


def active_device(providers: Sequence[str]) -> str:
    """Name of the device a session really uses, from the providers it reports."""
    for device in ("tensorrt", "cuda"):
        if _PROVIDERS[device][0] in providers:
            return device
    return "cpu"
