"""`patchssl pretrain --dry-run`: what a training would be and take, without building it."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from patchssl.cli.hardware import hardware_of, num_local_processes, workers_of
from patchssl.cli.image_cache import as_cached, cache_facts
from patchssl.cli.memory_report import MemoryReport, gib, report_memory, setting_of
from patchssl.cli.text_tables import aligned, markdown

if TYPE_CHECKING:
    from patchssl.config import Config
    from patchssl.data.images import StoredSource
    from patchssl.derived import Derived
    from patchssl.memory_advice import Advice

_NUM_TOLD = 3


def print_plan(config: "Config", images: "StoredSource", output_format: str) -> None:
    """Print sizes, length and memory of a training; of several processes the main one does.

    Raises:
        PatchsslError: it will not fit into memory; what was found has been printed by then.
    """
    from patchssl.derived import derive
    from patchssl.errors import PatchsslError
    from patchssl.process_checks import check_processes
    from patchssl.ranks import failing_together, is_main

    with failing_together():
        derived = derive(config, len(images))
        config = derived.config
        hardware = hardware_of(config)
        check_processes(config, hardware.device, hardware.num_processes)
    if not is_main():
        return
    setting = setting_of(config, as_cached(config, images), hardware, workers=workers_of(config, hardware))
    memory = report_memory(config, setting, num_local=num_local_processes())
    advice = [] if memory.fits else memory.advice()
    facts = {
        "data": {"location": images.location, "num_images": len(images), **cache_facts(config, images)},
        "networks": _networks(config),
        "training": _training(derived, len(images), memory),
        "memory": _memory(memory),
        "advice": [_advice(each) for each in advice],
    }
    click.echo(json.dumps(facts, indent=2) if output_format == "json" else _text(facts, memory, advice, output_format))
    if not memory.fits:
        raise PatchsslError(f"this will not fit into memory: {memory.told(num_advice=_NUM_TOLD)}")


def _networks(config: "Config") -> dict[str, Any]:
    from patchssl.memory_trace import network_without_memory

    network = network_without_memory(config)
    parts = {"backbone": network.backbone, "cls_head": network.cls_head, "patch_head": network.patch_head}
    counts = {
        f"num_{name}_params": sum(weight.numel() for weight in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    num = sum(weight.numel() for weight in network.parameters())
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    return {
        "arch": config.model.arch,
        **counts,
        "num_student_params": num,
        "num_trained_params": trained,
        "num_teacher_params": num,
    }


def _training(derived: "Derived", num_images: int, memory: MemoryReport) -> dict[str, Any]:
    train, setting = derived.config.train, memory.estimate.setting
    num_steps = train.num_steps(num_images)
    assert train.warmup_fraction is not None
    return {
        "num_steps": num_steps,
        "epochs": round(num_steps * train.batch_size / num_images, 3),
        "batch_size": train.batch_size,
        "num_processes": setting.num_processes,
        "accumulate": train.accumulate,
        "num_images_in_flight": memory.estimate.num_images,
        "device": setting.device,
        "precision": setting.precision,
        "division": setting.division,
        "workers": setting.workers,
        "learning_rate": train.learning_rate,
        "ema_momentum": train.ema_momentum,
        "num_warmup_steps": round(train.warmup_fraction * num_steps),
        "derived": list(derived.told),
    }


def _memory(memory: MemoryReport) -> dict[str, Any]:
    estimate = memory.estimate
    return {
        "parts_bytes": estimate.parts(),
        "activations_of_an_image_bytes": estimate.activations // estimate.num_images,
        "process_on_device_bytes": estimate.on_device,
        "on_device_bytes": memory.needed,
        "on_host_bytes": estimate.on_host * memory.num_local,
        "available_on_device_bytes": None if memory.device is None else memory.device.num_bytes,
        "available_on_host_bytes": None if memory.host is None else memory.host.num_bytes,
        "limit": None if memory.device is None else memory.device.limit,
        "fits": memory.fits,
    }


def _advice(advice: "Advice") -> dict[str, Any]:
    return {
        "change": advice.change,
        "cost": advice.cost,
        "on_device_bytes": advice.estimate.on_device,
        "fits": advice.fits,
    }


def _text(facts: Mapping[str, Any], memory: MemoryReport, advice: "Sequence[Advice]", output_format: str) -> str:
    tables = [
        [("sizes", "value", ""), *_lines({**facts["data"], **facts["networks"], **facts["training"]})],
        [("memory", "GiB", "what it is"), *_memory_lines(memory)],
        [("change", "GiB", "costs"), *_advice_lines(advice)],
    ]
    if output_format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(
            [("name", "value", "about"), *(line for _, *lines in tables for line in lines)]
        )
        return buffer.getvalue().rstrip("\n")
    shown = [table for table in tables if len(table) > 1]
    if output_format == "markdown":
        return "\n\n".join(markdown(table, num_left=1) for table in shown)
    return "\n\n".join(aligned(table, num_left=1, left_last=True) for table in shown)


def _lines(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    derivations = dict(line.partition(".")[2].split(" = ", 1) for line in values["derived"])
    return [
        (name, f"{value:,}" if isinstance(value, int) else str(value), derivations.get(name, "").partition(": ")[2])
        for name, value in values.items()
        if name != "derived"
    ]


def _memory_lines(memory: MemoryReport) -> list[tuple[str, str, str]]:
    from patchssl.memory import PARTS

    estimate = memory.estimate
    each = (
        f"; {estimate.activations / estimate.num_images / (1 << 20):.1f} MiB an image, {estimate.num_images} in flight"
    )
    more = {"activations": each}
    lines = [(name, gib(num), PARTS[name] + more.get(name, "")) for name, num in estimate.parts().items()]
    of_all = "" if memory.num_local == 1 else f", {memory.num_local} processes"
    lines.append((f"total on {estimate.setting.device}", gib(memory.needed), f"at the peak{of_all}"))
    if estimate.setting.device == "cuda":
        lines.append(("total on the host", gib(estimate.on_host * memory.num_local), f"process, loader{of_all}"))
    if memory.device is not None:
        lines.append(("available", gib(memory.device.num_bytes), memory.device.limit))
    if estimate.setting.device == "cuda" and memory.host is not None:
        lines.append(("available on the host", gib(memory.host.num_bytes), memory.host.limit))
    return lines


def _advice_lines(advice: "Sequence[Advice]") -> list[tuple[str, str, str]]:
    return [
        (each.change, gib(each.estimate.on_device), each.cost + ("" if each.fits else "; still too much"))
        for each in advice
    ]
