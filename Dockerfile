# `eden serve` in a container; docs/serving.md has the commands.
FROM python:3.11-slim

# An index that has another build of torch, such as the small one for CPUs; empty is pip's own.
ARG TORCH_INDEX=""

WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
COPY eden eden
RUN pip install --no-cache-dir -c constraints.txt '.[serve]'

RUN useradd --create-home eden
USER eden
WORKDIR /home/eden
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
# Other machines are answered, so EDEN_API_KEY has to be set.
ENTRYPOINT ["eden", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["eden-tiny"]
