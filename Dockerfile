# Image of avdata for Docker, Kubernetes and KubeRay, from a checkout:
#   docker build --tag avdata .                           # PyTorch for CPUs, 2 GB: preparation
#   docker build --tag avdata:cuda --target cuda .        # PyTorch for CUDA, 9 GB: training
#   docker run --rm --volume "$PWD:/data" avdata avdata prepare cremad --source /data/raw --output /data/out
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS base
# ffmpeg: video.decoder=ffmpeg; wget: the probes that KubeRay adds to its pods
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 avdata \
    && mkdir /cache \
    && chown avdata /cache
ENV AVDATA_CACHE=/cache \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY avdata avdata
COPY snnergy snnergy
COPY recipes recipes
COPY manifests manifests

FROM base AS cuda
# gcc: Triton compiles the kernels of SNNergy on first use
# hadolint ignore=DL3008,DL3013
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && pip install '.[ray,remote]'
USER 1000
WORKDIR /home/avdata
ENTRYPOINT ["tini", "--"]
CMD ["avdata", "--help"]

FROM base AS cpu
# hadolint ignore=DL3013
RUN pip install --index-url https://download.pytorch.org/whl/cpu \
        'torch>=2.11,<2.15' 'torchvision>=0.26,<0.29.2' 'torchaudio>=2.11,<2.12' \
    && pip install '.[ray,remote]'
USER 1000
WORKDIR /home/avdata
ENTRYPOINT ["tini", "--"]
CMD ["avdata", "--help"]
