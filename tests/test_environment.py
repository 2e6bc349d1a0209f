"""What a run or a result says it was made with."""

from patchssl.environment import environment


def test_environment_names_versions_and_hardware() -> None:
    found = environment("cpu")
    assert list(found) == ["patchssl", "python", "torch", "faiss", "device", "host", "threads"]
    assert found["device"] == "cpu"
    assert found["host"]["cpu"]
    assert found == environment("cpu")
