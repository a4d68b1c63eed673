"""All errors that the online half raises on purpose, as one tree.

Each leaf has an HTTP `status`, a stable `code` for programs, a `title`, and `retryable`, which says
whether another try can help. `service.gate.problems` makes the answer from these four.

    AstrolabeError
    ├── RequestError                the caller must change something
    │   ├── MalformedRequest        400 the body is not JSON
    │   ├── Unauthorized            401 no key, or a wrong one
    │   ├── Forbidden               403 the key is right, but not for this
    │   ├── NotFound                404 no such route
    │   ├── ModelUnknown            404 no bundle is served under this name
    │   ├── NoSuchBundle            404 no such bundle is open, or the folder does not hold it
    │   ├── MethodNotAllowed        405 the route exists, the method does not
    │   ├── LabelUnknown            404 no live label of the catalogue has this id
    │   ├── LabelExists             409 a live label of the catalogue has this id already
    │   ├── PayloadTooLarge         413 the body or the list is over a limit
    │   ├── UnsupportedMediaType    415 the body is not application/json
    │   ├── HeadersTooLarge         431 the request's line and headers are over a limit
    │   ├── InvalidValue            422 JSON, but a field holds a value that is not allowed
    │   └── BundleRefused           422 a bundle that was to be served failed a check
    ├── OverloadError               the caller may try again
    │   ├── QueueFull               429 admission refused
    │   ├── DeadlineUnreachable     429 admission refused: the answer would come too late
    │   ├── RateLimited             429 this caller is over its rate limit
    │   ├── TooManyConnections      503 this process is at its limit of open connections
    │   ├── NotReady                503 no bundle is open, or the lanes are dead
    │   ├── ShuttingDown            503 draining after SIGTERM
    │   └── DeadlineExceeded        504 the request's deadline has passed
    ├── Abandoned                   499 the client has closed its connection
    ├── InternalError               500 anything else that broke
    │   └── PredictFailed           500 the encoder or the index raised; only this batch fails
    ├── BundleError                 the bundle cannot be served
    │   ├── BundleNotFound          no manifest, no pointer, or no such path
    │   ├── BundleUnavailable       a bundle cannot be fetched from its URL, or not be kept
    │   ├── ManifestInvalid         manifest.json or another description breaks its format
    │   ├── SchemaVersionUnknown    a newer or older Astrolabe wrote the bundle
    │   ├── FileMissing             a file of the manifest is not in the folder
    │   ├── FileUnlisted            a file in the folder is not in the manifest
    │   ├── FileCorrupt             a file is not plain, or differs from the manifest
    │   ├── BundleUnsigned          no key of `bundle_keys` signed the manifest
    │   ├── BundleMismatch          two parts contradict each other
    │   ├── VariantMissing          the bundle has no encoder of the requested precision
    │   └── GoldenMismatch          a recorded query no longer gives its recorded answer
    ├── CatalogueError              the service cannot store or read label changes
    │   ├── CatalogueUnavailable    503 no folder for them is set, or the disk or a lock refuses
    │   └── CatalogueCorrupt        503 their file is damaged, or belongs to something else
    ├── FeedbackUnavailable         503 feedback cannot be stored now
    ├── StateUnavailable            503 a change of bundles cannot be recorded in the state folder
    ├── DeviceUnavailable           the requested execution provider does not work here
    ├── SettingsInvalid             a setting is wrong
    └── WorkersFailed               worker processes end again and again at their start
"""

from typing import ClassVar


class AstrolabeError(Exception):
    """Base of the tree; `retry_after_s` (seconds) is set only if a later try can succeed."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class RequestError(AstrolabeError):
    """The request cannot be answered as it stands."""


class MalformedRequest(RequestError):
    """The body is not JSON."""

    code, title, status = "malformed_request", "Malformed request", 400


class Unauthorized(RequestError):
    """The Authorization header is absent or carries a wrong key."""

    code, title, status = "unauthorized", "Unauthorized", 401


class Forbidden(RequestError):
    """The request needs the admin key: none is set, or the request has another key."""

    code, title, status = "forbidden", "Forbidden", 403


class NotFound(RequestError):
    """No route has this path."""

    code, title, status = "not_found", "Not found", 404


class ModelUnknown(RequestError):
    """No bundle is served under this name."""

    code, title, status = "model_unknown", "Model unknown", 404


class NoSuchBundle(RequestError):
    """No such bundle is open, or the folder of bundles does not hold it."""

    code, title, status = "no_such_bundle", "No such bundle", 404


class MethodNotAllowed(RequestError):
    """The path exists, but not with this method."""

    code, title, status = "method_not_allowed", "Method not allowed", 405


class LabelUnknown(RequestError):
    """No live label of the catalogue has this id."""

    code, title, status = "label_unknown", "Label unknown", 404


class LabelExists(RequestError):
    """A live label of the catalogue has this id already."""

    code, title, status = "label_exists", "Label exists", 409


class PayloadTooLarge(RequestError):
    """The body, a text or the list of queries is over its configured limit."""

    code, title, status = "payload_too_large", "Payload too large", 413


class UnsupportedMediaType(RequestError):
    """The body is not declared as application/json."""

    code, title, status = "unsupported_media_type", "Unsupported media type", 415


class InvalidValue(RequestError):
    """A field is missing, unknown, of the wrong type or out of range.

    `field` names it, if it is known.
    """

    code, title, status = "invalid_value", "Invalid value", 422

    def __init__(
        self, detail: str, *, retry_after_s: float | None = None, field: str | None = None
    ) -> None:
        super().__init__(detail, retry_after_s=retry_after_s)
        self.field = field


class BundleRefused(RequestError):
    """A bundle failed a check and was not opened; the service still answers from the old one."""

    code, title, status = "bundle_refused", "Bundle refused", 422


class HeadersTooLarge(RequestError):
    """The request's line and headers are over their limit of bytes."""

    code, title, status = "headers_too_large", "Request header fields too large", 431


