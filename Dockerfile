# lsml in a container. Build the packages first: make dist
#
#   docker build -t lsml .                                         the core, for text models
#   docker build -t lsml:cuda --build-arg EXTRAS=studio,evaluate,redis,vision .    with PyTorch, which brings CUDA's libraries
#
#   docker run --rm -v "$PWD:/data" lsml predict tasks.json --model models/mine -o predictions.json
#   docker run --rm -v "$PWD:/data" -p 9090:9090 lsml serve models/mine --host 0.0.0.0
#
# To pin the base image: --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=studio,evaluate,redis
COPY dist/lsml-*.whl /tmp/
RUN python -m venv /opt/lsml && \
    /opt/lsml/bin/pip install --no-cache-dir "$(ls -t /tmp/lsml-*.whl | head -1)[${EXTRAS}]"

FROM ${BASE}
RUN useradd --create-home --uid 1000 lsml && mkdir /data && chown lsml /data
COPY --from=build /opt/lsml /opt/lsml
ENV PATH=/opt/lsml/bin:$PATH PYTHONUNBUFFERED=1
USER lsml
WORKDIR /data
EXPOSE 9090
# Only `lsml serve` answers; whatever else runs in a container ends by itself.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=4)"]
ENTRYPOINT ["lsml"]
CMD ["--help"]
