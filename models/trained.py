"""The model of a configuration, untrained or with the weights of a trained run."""

from safetensors.torch import load_file

from models.config import Config
from models.data.tokens import TokenizedTexts
from models.encoders.build import TextEncoder, empty_encoder
from models.errors import TrainingError
from models.methods import astra, elias
from models.runs import ARCHITECTURE_FILE, MODEL_FILE, Run
from models.training.distributed import World
from models.training.method import Method
from models.training.training_rows import TrainingRows


def fresh_model(
    encoder: TextEncoder,
    label_texts: TokenizedTexts,
    config: Config,
    points: TrainingRows,
    world: World,
) -> tuple[Method, TrainingRows]:
    """The untrained model of `config.method`, and its training rows: points, then label texts.

    Raises TrainingError if torchrun started several processes for a method that trains in one.
    """
    if config.method.kind != "elias":
        return astra.build(encoder, label_texts, config.method, points, world)
    if world.size > 1:
        raise TrainingError(
            f"method.kind is elias, which trains in one process, and torchrun started {world.size}:"
            " start it without torchrun"
        )
    return elias.build(encoder, label_texts, config.method, config.elias, points)


def load_model(run: Run) -> Method:
    """The model with the best epoch's weights. Raises RunError if the run is not trained."""
    weights = load_file(str(run.require(MODEL_FILE, "train")))
    architecture = None
    if run.has(ARCHITECTURE_FILE):
        architecture = (run.folder / ARCHITECTURE_FILE).read_text("utf-8")
    encoder_weights = {
        name.removeprefix("encoder."): tensor
        for name, tensor in weights.items()
        if name.startswith("encoder.")
    }
    config, labels = run.config, weights["labels.weight"]
    encoder = empty_encoder(config.encoder, encoder_weights, architecture)
    model: astra.Astra | elias.Elias
    if config.method.kind == "elias":
        model = elias.Elias(encoder, len(labels), config.method, config.elias)
    else:
        model = astra.Astra(encoder, labels, config.method)
    model.load_state_dict(weights)
    return model
