"""A trained run opened again: its model, as the best epoch left it."""

from safetensors.torch import load_file

from models.encoders.build import empty_encoder
from models.methods.astra import Astra
from models.runs import ARCHITECTURE_FILE, MODEL_FILE, Run


def load_model(run: Run) -> Astra:
    """The best epoch's model. Raises RunError."""
    weights = load_file(str(run.require(MODEL_FILE, "train")))
    architecture = None
    if run.has(ARCHITECTURE_FILE):
        architecture = (run.folder / ARCHITECTURE_FILE).read_text("utf-8")
    of_encoder = {
        name.removeprefix("encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.")
    }
    encoder = empty_encoder(run.config.encoder, of_encoder, architecture)
    model = Astra(encoder, weights["labels.weight"], run.config.method)
    model.load_state_dict(weights)
    return model
