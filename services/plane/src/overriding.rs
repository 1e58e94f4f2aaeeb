//! The parameter `config` of a load: a whole `model.toml`, or a part of a model's configuration as Triton's clients write
//! it, the JSON form of `inference.ModelConfig`.

use std::path::Path;
use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use sensorium_actors::error::{Error, Result};
use sensorium_actors::manifest::{EngineKind, Manifest, Pipeline, TensorSpec, TimeoutAction, VersionPolicy};
use sensorium_actors::tensor::DataType;
use sensorium_proto::inference::model_config::SchedulingChoice;
use sensorium_proto::inference::model_instance_group::Kind;
use sensorium_proto::inference::model_repository_parameter::ParameterChoice;
use sensorium_proto::inference::model_version_policy::PolicyChoice;
use sensorium_proto::inference::{
    self as wire, ModelConfig, ModelDynamicBatching, ModelInstanceGroup, ModelVersionPolicy, RepositoryModelLoadRequest,
};
use serde_path_to_error::{Deserializer, Track};

const FIELD: &str = "parameters.config";
/// Keys that a configuration in JSON may have: those that can be set, and those that say what the model is anyway.
const KEYS: [&str; 11] = [
    "name",
    "platform",
    "backend",
    "input",
    "output",
    "model_transaction_policy",
    "version_policy",
    "max_batch_size",
    "dynamic_batching",
    "instance_group",
    "response_cache",
];

/// The manifest that a load brings instead of the repository's, if it brings one. `base` is what the repository says.
///
/// # Errors
/// `InvalidArgument` naming the key, the value, and what was expected; `Unimplemented` for files.
pub fn overriding(
    request: &RepositoryModelLoadRequest,
    base: impl FnOnce() -> Result<Manifest>,
) -> Result<Option<Manifest>> {
    if let Some(file) = request.parameters.keys().find(|name| name.starts_with("file:")) {
        let file: String = file.chars().take(64).collect();
        return Err(Error::Unimplemented(format!("parameter '{file}': a model's files are taken from the repository")));
    }
    let Some(parameter) = request.parameters.get("config") else { return Ok(None) };
    let Some(ParameterChoice::StringParam(text)) = &parameter.parameter_choice else {
        return Err(Error::invalid(FIELD, "expected the text of a model.toml, or a model configuration in JSON"));
    };
    let manifest = if text.trim_start().starts_with('{') {
        from_json(text, base()?).map_err(|error| Error::invalid(FIELD, error))?
    } else {
        Manifest::parse(text, Path::new(FIELD)).map_err(|error| Error::invalid(FIELD, error))?
    };
    if manifest.name != request.model_name {
        let message = format!("name = '{}', expected '{}'", manifest.name, request.model_name);
        return Err(Error::invalid(FIELD, message));
    }
    Ok(Some(manifest))
}

/// Of `inference.ModelConfig`; none if the descriptors, which are compiled in, could not be read.
fn descriptor() -> Option<MessageDescriptor> {
    static POOL: LazyLock<Option<DescriptorPool>> =
        LazyLock::new(|| DescriptorPool::decode(sensorium_proto::FILE_DESCRIPTOR_SET).ok());
    POOL.as_ref()?.get_message_by_name("inference.ModelConfig")
}

