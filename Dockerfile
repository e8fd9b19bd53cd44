# The server with the embedded model:
#
#   docker build -t penstock .                                    CUDA
#   docker build -t penstock --build-arg BASE=ubuntu:24.04 .      CPU
#   docker run --gpus all -p 8000:8000 -e PENSTOCK_API_KEY=... penstock
#
# On a CPU the default build of torch works too; TORCH_INDEX=URL of PyTorch's CPU wheels saves the
# gigabytes of its CUDA libraries. What RUN does is in the Makefile, where CI runs it as well.

# torch's wheels bring the CUDA libraries; the base adds what lets a container see the GPU.
ARG BASE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${BASE} AS system
COPY deploy/system-packages /usr/local/sbin/
RUN system-packages && rm -rf /var/lib/apt/lists/*

FROM system AS build
RUN system-packages build
WORKDIR /src
ARG TORCH_INDEX=
COPY Makefile constraints.txt pyproject.toml ./
RUN make image-deps PREFIX=/opt/penstock TORCH_INDEX="${TORCH_INDEX}"
COPY . .
RUN make image-install PREFIX=/opt/penstock
RUN make image-check PREFIX=/opt/penstock

FROM system
COPY --from=build /opt/penstock /opt/penstock
COPY deploy/healthcheck.py /usr/local/lib/penstock/
RUN useradd --create-home --uid 10001 penstock
USER penstock
WORKDIR /home/penstock
ENV PATH=/opt/penstock/bin:$PATH
EXPOSE 8000
# The start period covers loading a large model. Change the port by PENSTOCK_PORT: both follow it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["/opt/penstock/bin/python", "/usr/local/lib/penstock/healthcheck.py"]
# A container ends with SIGTERM: running requests get --shutdown-timeout-s to finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["penstock"]
CMD ["serve", "--host", "0.0.0.0"]
