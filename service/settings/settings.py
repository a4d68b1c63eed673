"""Settings: one frozen class with every setting of the service.

`service.__main__` builds it once, with `load_settings`, from flags and the environment, and passes
it on. Code below reads settings from it and not from the environment. `python -m service.settings`
prints docs/configuration.md from the same class.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.errors import SettingsInvalid
from service.settings.edge import EdgeSettings
from service.settings.feedback import FeedbackSettings
from service.settings.gpu import GpuSettings
from service.settings.observing import ObservingSettings
from service.settings.places import BUNDLE_CACHE, Place
from service.settings.service_links import is_service_link, service_links

PREFIX: Final = "ASTROLABE_"


class Settings(EdgeSettings, FeedbackSettings, GpuSettings, ObservingSettings):
    """Serve a sealed bundle over HTTP. A flag wins over its environment variable."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_ignore_empty=True,
        cli_prog_name="python -m service",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )

    bundle: Place = Field(
        description="The bundle to serve, or a folder of bundles with a CURRENT pointer: a path, "
        "or a URL (`s3://`, `gs://`, `az://`, `https://`, `hf://`, `file://`), which needs the "
        "extra `remote`: docs/operations.md, Bundles by URL."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes any free one.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Worker processes that share the port and, on the CPU with `intra_op_threads` "
        "1, one copy of the bundle. Queue limits hold for each of them.",
    )
    worker_silence_s: float = Field(
        15.0,
        ge=2,
        description="With several workers: one whose event loop has not turned for so long is "
        "killed and replaced.",
    )
    device: Literal["auto", "cuda", "tensorrt", "cpu"] = Field(
        "auto",
        description="Where the encoder runs. With `cuda` or `tensorrt` the service refuses to "
        "start without such a device; `auto` falls back to the CPU and logs it.",
    )
    encoder_variant: str | None = Field(
        None,
        min_length=1,
        description="Precision of the encoder, one that the bundle has: `fp32`, `fp16` (for GPUs) "
        "or `int8` (for CPUs). Not set: the bundle's own choice.",
    )
    lanes: int = Field(
        0,
        ge=0,
        le=256,
        description="Batches computed at once. 0 means one for every `intra_op_threads` usable "
        "CPUs (within affinity and cgroup quota), or two on a GPU; divided by `workers`.",
    )
    intra_op_threads: int = Field(
        1, ge=1, le=256, description="Threads of one encoder call inside its lane."
    )
    max_batch_tokens: int = Field(
        4096,
        ge=1,
        description="Most padded tokens in one encoder call; at least the bundle's max_tokens.",
    )
    max_queue_tokens: int = Field(
        65536,
        ge=1,
        description="Most estimated tokens that may wait; further requests get 429. At least "
        "max_batch_tokens.",
    )
    bulk_queue_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of max_queue_tokens that requests with `X-Request-Priority: bulk` may "
        "fill. Interactive requests may fill all of it, and push bulk ones out.",
    )
    max_batch_ms: float = Field(
        50.0,
        ge=0,
        description="Longest time that a batch may compute, by the measured pace. On a CPU a "
        "longer batch is no faster for each text, and all its texts wait for its end. With 0 only "
        "max_batch_tokens limits a batch.",
    )
    max_queue_wait_ms: float = Field(
        0.0,
        ge=0,
        description="Longest time that an interactive request may wait for a lane, by the measured "
        "pace; one that would wait longer gets 429. With 0 only max_queue_tokens and the "
        "request's deadline limit the wait.",
    )
    batch_wait_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="How long a free lane waits for a fuller batch. With 0 it starts at once.",
    )
    adaptive_effort: bool = Field(
        False,
        description="While requests wait too long, answer at a cheaper operating point than "
        "requested; the answer says so. Needs a bundle whose points differ in measured cost.",
    )
    adaptive_target_ms: float = Field(
        20.0,
        gt=0,
        description="Queue delay that `adaptive_effort` aims at. Effort goes down one step if, for "
        "a whole interval, the oldest request of every batch has waited longer.",
    )
    adaptive_clear_ms: float = Field(
        5.0,
        gt=0,
        description="Queue delay below which effort may go up again. It must be below "
        "adaptive_target_ms and above batch_wait_ms.",
    )
    adaptive_interval_ms: int = Field(
        250,
        ge=1,
        description="How long the delay must stay above a threshold before it counts; also the "
        "least time between two steps down.",
    )
    adaptive_hold_s: float = Field(
        5.0,
        gt=0,
        description="Effort goes up one step after this time below adaptive_clear_ms, and to the "
        "top if nothing waited for this time. The time doubles whenever a step up must be undone, "
        "up to eight times its value. At least adaptive_interval_ms.",
    )
    request_timeout_ms: int = Field(
        2000,
        ge=1,
        description="Deadline of a request that names none; after it the answer is 504.",
    )
    request_timeout_max_ms: int = Field(
        30000, ge=1, description="Longest deadline that X-Request-Timeout-Ms may name."
    )
    max_body_bytes: int = Field(
        1 << 20,
        ge=1,
        description="Largest request body; a larger one gets 413. Other answers wait while a body "
        "is parsed: up to 25 ms for each MiB.",
    )
    max_queries: int = Field(64, ge=1, description="Most texts in one request; more get 413.")
    max_text_chars: int = Field(8192, ge=1, description="Longest text; a longer one gets 413.")
    max_k: int = Field(100, ge=1, description="Most labels in the answer to one query.")
    cache_entries: int = Field(
        0,
        ge=0,
        description="Answers that each bundle's cache holds; a POST body that comes again, byte "
        "for byte, is answered from it. 0 turns the cache off. A swap of the bundle and a change "
        "of a label empty it.",
    )
    max_filter_ids: int = Field(
        10000, ge=1, description="Most ids in `allow` or `deny`, and most values in `where`."
    )
    label_rules: Path | None = Field(
        None,
        description="JSON file with each model's labels that no answer may hold, or the only ones "
        "that answers may hold: docs/operations.md, Label rules. The service reads it at start and "
        "for every new bundle.",
    )
    more_bundles: Annotated[tuple[Place, ...], NoDecode] = Field(
        (),
        description="Paths or URLs of further bundles, each served under its own name; separated "
        "by commas in the variable.",
    )
    bundle_keys: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="PEM files of Ed25519 public keys, separated by commas in the variable. With "
        "them the service refuses every bundle that none of these keys signed: "
        "docs/operations.md, Signed bundles. The service reads them at start and for every new "
        "bundle. Not set: it does not look at signatures.",
    )
    bundle_root: Place | None = Field(
        None,
        description="Folder or URL with the bundles that admin requests may name. Not set: the "
        "folder that contains the first bundle.",
    )
    bundle_cache: Path = Field(
        BUNDLE_CACHE,
        description="Folder that keeps the bundles of URLs. The processes of a machine may share "
        "it.",
    )
    bundle_cache_bytes: int = Field(
        0,
        ge=0,
        description="Most bytes of bundles in `bundle_cache`; the ones used longest ago go, and "
        "never one that is open or that a URL's pointer names. 0: what the disk holds.",
    )
    state_dir: Path | None = Field(
        None,
        description="Folder that stores the choice of bundles by admin requests, and changes to "
        "labels. Label changes need it, or `catalogue_url`; with several workers, bundle changes "
        "need it too.",
    )
    catalogue_url: SecretStr | None = Field(
        None,
        min_length=1,
        description="PostgreSQL database that stores changes to labels for the replicas of several "
        "machines, in place of files in `state_dir`: `postgresql://USER@HOST/DATABASE`, and "
        "libpq's own variables, such as PGPASSFILE. Needs the extra `postgres`: "
        "docs/catalogue.md.",
    )
    watch_s: float = Field(
        0.0,
        ge=0,
        description="How often the service reads the pointer CURRENT of a folder of bundles, to "
        "swap in a new bundle; for a URL each look starts a process. 0 means never.",
    )
    keep_alive_s: int = Field(
        75,
        ge=0,
        description="How long an idle connection stays open. Set it above the load balancer's own "
        "limit, or the balancer sometimes sends into a connection that is closing.",
    )
    stuck_after_s: float = Field(
        30.0,
        gt=0,
        description="Longest time that a batch may compute before /readyz turns red.",
    )
    drain_delay_s: float = Field(
        3.0,
        ge=0,
        description="After SIGTERM: how long the service still takes requests while /readyz is "
        "red.",
    )
    drain_timeout_s: float = Field(
        20.0,
        ge=0,
        description="After that: how long accepted requests may take to finish.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out of the environment what Kubernetes put there for its Services."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = {
            name: value  # pydantic-settings has made the names small
            for name, value in env_settings.env_vars.items()
            if not is_service_link(name.upper(), value or "")
        }
        return init_settings, env_settings

    @field_validator("bundle_cache")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("more_bundles", "bundle_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Split `a,b`, whether it is one text or a list of texts."""
        parts = [value] if isinstance(value, str) else value
        if not all(isinstance(part, str) for part in parts):
            return value
        names = [name for part in parts for name in part.split(",") if name]
        if any(parts) and not names:  # only commas: "no keys" would turn the check off
            raise ValueError("it names no path: give one, or leave it out")
        return names

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(
                f"max_queue_tokens ({self.max_queue_tokens}) is below max_batch_tokens "
                f"({self.max_batch_tokens}): raise it, or no full batch could ever wait"
            )
        if self.request_timeout_ms > self.request_timeout_max_ms:
            raise ValueError(
                f"request_timeout_ms ({self.request_timeout_ms}) is above request_timeout_max_ms "
                f"({self.request_timeout_max_ms}): raise the maximum or lower the default"
            )
        if self.cuda_graphs and self.device not in ("auto", "cuda"):
            raise ValueError(
                f"cuda_graphs does not go with device {self.device}: set the device to cuda, or "
                "leave graphs off"
            )
        if self.workers > 1 and self.admin_key is not None and self.state_dir is None:
            raise ValueError(
                f"workers ({self.workers}) cannot agree on what admin requests change without "
                "state_dir: name a folder, or leave out admin_key"
            )
        ports = [port for port in (self.admin_port, self.metrics_port) if port is not None]
        if len({self.port, *ports}) <= len(ports):
            raise ValueError(
                f"port ({self.port}), admin_port ({self.admin_port}) and metrics_port "
                f"({self.metrics_port}) must differ: choose another one"
            )
        if self.adaptive_effort:
            self._check_adaptive()
        return self

    def _check_adaptive(self) -> None:
        target_ms, clear_ms = self.adaptive_target_ms, self.adaptive_clear_ms
        if clear_ms >= target_ms:
            raise ValueError(
                f"adaptive_clear_ms ({clear_ms:g}) is not below adaptive_target_ms "
                f"({target_ms:g}): lower it, or effort would go up and down without end"
            )
        if self.batch_wait_ms >= clear_ms:
            raise ValueError(
                f"batch_wait_ms ({self.batch_wait_ms:g}) is not below adaptive_clear_ms "
                f"({clear_ms:g}): lower it, or effort would never go up again"
            )
        if target_ms >= self.request_timeout_ms:
            raise ValueError(
                f"adaptive_target_ms ({target_ms:g}) is not below request_timeout_ms "
                f"({self.request_timeout_ms}): lower it, or requests expire before effort goes down"
            )
        if self.adaptive_hold_s * 1000 < self.adaptive_interval_ms:
            raise ValueError(
                f"adaptive_hold_s ({self.adaptive_hold_s:g}) is below adaptive_interval_ms "
                f"({self.adaptive_interval_ms}): raise it to {self.adaptive_interval_ms / 1000:g}"
            )

    def public(self) -> dict[str, Any]:
        """The settings as JSON values, with masked secrets."""
        return self.model_dump(mode="json")


def load_settings(arguments: Sequence[str]) -> Settings:
    """Read settings from flags and os.environ; raises SettingsInvalid, a sentence for each fault.

    Like argparse it prints and exits for --help and for an unknown flag.
    """
    _refuse_unknown_variables(os.environ)
    try:
        return Settings(_cli_parse_args=list(arguments))  # type: ignore[call-arg]
    except ValidationError as exc:
        faults = [_sentence(error["loc"], error["msg"]) for error in exc.errors(include_url=False)]
        raise SettingsInvalid("; ".join(faults)) from exc


def ignored_variables() -> list[str]:
    """Variables of os.environ that have the prefix of settings, but are of Kubernetes' Services."""
    return service_links(os.environ, PREFIX)


def variable_of(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def flag_of(field: str) -> str:
    """The command-line flag of a field."""
    return "--" + field.replace("_", "-")


def documentation() -> str:
    """The text of docs/configuration.md: a table of all settings."""
    rows = [
        f"| `{variable_of(name)}` | `{flag_of(name)}` | {_default_of(field)} | "
        f"{(field.description or '').replace('|', chr(92) + '|')} |"
        for name, field in _in_order().items()
    ]
    return "\n".join([*_DOCUMENTATION_HEAD, *rows, ""])


def _in_order() -> dict[str, FieldInfo]:
    """The fields of `Settings`: first its own, then those of its base classes."""
    fields = Settings.model_fields
    own = {name: fields[name] for name in Settings.__annotations__ if name in fields}
    return own | fields


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = [variable_of(name) for name in Settings.model_fields]
    for name in sorted(set(environment) - set(service_links(environment, PREFIX))):
        # pydantic-settings ignores case, so astrolabe_prot must be refused too.
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)
            raise SettingsInvalid(
                f"{name} is not a setting; the closest one is {close[0]} "
                "(docs/configuration.md lists all)"
            )


def _sentence(location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:
        return message
    name = str(location[0])
    if message == "Field required":
        return f"{name} is required: set {variable_of(name)} or give {flag_of(name)}"
    return f"{variable_of(name)} ({flag_of(name)}): {message}"


def _default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "none" if field.default is None else f"`{str(field.default).lower()}`"


_DOCUMENTATION_HEAD: Final = [
    "# Configuration of the service",
    "",
    "Generated from `service/settings/` by `python -m service.settings`: do not edit by hand.",
    "",
    "Every setting is an environment variable and a flag of `python -m service`; the flag wins.",
    "The service refuses to start with an unknown variable of the prefix `ASTROLABE_`. It ignores",
    "those that Kubernetes sets for a Service of such a name (`ASTROLABE_PORT=tcp://...`), and",
    "logs their names. An empty variable or flag counts as not set. A file that a setting names",
    "must be a regular one; pipes and devices are refused. At start the service logs its",
    "configuration, with masked secrets.",
    "",
    "| variable | flag | default | what it does |",
    "|---|---|---|---|",
]
