"""What llama.cpp tells about itself and its devices."""

from __future__ import annotations

import pytest

from eft_local.backends.llamacpp import devices

CUDA_LINE = "CUDA : ARCHS = 890 | USE_GRAPHS = 1 | CPU : SSE3 = 1 | AVX512 = 0 | OPENMP = 1 | "


def test_features_are_read_per_backend() -> None:
    assert devices.parse_features(CUDA_LINE) == {"CUDA": ("ARCHS=890", "USE_GRAPHS"), "CPU": ("SSE3", "OPENMP")}
    assert devices.parse_features("") == {}
    assert devices.parse_features("unknown") == {}


def test_this_build_reports_its_version_and_features() -> None:
    build = devices.build()
    assert build.llama_cpp_python[0].isdigit()
    assert build.llama
    assert "CPU" in build.features


def test_the_cpu_is_a_device_with_memory() -> None:
    (cpu,) = [device for device in devices.devices() if device.kind == "cpu"]
    assert cpu.name == "CPU"
    assert 0 < cpu.free <= cpu.total


def test_without_libggml_there_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_libraries", lambda: iter(()))
    assert devices.devices() == ()
    (cpu,) = devices.places()
    assert (cpu.name, cpu.kind) == ("CPU", "cpu")
    assert 0 < cpu.free <= cpu.total
    assert devices.build().ggml == "unknown unknown"
