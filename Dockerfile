# docker build --tag dimvl .                                  the CPU
# docker build --tag dimvl:cuda --build-arg DEVICE=cuda .     NVIDIA GPUs: docker run --gpus all
# docker run --rm --volume "$PWD:/data" dimvl demo --quick
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# cpu: torch without CUDA's libraries, which take several gigabytes; cuda: torch of PyPI, which brings them
ARG DEVICE=cpu
# Extras of setup.py, such as [metrics,parquet]
ARG EXTRAS=""

WORKDIR /opt/dimvl
COPY constraints.txt setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY dimvl dimvl
RUN case "$DEVICE" in \
        cpu) export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ;; \
        cuda) ;; \
        *) echo "DEVICE is $DEVICE; give cpu or cuda" >&2; exit 2 ;; \
    esac && pip install --no-cache-dir --constraint constraints.txt ".$EXTRAS"
RUN useradd --create-home dimvl && mkdir /data && chown dimvl /data

USER dimvl
WORKDIR /data
RUN dimvl --version && dimvl doctor
ENTRYPOINT ["dimvl"]
CMD ["--help"]