class OverloadError(AstrolabeError):
    """The service cannot answer now; the same request may succeed later."""

    retryable = True


class QueueFull(OverloadError):
    """Admission refused: the queue is at its limit of tokens."""

    code, title, status = "queue_full", "Queue full", 429


class DeadlineUnreachable(OverloadError):
    """Admission refused: at the measured pace the answer would come after the deadline."""

    code, title, status = "deadline_unreachable", "Deadline unreachable", 429


class RateLimited(OverloadError):
    """The caller makes more requests a second than its limit allows."""

    code, title, status = "rate_limited", "Rate limited", 429


class TooManyConnections(OverloadError):
    """This process is at its limit of open connections."""

    code, title, status = "too_many_connections", "Too many connections", 503


class NotReady(OverloadError):
    """No bundle is open, or all lanes are dead."""

    code, title, status = "not_ready", "Not ready", 503


class ShuttingDown(OverloadError):
    """The process received SIGTERM and takes no new work."""

    code, title, status = "shutting_down", "Shutting down", 503


class DeadlineExceeded(OverloadError):
    """The request's deadline passed before its answer was ready."""

    code, title, status = "deadline_exceeded", "Deadline exceeded", 504


class Abandoned(AstrolabeError):
    """The client closed the connection before its answer was ready."""

    code, title, status = "abandoned", "Client closed request", 499


class InternalError(AstrolabeError):
    """Something broke that the caller cannot mend."""


class PredictFailed(InternalError):
    """The encoder or the index raised while this batch was computed."""

    code, title, retryable = "predict_failed", "Prediction failed", True


class BundleError(AstrolabeError):
    """The bundle cannot be served."""

    code, title, status = "bundle_invalid", "Bundle invalid", 503


class BundleNotFound(BundleError):
    """The path holds no bundle."""

    code, title = "bundle_not_found", "Bundle not found"


class BundleUnavailable(BundleError):
    """A bundle cannot be fetched from its URL now, or the cache has no room for it."""

    code, title, retryable = "bundle_unavailable", "Bundle unavailable", True


class ManifestInvalid(BundleError):
    """manifest.json, or another JSON, ONNX or tokenizer file, breaks its format."""

    code, title = "manifest_invalid", "Manifest invalid"


class SchemaVersionUnknown(BundleError):
    """manifest.json names a schema version that this code does not know."""

    code, title = "schema_version_unknown", "Schema version unknown"


class FileMissing(BundleError):
    """A file that the manifest lists is not in the folder."""

    code, title = "bundle_file_missing", "Bundle file missing"


class FileUnlisted(BundleError):
    """The folder holds something that the manifest does not list."""

    code, title = "bundle_file_unlisted", "Bundle file unlisted"


class FileCorrupt(BundleError):
    """A file is not plain, cannot be read, or differs from the manifest in size or SHA-256."""

    code, title = "bundle_file_corrupt", "Bundle file corrupt"


class BundleUnsigned(BundleError):
    """Keys are set, and the manifest carries no right signature by any of them."""

    code, title = "bundle_unsigned", "Bundle unsigned"


class BundleMismatch(BundleError):
    """Two parts of the bundle contradict each other, or an array breaks its format."""

    code, title = "bundle_mismatch", "Bundle mismatch"


class VariantMissing(BundleError):
    """The bundle has no encoder of the requested precision."""

    code, title = "encoder_variant_missing", "Encoder variant missing"


class GoldenMismatch(BundleError):
    """The answer to a golden query differs too much from the recorded one."""

    code, title = "golden_mismatch", "Golden query mismatch"


class CatalogueError(AstrolabeError):
    """The service cannot store or read changes to the catalogue."""


class CatalogueUnavailable(CatalogueError):
    """No folder for changes is set, or the disk or another process's lock refuses them now."""

    code, title, status = "catalogue_unavailable", "Catalogue unavailable", 503
    retryable = True


class CatalogueCorrupt(CatalogueError):
    """The file of changes is damaged, or belongs to another catalogue or program."""

    code, title, status = "catalogue_corrupt", "Catalogue corrupt", 503


class StateUnavailable(AstrolabeError):
    """The state folder cannot be written now, so a change of bundles was not made."""

    code, title, status = "state_unavailable", "State unavailable", 503
    retryable = True


class FeedbackUnavailable(AstrolabeError):
    """Events cannot be stored now: the disk is full, fails, or is too slow for them."""

    code, title, status = "feedback_unavailable", "Feedback unavailable", 503
    retryable = True


class DeviceUnavailable(AstrolabeError):
    """The requested device is absent, or ONNX Runtime cannot use it."""

    code, title, status = "device_unavailable", "Device unavailable", 503


class SettingsInvalid(AstrolabeError):
    """A setting is unknown, out of range, or contradicts another setting or the bundle."""

    code, title, status = "settings_invalid", "Settings invalid", 500


class WorkersFailed(AstrolabeError):
    """Worker processes ended at their start, again and again."""

    code, title = "workers_failed", "Worker processes keep ending"
