# The demo, with the CPU build of PyTorch:
#
#     docker build -t al-seg-env .
#     docker run --rm -v "$PWD/runs:/app/runs" al-seg-env
FROM python:3.12-slim

WORKDIR /app
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY agents agents
COPY al_seg_env al_seg_env
COPY al_seg_experiment al_seg_experiment
COPY examples examples
RUN pip install --no-cache-dir ".[examples]"

ENV OMP_NUM_THREADS=1
CMD ["python", "examples/quickstart.py"]
