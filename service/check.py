"""python -m service.check: is this bundle whole, does it open here, and what does it answer?

    python -m service.check BUNDLE [--query TEXT ...] [--k N] [--effort NAME]

It verifies every file, opens and warms the parts and replays the golden queries, as the service
does at its start. Then it answers the texts with the service's own code, but without label changes
and label rules. It takes the service's environment variables, and its flags of the encoder, the GPU
and the keys of bundles. It writes one JSON object a line to standard output. The exit code is 0; or
1, with a sentence, if the service would refuse the bundle; or 130 after Ctrl-C or SIGTERM.
"""

from service.interrupt import end_on_signal

if __name__ == "__main__":
    end_on_signal("Stopped.")  # before the imports, which are slow

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Final

OPENING: Final = (
    *("device", "encoder-variant", "intra-op-threads", "max-batch-tokens", "bundle-keys"),
    *("gpu-device-id", "gpu-memory-mb", "gpu-max-rows", "cuda-graphs", "tensorrt-cache"),
)
"""The service's flags that decide how it opens a bundle."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the bundle, answer the queries, print both; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m service.check", description=__doc__)
    parser.add_argument("bundle", help="a bundle, or a folder of bundles with a pointer; or a URL")
    parser.add_argument("--query", action="append", default=[], metavar="TEXT")
    parser.add_argument("--k", type=int, help="labels in an answer (default: the bundle's own)")
    parser.add_argument("--effort", help="operating point (default: the bundle's own)")
    for name in OPENING:
        parser.add_argument(f"--{name}", metavar="VALUE", help="as for python -m service")
    options = parser.parse_args(arguments)
    flags = [f"--bundle={options.bundle}"]
    for name in OPENING:
        if (value := getattr(options, name.replace("-", "_"))) is not None:
            flags.append(f"--{name}={value}")

    # Import late: --help must not wait for ONNX Runtime and FAISS.
    from service.core.types import Query
    from service.errors import AstrolabeError
    from service.serving.deployment import open_engine
    from service.serving.fetching import fetched_folder
    from service.settings.settings import load_settings

    try:
        settings = load_settings(flags)
        engine = open_engine(fetched_folder(settings.bundle, settings), settings)
    except AstrolabeError as exc:
        print(f"python -m service.check: {exc.code}: {exc.detail}", file=sys.stderr)
        return 1
    manifest = engine.manifest
    effort = options.effort or manifest.defaults.effort
    if effort not in engine.efforts:
        parser.error(f"--effort is {effort}, this bundle has {', '.join(engine.efforts)}")
    k = options.k or manifest.defaults.k
    if k < 1:
        parser.error(f"--k is {k}, give at least 1")
    about = {
        "bundle_id": manifest.bundle_id,
        "name": manifest.name,
        "labels": manifest.labels.n_labels,
        "index": manifest.index.kind,
        "device": engine.encoder.device,
        "variant": engine.variant,
        "golden_queries": len(manifest.golden),
        "quality": manifest.quality.metrics if manifest.quality else None,
    }
    print(json.dumps(about))
    if options.query:
        queries = [Query(text, k, effort) for text in options.query]
        for text, answer in zip(options.query, engine.predict(queries).predictions, strict=True):
            labels = [
                {"id": engine.labels[int(row)].label_id, "text": engine.labels[int(row)].text}
                | {"score": round(float(score), 6)}
                for row, score in zip(answer.rows, answer.scores, strict=True)
            ]
            print(json.dumps({"query": text, "labels": labels}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
