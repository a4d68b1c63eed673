"""Routes of the Open Inference Protocol about the server and its models: metadata and health.

`config` and `repository/index` are Triton's extensions; the service offers the parts of them that
Triton's clients use. Clients cannot load or unload models.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import FastAPI, Path
from pydantic import BaseModel, Field

from service.api.openapi import link, links
from service.errors import NoSuchBundle
from service.gate.problems import OipError, envelope_responses
from service.serving.deployment import Deployment
from service.serving.deployments import Slot
from service.serving.serving import Serving
from service.version import __version__

TAG: Final = "open inference protocol"
PLATFORM: Final = "astrolabe"
ANY_SIZE: Final = -1
ERRORS: Final = envelope_responses(OipError)
VERSION_CHARS: Final = 12
"""How many characters of a bundle's id are the version of its model. A choice: 48 bits of the id
tell the bundles of one name apart, and a person can still read them."""

Name = Annotated[
    str, Path(description="A model's name; /v1/models lists them.", examples=["gutenberg-bag"])
]
EXAMPLE: Final = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["moby dick"]}]
}
_VERSION: Final = "/v2/models/{name}/versions/{version}"


class ServerMetadata(BaseModel):
    """The server and the extensions of the protocol that it offers."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """An input or output of a model; a -1 in its shape stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, its versions, and its inputs and outputs. A request may leave out the input `k`."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(BaseModel):
    """An input or output, in the form of Triton's model configuration."""

    name: str
    data_type: str
    dims: list[int]
    optional: bool = False


class ModelConfig(BaseModel):
    """The fields of Triton's model configuration that apply to this service."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = Field(
        0, description="0 says, as in Triton, that the shapes include the batch dimension."
    )
    input: list[ConfigTensor]
    output: list[ConfigTensor]


class IndexEntry(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: str
    reason: str


class Alive(BaseModel):
    """The answer of the liveness probe."""

    live: bool


class Ready(BaseModel):
    """The answer of a readiness probe that succeeds."""

    ready: bool


class AnswerTensor(BaseModel):
    """One tensor of an answer.

    A tensor in binary form has no `data`; its `parameters` hold `binary_data_size`.
    """

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """The JSON of an answer to an inference request."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[AnswerTensor]


def add_oip_metadata(app: FastAPI, serving: Serving) -> None:
    """Add all routes of the protocol except inference."""
    _add_server(app, serving)
    parameters = {"name": "$response.body#/name", "version": "$response.body#/versions/0"}
    to_version = links(
        metadata=link("get", _VERSION, parameters),
        ready=link("get", _VERSION + "/ready", parameters),
        config=link("get", _VERSION + "/config", parameters),
        infer=link("post", _VERSION + "/infer", parameters, EXAMPLE),
    )
    _add_model(app, serving, "", _metadata, ModelMetadata, to_version)
    _add_model(app, serving, "/ready", lambda _: _ready(serving), Ready)
    _add_model(app, serving, "/config", _config, ModelConfig)


def _add_server(app: FastAPI, serving: Serving) -> None:
    @app.get("/v2", tags=[TAG], responses=ERRORS)
    async def server_metadata() -> ServerMetadata:
        """The server, its version and the extensions that it offers."""
        return ServerMetadata(
            name=PLATFORM,
            version=__version__,
            extensions=["binary_tensor_data", "model_configuration", "model_repository(index)"],
        )

    @app.get("/v2/health/live", tags=[TAG], responses=ERRORS)
    async def server_live() -> Alive:
        """Whether the process runs."""
        return Alive(live=True)

    @app.get("/v2/health/ready", tags=[TAG], responses=ERRORS)
    async def server_ready() -> Ready:
        """Whether the service answers requests, as /readyz says."""
        return _ready(serving)

    @app.post("/v2/repository/index", tags=[TAG], responses=ERRORS)
    async def repository_index() -> list[IndexEntry]:
        """Every open version of every model."""
        return [
            IndexEntry(name=name, version=version_of(deployment), state="READY", reason="")
            for name, slot in serving.deployments.slots.items()
            for deployment in _open_bundles(slot)
        ]


def _add_model(
    app: FastAPI,
    serving: Serving,
    suffix: str,
    answer: Callable[[Slot], BaseModel],
    kind: type[BaseModel],
    to_version: dict[int | str, dict[str, Any]] | None = None,
) -> None:
    """Add two routes of one kind: about a model, and about one version of it."""
    options: dict[str, Any] = {"tags": [TAG], "response_model": kind}
    options["responses"] = ERRORS | (to_version or {})

    @app.get("/v2/models/{name}" + suffix, description=kind.__doc__, **options)
    async def model(name: Name) -> BaseModel:
        return answer(serving.deployments.slot(name))

    @app.get("/v2/models/{name}/versions/{version}" + suffix, description=kind.__doc__, **options)
    async def model_version(name: Name, version: str) -> BaseModel:
        return answer(Slot(at_version(serving.deployments.slot(name), version)))


def at_version(slot: Slot, version: str) -> Deployment:
    """The open bundle of this version; raises NoSuchBundle."""
    for deployment in _open_bundles(slot):
        if version == version_of(deployment):
            return deployment
    versions = ", ".join(version_of(deployment) for deployment in _open_bundles(slot))
    raise NoSuchBundle(
        f"model {slot.current.name} has no version {version[:80]!r}: its versions are {versions}"
    )


def version_of(deployment: Deployment) -> str:
    """A model's version: the beginning of its bundle's id, so it changes with the bundle."""
    return deployment.bundle_id[:VERSION_CHARS]


def _open_bundles(slot: Slot) -> list[Deployment]:
    """The bundles that answer under one name, the current one first."""
    return [slot.current] if slot.canary is None else [slot.current, slot.canary]


def _ready(serving: Serving) -> Ready:
    serving.check_ready()
    return Ready(ready=True)


def _metadata(slot: Slot) -> ModelMetadata:
    manifest = slot.current.engine.manifest
    texts_by_labels = [ANY_SIZE, ANY_SIZE]
    return ModelMetadata(
        name=manifest.name,
        versions=[version_of(deployment) for deployment in _open_bundles(slot)],
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name="text", datatype="BYTES", shape=[ANY_SIZE]),
            TensorMetadata(name="k", datatype="INT32", shape=[1]),
        ],
        outputs=[
            TensorMetadata(name="label_id", datatype="BYTES", shape=texts_by_labels),
            TensorMetadata(name="label_text", datatype="BYTES", shape=texts_by_labels),
            TensorMetadata(name="score", datatype="FP32", shape=texts_by_labels),
            TensorMetadata(
                name="embedding", datatype="FP32", shape=[ANY_SIZE, manifest.encoder.dim]
            ),
        ],
    )


def _config(slot: Slot) -> ModelConfig:
    metadata = _metadata(slot)
    return ModelConfig(
        name=metadata.name,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=0,
        input=[_config_tensor(tensor, optional=tensor.name == "k") for tensor in metadata.inputs],
        output=[_config_tensor(tensor) for tensor in metadata.outputs],
    )


def _config_tensor(tensor: TensorMetadata, optional: bool = False) -> ConfigTensor:
    data_type = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    return ConfigTensor(name=tensor.name, data_type=data_type, dims=tensor.shape, optional=optional)
