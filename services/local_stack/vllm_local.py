"""vLLM's OpenAI server on this machine, from an environment of its own, with Fulgurite's plug-in.
It runs on the CPU, or on GPUs where they and vLLM's CUDA build are (`services.local_stack.gpus`).

Serves one model at 127.0.0.1 with vLLM's development routes, which update weights: the port is for
the gateway and the applier, never for agents. Takes half a minute to a minute to start, most of it
imports: start it first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from services.common.processes.supervisor import ProcessSpec, Supervisor
from services.local_stack.gpus import is_cuda_build, plan_devices, serve_environment, visible_gpus
from services.local_stack.local_service import LocalService
from services.local_stack.local_services import project_folder
from services.local_stack.ports import LOCALHOST, answers, free_port
from services.local_stack.vllm_settings import VllmSettings

READY_TIMEOUT_S = 480.0
"""28–67 s were seen on two idle cores, 90 s the first time, minutes when other processes want the
cores too.
"""


class LocalVllm(LocalService):
    """One server."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        served_model: str = "policy",
        policy: str = "policy",
        port: int | None = None,
        settings: VllmSettings | None = None,
        threads: int | None = None,
        restart: bool = False,
        extra: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        """`folder` holds its log; `served_model` is the name agents ask for; `settings` are those
        of the environment.

        `threads`: of OpenMP, on whatever core is free (one is enough for a tiny model). Without it,
        vLLM binds a thread to each core but one, which is left to everything else. On a GPU neither
        counts.
        """
        super().__init__(supervisor)
        settings = settings or VllmSettings.read()
        self.port = port or free_port()
        gpus = visible_gpus()
        environment = serve_environment(project_folder(), has_gpu=bool(gpus))
        self.devices = plan_devices(
            gpus,
            is_cuda_build=is_cuda_build(environment),
            tensor_parallel=settings.tensor_parallel,
            utilization=settings.gpu_memory_utilization,
        )
        """Where it runs, and what it leaves to the learner."""
        self._spec = ProcessSpec(
            name="vllm",
            argv=[
                str(environment / "bin" / "python"),
                # The module, not `vllm serve`: that command looks for a distribution called `vllm`,
                # which the CPU build is not.
                "-m",
                "vllm.entrypoints.openai.api_server",
                *settings.arguments(
                    model,
                    [
                        f"--model={model}",
                        f"--served-model-name={served_model}",
                        f"--host={LOCALHOST}",
                        f"--port={self.port}",
                        *self.devices.arguments,
                        *extra,
                    ],
                    on_gpu=self.devices.on_gpu,
                ),
            ],
            log=folder.resolve() / "vllm.log",
            env={
                **_environment(policy),
                **(
                    self.devices.vllm
                    if self.devices.on_gpu
                    else _cpu_environment(environment, threads, settings)
                ),
                **(env or {}),
            },
            cwd=project_folder(),
            ready=lambda: answers(self.port, "/health"),
            ready_timeout_s=READY_TIMEOUT_S,
            restart=restart,
            stop_timeout_s=15.0,
        )

    @property
    def base_url(self) -> str:
        """For VLLM_BASE_URL, without `/v1`."""
        return f"http://{LOCALHOST}:{self.port}"

    def specs(self) -> list[ProcessSpec]:
        """Describe the server's process."""
        return [self._spec]


def _environment(policy: str) -> dict[str, str]:
    return {
        "FULGURITE_POLICY": policy,
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_PLUGINS": "fulgurite",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _cpu_environment(
    environment: Path, threads: int | None, settings: VllmSettings
) -> dict[str, str]:
    variables = {"VLLM_CPU_KVCACHE_SPACE": str(settings.kv_cache_gib)}
    openmp = environment / "lib" / "libiomp5.so"
    if openmp.is_file():
        variables["LD_PRELOAD"] = str(openmp)
    if threads is not None:
        variables |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return variables
