# Serves finished runs: the base install, without torch. Build from the repository's root.
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels /source

FROM python:3.12-slim
COPY --from=build /wheels /wheels
COPY docker/serve.lock /serve.lock
RUN pip install --no-cache-dir --require-hashes --requirement /serve.lock \
    && pip install --no-cache-dir --no-deps /wheels/*.whl && useradd --create-home reader
USER reader
EXPOSE 8000
ENTRYPOINT ["sae", "serve", "/runs", "--host", "0.0.0.0", "--public-read"]
