# A server of one model: `docker build -t hf-multitask .`, see docs/deploy.md.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# The build of torch, as uv names it: cpu, cu128, auto, ...
ARG TORCH=cpu
# The extras of the package, such as serve,onnx,peft.
ARG EXTRAS=serve
WORKDIR /source
RUN pip install --no-cache-dir "uv>=0.8,<1" && python -m venv --without-pip /opt/server
COPY setup.py setup.cfg pyproject.toml constraints.txt README.md LICENSE hf_multitask_cli.py ./
COPY hf_multitask hf_multitask
RUN uv pip install --no-cache --python /opt/server/bin/python --torch-backend "${TORCH}" -c constraints.txt \
    torch ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 server && install -d -o server -g server /home/server/.cache/huggingface
COPY --from=build /opt/server /opt/server
# A folder that is mounted, or the Hub id of a model.
ENV MODEL=/model PATH=/opt/server/bin:$PATH HF_HOME=/home/server/.cache/huggingface PYTHONUNBUFFERED=1
USER 1000
WORKDIR /home/server
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# The shell reads MODEL and becomes the server, which so receives the signals; words after the image are its options.
ENTRYPOINT ["sh", "-c", "exec hf-multitask serve \"$MODEL\" --host 0.0.0.0 --port 8000 \"$@\"", "serve"]
