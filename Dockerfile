# One image for every process; the command chooses which (api, worker, beat, migrate, simulate).
#
# The wheel is built from pinned, hashed packages, and the last stage receives only its finished
# environment: no build backend, no download cache. Postgres and Redis are services of their own,
# so the `embedded` extra stays out.

FROM python:3.13-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/overnight
WORKDIR /src
# The requirements first: they change seldom, and this layer is the slow one.
COPY requirements/build.txt requirements/runtime.txt requirements/tracing.txt requirements/
# `--build-arg REQUIREMENTS=tracing` adds what sends traces (docs/observability.md).
ARG REQUIREMENTS=runtime
RUN pip install --require-hashes -r requirements/build.txt \
    && pip --python /opt/overnight/bin/python install --require-hashes -r requirements/${REQUIREMENTS}.txt
COPY . .
RUN python -m hatchling build -t wheel -d /dist \
    && pip --python /opt/overnight/bin/python install --no-deps --no-index /dist/overnight-*.whl

FROM python:3.13-slim
# A fixed uid, so that a mounted folder or a pod's security context can name it.
RUN groupadd --gid 10001 overnight \
    && useradd --uid 10001 --gid overnight --no-create-home --home-dir /tmp --shell /usr/sbin/nologin overnight
COPY --from=build /opt/overnight /opt/overnight
# Unbuffered: a log line must be out before the process is killed. No bytecode: the root file system
# may be read-only, and pip has compiled everything already.
ENV PATH=/opt/overnight/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
# SIGTERM is what every process takes as "finish what you have, take nothing new".
STOPSIGNAL SIGTERM
ENTRYPOINT ["overnight"]
CMD ["api", "--host", "0.0.0.0"]
