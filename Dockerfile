# The runner with what it needs, for pods. On GPUs jax brings CUDA along, and the host
# needs NVIDIA's driver and container toolkit alone.
#
#   docker build --tag registry.example.org/optlab:1 .
#   docker build --build-arg ACCELERATOR=gpu --tag registry.example.org/optlab:1-gpu .
FROM python:3.11-slim

# cpu, gpu (CUDA 13) or tpu.
ARG ACCELERATOR=cpu

WORKDIR /optlab
COPY requirements.lock pyproject.toml ./
RUN pip install --no-cache-dir --constraint requirements.lock pip setuptools \
    && pip install --no-cache-dir --constraint requirements.lock \
        --group experiments --group sweep --group postgres --group data
COPY . .
# The packages stay at the versions of the lock, those of the accelerator too.
RUN case "$ACCELERATOR" in \
        cpu) package=. ;; \
        gpu | tpu) package=".[$ACCELERATOR]" ;; \
        *) echo "ACCELERATOR: given $ACCELERATOR, allowed cpu, gpu, tpu" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --constraint requirements.lock \
        --no-build-isolation --editable "$package"

CMD ["python", "-m", "experiments.train", "--help"]
