# The service on a Jetson AGX Orin, JetPack 6.1 or 6.2 (CUDA 12.6, Python 3.10). From the root of the repository, on the
# Orin:
#
#   docker build -f containers/orin.Dockerfile -t gr00t_trt:orin .
#   docker run --runtime nvidia -p 5555:5555 -p 8000:8000 -v gr00t_cache:/cache -e GR00T_API_TOKEN gr00t_trt:orin
#
# Engines are built through ONNX by JetPack's own TensorRT: Torch-TensorRT has had no release for Orin since 2.8.
ARG BASE_IMAGE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 libopenblas0 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# JetPack's TensorRT is a package of the system's Python, which the environment therefore has to see.
RUN python3 -m venv --system-site-packages /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# PyTorch made for JetPack 6: the package index has none that runs on Orin's GPU. It needs cuDSS, which JetPack lacks.
ARG TORCH_INDEX=https://pypi.jetson-ai-lab.io/jp6/cu126
ARG TORCH_VERSION=2.11.0
ARG CUDSS_VERSION=0.7.1.4
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch==${TORCH_VERSION}" \
    && pip install --no-cache-dir --no-deps "nvidia-cudss-cu12==${CUDSS_VERSION}"
ENV LD_LIBRARY_PATH=/opt/venv/lib/python3.10/site-packages/nvidia/cu12/lib:$LD_LIBRARY_PATH
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY compile_configs compile_configs
COPY gr00t_trt gr00t_trt
ARG EXTRAS=serve,onnx
RUN sed "s/^torch==.*/torch==${TORCH_VERSION}/" constraints.txt > /tmp/constraints.txt \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt ".[${EXTRAS}]"
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
CMD ["serve", "--server", "--host", "0.0.0.0", "--http_port", "8000", "--config", "jetson_orin"]