/// `manifest` with what the configuration sets; a key that it does not have stays as it is.
fn from_json(text: &str, mut manifest: Manifest) -> Result<Manifest, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let has = |keys: [&str; 2]| keys.iter().any(|key| value.get(key).is_some());
    let has_batch_size = has(["max_batch_size", "maxBatchSize"]);
    let descriptor = descriptor().ok_or("the descriptor of inference.ModelConfig cannot be read")?;
    let mut track = Track::new();
    let read = DynamicMessage::deserialize(descriptor, Deserializer::new(value, &mut track));
    let message = read.map_err(|error| format!("{}: {error}", track.path()))?;
    if let Some((field, _)) = message.fields().find(|(field, _)| !KEYS.contains(&field.name())) {
        return Err(format!("{} cannot be set here, expected some of {}", field.name(), KEYS.join(", ")));
    }
    let config: ModelConfig = message.transcode_to().map_err(|error| error.to_string())?;
    same_model(&config, &manifest)?;
    if has_batch_size {
        let size = usize::try_from(config.max_batch_size).unwrap_or(0);
        if size == 0 {
            return Err(format!("max_batch_size = {}, expected at least 1", config.max_batch_size));
        }
        manifest.batching.max_batch_size = size;
    }
    if let Some(ModelVersionPolicy { policy_choice: Some(policy) }) = config.version_policy {
        manifest.version_policy = version_policy(policy)?;
    }
    match config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(dynamic)) => batching(&dynamic, &mut manifest)?,
        // not among the keys
        Some(SchedulingChoice::SequenceBatching(_) | SchedulingChoice::EnsembleScheduling(_)) | None => {}
    }
    match config.instance_group.as_slice() {
        [] => {}
        [group] => replicas(group, &mut manifest)?,
        groups => return Err(format!("instance_group has {} groups, expected one", groups.len())),
    }
    if let Some(cache) = config.response_cache {
        manifest.cache = cache.enable;
    }
    // what follows from the values together is the manifest's own to judge
    let text = toml::to_string(&manifest).map_err(|error| error.to_string())?;
    Manifest::parse(&text, Path::new(FIELD)).map_err(|error| error.to_string())
}

/// Refuses a configuration of another model: what a model is stands in its files.
fn same_model(config: &ModelConfig, manifest: &Manifest) -> Result<(), String> {
    if !config.name.is_empty() && config.name != manifest.name {
        return Err(format!("name = '{}', expected '{}'", config.name, manifest.name));
    }
    let torchscript = manifest.engine == EngineKind::Torchscript;
    for (key, value) in [("platform", config.platform.as_str()), ("backend", config.backend.as_str())] {
        let ours = value.is_empty() || value == "sensorium" || value.starts_with("sensorium_");
        let tritons = torchscript && ["pytorch_libtorch", "pytorch"].contains(&value);
        if !ours && !tritons {
            return Err(format!("{key} = '{value}', which {} is not", manifest.name));
        }
    }
    let inputs = config.input.iter().map(|input| (&input.name, input.data_type(), &input.dims));
    same_tensors("input", inputs, &manifest.inputs)?;
    let outputs = config.output.iter().map(|output| (&output.name, output.data_type(), &output.dims));
    same_tensors("output", outputs, &manifest.outputs)?;
    let decoupled = manifest.pipeline == Pipeline::TextGeneration;
    if config.model_transaction_policy.is_some_and(|policy| policy.decoupled != decoupled) {
        return Err(format!("model_transaction_policy.decoupled = {}, expected {decoupled}", !decoupled));
    }
    Ok(())
}

fn same_tensors<'a>(
    key: &str,
    given: impl Iterator<Item = (&'a String, wire::DataType, &'a Vec<i64>)>,
    specs: &[TensorSpec],
) -> Result<(), String> {
    for (name, datatype, dims) in given {
        let Some(spec) = specs.iter().find(|spec| spec.name == *name) else {
            let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            return Err(format!("{key} '{name}' is unknown, expected {}", known.join(", ")));
        };
        let protocol = if spec.datatype == DataType::Bytes { "STRING" } else { spec.datatype.as_str() };
        let expected = format!("TYPE_{protocol}");
        if datatype.as_str_name() != expected {
            return Err(format!("{key} '{name}' has data_type {}, expected {expected}", datatype.as_str_name()));
        }
        // the batch dimension is implied; a vector of rows has one element each
        let fits = match spec.shape.get(1..) {
            None | Some([]) => matches!(dims.as_slice(), [] | [1 | -1]),
            Some(tail) => tail == dims.as_slice(),
        };
        if !fits {
            let expected = spec.shape.get(1..).unwrap_or_default();
            return Err(format!("{key} '{name}' has dims {dims:?}, expected {expected:?}"));
        }
    }
    Ok(())
}

