# docker build -t rtdmd . && docker run --rm --gpus all --shm-size 8g rtdmd make test
# To train, mount what is to stay: -v "$PWD/runs:/home/ubuntu/rtdmd/runs" -v "$HOME/.cache/huggingface:/home/ubuntu/.cache/huggingface"
# The image holds no more of CUDA than the driver's interface: torch's wheels bring the rest.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# A compiler and Python's headers: `--model.compile=blocks` builds kernels. Versions are those of the image's Ubuntu.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The image's user `ubuntu`.
USER 1000
WORKDIR /home/ubuntu/rtdmd
ENV PATH=/home/ubuntu/rtdmd/.venv/bin:$PATH PIP_NO_CACHE_DIR=1

# Requirements first: a change of the code does not install them again.
COPY --chown=1000 requirements.txt requirements-no-deps.txt ./
RUN python3 -m venv .venv \
    && pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir --no-deps -r requirements-no-deps.txt

COPY --chown=1000 . .
RUN make install

CMD ["make", "test"]
