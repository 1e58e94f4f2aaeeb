"""Health, metadata, configuration, statistics, settings and the model repository."""

import pytest
import tritonclient.grpc as triton
from tensors import bytes_input
from tritonclient.utils import InferenceServerException


def test_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("minilm")
    assert client.is_model_ready("minilm", "1")


def test_unknown_models_are_not_ready(client):
    assert not client.is_model_ready("minilim")
    assert not client.is_model_ready("minilm", "7")
    with pytest.raises(InferenceServerException) as refusal:
        client.is_model_ready("minilm", "seven")
    assert "INVALID_ARGUMENT" in refusal.value.status()


def test_an_unknown_model_is_not_found(client):
    asked = (
        lambda: client.get_model_metadata("minilim"),
        lambda: client.get_model_config("minilim"),
        lambda: client.get_model_metadata("minilm", "7"),
        lambda: client.get_inference_statistics("minilim"),
        lambda: client.infer("minilim", [bytes_input("text", "hello")]),
        lambda: client.unload_model("minilim"),
    )
    for call in asked:
        with pytest.raises(InferenceServerException, match="Request for unknown model 'mini.*loaded are") as refusal:
            call()
        assert "NOT_FOUND" in refusal.value.status()


def test_server_metadata(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "sensorium"
    assert "system_shared_memory" in metadata.extensions


def test_model_metadata(client):
    metadata = client.get_model_metadata("minilm", as_json=True)
    assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
    assert metadata["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": ["-1", "384"]}]


def test_model_config(client):
    config = client.get_model_config("smollm2-135m").config
    assert config.name == "smollm2-135m"
    assert config.model_transaction_policy.decoupled
    assert not client.get_model_config("identity").config.model_transaction_policy.decoupled


def test_statistics_count_requests(client):
    def counted():
        [statistics] = client.get_inference_statistics("prompt-guard").model_stats
        return statistics.inference_count, statistics.inference_stats.success.count

    inferences, requests = counted()
    for _ in range(5):
        # past the cache: what it answers, no worker counts
        client.infer("prompt-guard", [bytes_input("text", "hello", "world")], parameters={"cache": False})
    assert counted() == (inferences + 10, requests + 5)


def test_models_go_and_come(client):
    def state():
        return {model.name: model.state for model in client.get_model_repository_index().models}["open-nsfw"]

    assert state() == "READY"
    client.unload_model("open-nsfw")
    assert state() == "UNAVAILABLE"
    assert not client.is_model_ready("open-nsfw")
    with pytest.raises(InferenceServerException):
        client.infer("open-nsfw", [bytes_input("image", b"")])
    client.load_model("open-nsfw")
    assert state() == "READY"


def test_an_unknown_model_cannot_be_loaded(client):
    for name in ("nobody", "../minilm"):
        with pytest.raises(InferenceServerException, match="failed to load.*minilm"):
            client.load_model(name)


def test_log_settings(client):
    assert client.get_log_settings(as_json=True)["settings"]["log_info"]["bool_param"]
    told = client.update_log_settings({"log_verbose_level": 1}, as_json=True)
    assert told["settings"]["log_verbose_level"]["uint32_param"] == 1
    client.update_log_settings({"log_verbose_level": 0})


@pytest.mark.parametrize("bad", [{"log_file": "/tmp/log"}, {"log_mood": True}, {"log_format": "ISO8601"}])
def test_log_settings_change_together_or_not_at_all(client, bad):
    before = client.get_log_settings(as_json=True)
    good = {"log_info": False, "log_warning": False, "log_verbose_level": 2}
    # protocol buffers order a map's entries as they like
    for settings in ({**good, **bad}, {**bad, **good}):
        with pytest.raises(InferenceServerException):
            client.update_log_settings(settings)
        assert client.get_log_settings(as_json=True) == before


def test_trace_settings(client):
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"] == ["OFF"]


def test_other_servers_addresses_fail_quickly():
    with triton.InferenceServerClient("127.0.0.1:1") as client, pytest.raises(InferenceServerException):
        client.is_server_live(client_timeout=5)
