# CPU: docker build -t deepcait .
# GPU: docker build -t deepcait --build-arg BASE=IMAGE, where IMAGE has CUDA's libraries and Python 3.11 or newer.
ARG BASE=python:3.12-slim
FROM ${BASE}

# The engine eager compiles its patch stage at first use.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deepcait deepcait

# Options of pip, such as an index with PyTorch's CPU wheels.
ARG PIP_OPTIONS=""
RUN pip install --no-cache-dir ${PIP_OPTIONS} -c constraints.txt ".[serve,explain]"

RUN useradd --create-home deepcait
USER deepcait
WORKDIR /home/deepcait
EXPOSE 8000
ENTRYPOINT ["deepcait"]
CMD ["serve", "builtin:nano", "--host", "0.0.0.0", "--port", "8000"]
