# The client alone: no PyTorch, no GPU, any processor. From the root of the repository:
#
#   docker build -f containers/client.Dockerfile -t gr00t_trt_client .
#   docker run --rm --network host -e GR00T_API_TOKEN gr00t_trt_client localhost
ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE} AS build
WORKDIR /src
COPY LICENSE ./
COPY client client
COPY gr00t_trt gr00t_trt
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels ./client

FROM ${BASE_IMAGE}
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt /wheels/*.whl \
    && useradd --create-home --uid 10001 robot
USER 10001
ENTRYPOINT ["gr00t-trt-ask"]
CMD ["localhost"]
