# The service on a Jetson AGX Thor, JetPack 7 (CUDA 13). From the root of the repository, on the Thor:
#
#   docker build -f containers/thor.Dockerfile -t gr00t_trt:thor .
#   docker run --runtime nvidia -p 5555:5555 -p 8000:8000 -v gr00t_cache:/cache -e GR00T_API_TOKEN gr00t_trt:thor
#
# NVIDIA's image brings PyTorch 2.10, TensorRT and Torch-TensorRT for this GPU. Images before 25.11 have a PyTorch that
# is too old for this package; later ones are made for a newer CUDA than JetPack 7.0 and 7.1 have.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.11-py3
FROM ${BASE_IMAGE}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY compile_configs compile_configs
COPY gr00t_trt gr00t_trt
ARG EXTRAS=serve,onnx
# The image's PyTorch stays: with its own version as a constraint, pip fails rather than replace it.
RUN python3 -c "import importlib.metadata as m; print('torch==' + m.version('torch'))" > /tmp/image.txt \
    && python3 -m pip install --no-cache-dir --constraint /tmp/image.txt ".[${EXTRAS}]"
RUN useradd --create-home --uid 10001 --groups video gr00t && install -d -o gr00t -m 700 /cache
ENV GR00T_TRT_ENGINE_CACHE=/cache/engines \
    HF_HOME=/cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    TRITON_CACHE_DIR=/cache/triton
USER 10001
WORKDIR /home/gr00t
VOLUME /cache
EXPOSE 5555 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["gr00t-trt"]
CMD ["serve", "--server", "--host", "0.0.0.0", "--http_port", "8000", "--config", "jetson_thor"]