fn version_policy(policy: PolicyChoice) -> Result<VersionPolicy, String> {
    Ok(match policy {
        PolicyChoice::Latest(latest) if latest.num_versions <= 1 => VersionPolicy::Latest,
        PolicyChoice::Latest(latest) => {
            return Err(format!("version_policy.latest.num_versions = {}, expected 1", latest.num_versions));
        }
        PolicyChoice::All(_) => VersionPolicy::All,
        PolicyChoice::Specific(specific) => {
            let number = |version: i64| {
                let bad = |_| format!("version_policy.specific.versions has {version}, expected a version");
                u64::try_from(version).map_err(bad)
            };
            VersionPolicy::Specific(specific.versions.into_iter().map(number).collect::<Result<_, _>>()?)
        }
    })
}

fn batching(dynamic: &ModelDynamicBatching, manifest: &mut Manifest) -> Result<(), String> {
    if dynamic.preserve_ordering || !dynamic.priority_queue_policy.is_empty() {
        return Err("dynamic_batching: preserve_ordering and priority_queue_policy cannot be set".to_owned());
    }
    let batching = &mut manifest.batching;
    let sizes = dynamic.preferred_batch_size.iter().map(|&size| {
        usize::try_from(size).map_err(|_| format!("dynamic_batching.preferred_batch_size has {size}, expected a size"))
    });
    batching.preferred_batch_size = sizes.collect::<Result<_, _>>()?;
    batching.max_queue_delay_us = dynamic.max_queue_delay_microseconds;
    let level = |key: &str, level: u64| {
        u32::try_from(level).map_err(|_| format!("dynamic_batching.{key} = {level}, expected at most {}", u32::MAX))
    };
    // 0 is what it is by default
    if dynamic.priority_levels > 0 {
        batching.priority_levels = level("priority_levels", dynamic.priority_levels)?;
    }
    if dynamic.default_priority_level > 0 {
        batching.default_priority_level = level("default_priority_level", dynamic.default_priority_level)?;
    }
    if let Some(policy) = &dynamic.default_queue_policy {
        batching.timeout_action = match policy.timeout_action() {
            wire::model_queue_policy::TimeoutAction::Reject => TimeoutAction::Reject,
            wire::model_queue_policy::TimeoutAction::Delay => TimeoutAction::Delay,
        };
        batching.default_timeout_us = policy.default_timeout_microseconds;
        batching.allow_timeout_override = policy.allow_timeout_override;
        if policy.max_queue_size > 0 {
            batching.max_queue_size = usize::try_from(policy.max_queue_size).unwrap_or(usize::MAX);
        }
    }
    Ok(())
}

