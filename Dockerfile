# For processors or NVIDIA GPUs, for one machine or a cluster; from the root of the checkout, with docker or podman:
#
#   docker build -t gla-jax:cpu .
#   docker build -t gla-jax:cuda --build-arg JAX="jax[cuda13]" .
#   docker build -t gla-jax:cluster --build-arg JAX="jax[cuda13]" --build-arg EXTRAS=ray,s3,gs .
#
#   docker run --rm --user "$(id -u)" -v "$PWD:/data" gla-jax:cpu segment photo.jpg --model tiny-world --classes sand --classes sky
#   docker run --rm --gpus all -v gla-jax-cache:/cache -p 127.0.0.1:7860:7860 gla-jax:cuda app --host 0.0.0.0
#
# It runs as any user. /cache takes compiled programs and converted models; a volume there keeps them.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG JAX=jax
ARG EXTRAS=app,formats,geo,s3,gs
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY gla_jax gla_jax
COPY convert convert
COPY eval eval
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir "${JAX}" ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /venv /venv
RUN mkdir -m 1777 /cache /data
ENV PATH=/venv/bin:$PATH HOME=/cache GLA_JAX_CACHE=/cache/gla-jax PYTHONUNBUFFERED=1
WORKDIR /data
USER 10001
ENTRYPOINT ["gla-jax"]
CMD ["--help"]
