# Trains on a GPU: mount a folder at /work with the config; runs are written there. Build from the repository's root.
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)[train]"
WORKDIR /work
ENTRYPOINT ["sae-train"]