fn replicas(group: &ModelInstanceGroup, manifest: &mut Manifest) -> Result<(), String> {
    if group.count != 0 {
        let bad = |_| format!("instance_group.count = {}, expected at least 1", group.count);
        manifest.replicas.count = usize::try_from(group.count).map_err(bad)?;
    }
    match (group.kind(), group.gpus.as_slice()) {
        (Kind::Auto, []) => {}
        (Kind::Cpu, []) => "cpu".clone_into(&mut manifest.replicas.device),
        (Kind::Gpu, []) if manifest.replicas.device.starts_with("cuda") => {}
        (Kind::Gpu, [gpu]) => manifest.replicas.device = format!("cuda:{gpu}"),
        (kind, gpus) => {
            let kind = kind.as_str_name();
            return Err(format!(
                "instance_group has kind {kind} and gpus {gpus:?}, expected KIND_AUTO, KIND_CPU, or KIND_GPU and one GPU"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Manifest {
        let text = r#"
            name = "simple"
            modality = "text"
            engine = "torchscript"
            pipeline = "tensor"
            inputs = [{ name = "INPUT0", datatype = "INT32", shape = [-1, 16] }]
            outputs = [{ name = "OUTPUT0", datatype = "BYTES", shape = [-1] }]
            batching = { max_batch_size = 8, max_queue_delay_us = 700 }
        "#;
        Manifest::parse(text, Path::new("model.toml")).unwrap()
    }

    #[test]
    fn what_is_set_is_honoured_and_the_rest_stays() {
        for text in [r#"{"max_batch_size": "16"}"#, r#"{"maxBatchSize": 16}"#, " {\"max_batch_size\":16}\n"] {
            let mut expected = base();
            expected.batching.max_batch_size = 16;
            assert_eq!(from_json(text, base()).unwrap(), expected, "{text}");
        }
        let text = r#"{
            "name": "simple", "platform": "pytorch_libtorch", "backend": "sensorium",
            "input": [{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": ["16"]}],
            "output": [{"name": "OUTPUT0", "data_type": "TYPE_STRING", "dims": ["1"]}],
            "model_transaction_policy": {},
            "version_policy": {"specific": {"versions": ["1", "3"]}},
            "dynamic_batching": {
                "preferred_batch_size": [4], "max_queue_delay_microseconds": "50", "priority_levels": "5",
                "default_queue_policy": {"timeout_action": "DELAY", "max_queue_size": 9}
            },
            "instance_group": [{"name": "simple_0", "count": 2, "kind": "KIND_CPU"}],
            "response_cache": {"enable": true}
        }"#;
        let manifest = from_json(text, base()).unwrap();
        assert_eq!(manifest.version_policy, VersionPolicy::Specific(vec![1, 3]));
        let batching = &manifest.batching;
        assert_eq!((batching.max_batch_size, batching.max_queue_delay_us, batching.priority_levels), (8, 50, 5));
        assert_eq!((batching.max_queue_size, batching.timeout_action), (9, TimeoutAction::Delay));
        assert_eq!((manifest.replicas.count, manifest.replicas.device.as_str(), manifest.cache), (2, "cpu", true));
        assert_eq!(from_json("{}", base()).unwrap(), base());
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        for (text, word) in [
            ("{", "not JSON"),
            ("{} {}", "not JSON"),
            (r#"{"max_batch_size": 0}"#, "max_batch_size = 0"),
            (r#"{"max_batch_size": "-1"}"#, "max_batch_size = -1"),
            (r#"{"max_batch_size": "many"}"#, "max_batch_size: "),
            (r#"{"input": [{"name": "INPUT0", "dims": ["wide"]}]}"#, "input[0].dims[0]: "),
            (r#"{"max_batch": 4}"#, "max_batch"),
            (r#"{"parameters": {"EXECUTION_ENV": {"string_value": "x"}}}"#, "parameters"),
            (r#"{"optimization": {"priority": "PRIORITY_MAX"}}"#, "optimization"),
            (r#"{"sequence_batching": {}}"#, "sequence_batching"),
            (r#"{"name": "other"}"#, "other"),
            (r#"{"platform": "onnxruntime_onnx"}"#, "onnxruntime_onnx"),
            (r#"{"input": [{"name": "INPUT9"}]}"#, "INPUT9"),
            (r#"{"input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [16]}]}"#, "TYPE_FP32"),
            (r#"{"input": [{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [4]}]}"#, "[4]"),
            (r#"{"model_transaction_policy": {"decoupled": true}}"#, "decoupled"),
            (r#"{"version_policy": {"latest": {"num_versions": 2}}}"#, "num_versions"),
            (r#"{"version_policy": {"specific": {"versions": [-2]}}}"#, "-2"),
            (r#"{"dynamic_batching": {"preserve_ordering": true}}"#, "preserve_ordering"),
            (r#"{"dynamic_batching": {"priority_levels": 2, "default_priority_level": 3}}"#, "default_priority_level"),
            (r#"{"instance_group": [{"count": -1}]}"#, "-1"),
            (r#"{"instance_group": [{"count": 1}, {"count": 1}]}"#, "2 groups"),
            (r#"{"instance_group": [{"kind": "KIND_GPU", "gpus": [0, 1]}]}"#, "KIND_GPU"),
        ] {
            let error = from_json(text, base()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
