# docker build -t cellvit .                 the command cellvit, and one run of the demo without a network
# docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" cellvit segment tissue.png --out results
# Graphics card: docker run --gpus all ...; a smaller image without CUDA: see docs/pages/how-to/install.md

FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY cellvit cellvit
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
ARG TORCH_INDEX="" EXTRAS=""
RUN [ -z "$TORCH_INDEX" ] || pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}" && rm -r /wheels
# Caches go where any user may write, for docker run -u.
ENV HOME=/tmp NO_ALBUMENTATIONS_UPDATE=1
RUN --network=none python -m cellvit.cli.demo --out /tmp/demo && rm -r /tmp/demo
WORKDIR /work
ENTRYPOINT ["cellvit"]
CMD ["--help"]
