# In the root of the repository:
#   docker build -f examples/server.Dockerfile -t lsr-server .
#   docker run -p 8000:8000 -e LSR_TOKEN -v "$PWD/build/bank:/bank:ro" lsr-server
FROM python:3.11-slim
WORKDIR /srv
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY lsr lsr
COPY lsr_onnx lsr_onnx
COPY lsr_server lsr_server
# `demo` is the base model of the default run. With --build-arg PIP_EXTRA_INDEX_URL=... , the index of torch's CPU builds,
# the image is gigabytes smaller.
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --constraint constraints.txt '.[server,demo]' \
 && useradd --system serve
USER serve
EXPOSE 8000
# The process of the server is the container's first one: `docker stop` lets it answer what was asked.
ENTRYPOINT ["lsr", "serve", "--host", "0.0.0.0"]
CMD ["/bank"]
