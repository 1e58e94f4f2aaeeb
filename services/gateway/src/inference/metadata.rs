//! A model's manifest in the protocol's terms.

use std::collections::HashMap;

use sensorium_actors::manifest::{EngineKind, Manifest, Pipeline, TimeoutAction, VersionPolicy};
use sensorium_actors::tensor::DataType as Ours;
use sensorium_proto::inference::model_config::SchedulingChoice;
use sensorium_proto::inference::model_metadata_response::TensorMetadata;
use sensorium_proto::inference::model_queue_policy::TimeoutAction as QueueAction;
use sensorium_proto::inference::model_version_policy::{self, PolicyChoice};
use sensorium_proto::inference::*;

/// Tensors and versions.
pub fn metadata(manifest: &Manifest, versions: &[u64]) -> ModelMetadataResponse {
    let tensors = |specs: &[sensorium_actors::manifest::TensorSpec]| {
        let described = specs.iter().map(|spec| TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.datatype.as_str().to_owned(),
            shape: spec.shape.clone(),
        });
        described.collect()
    };
    ModelMetadataResponse {
        name: manifest.name.clone(),
        versions: versions.iter().map(u64::to_string).collect(),
        platform: platform(manifest),
        inputs: tensors(&manifest.inputs),
        outputs: tensors(&manifest.outputs),
    }
}

fn platform(manifest: &Manifest) -> String {
    match manifest.engine {
        EngineKind::Tch => format!("sensorium_{}", manifest.architecture),
        EngineKind::Torchscript => "pytorch_libtorch".to_owned(),
        EngineKind::Builtin => "sensorium_builtin".to_owned(),
    }
}

/// How it is served.
pub fn config(manifest: &Manifest) -> ModelConfig {
    let batching = &manifest.batching;
    let size = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
    // the batch dimension is implied by max_batch_size
    let dims = |shape: &[i64]| if shape.len() > 1 { shape[1..].to_vec() } else { vec![1] };
    let policy = match &manifest.version_policy {
        VersionPolicy::Latest => PolicyChoice::Latest(model_version_policy::Latest { num_versions: 1 }),
        VersionPolicy::All => PolicyChoice::All(model_version_policy::All {}),
        VersionPolicy::Specific(versions) => PolicyChoice::Specific(model_version_policy::Specific {
            versions: versions.iter().map(|&version| i64::try_from(version).unwrap_or(i64::MAX)).collect(),
        }),
    };
    let action = match batching.timeout_action {
        TimeoutAction::Reject => QueueAction::Reject,
        TimeoutAction::Delay => QueueAction::Delay,
    };
    let dynamic = ModelDynamicBatching {
        preferred_batch_size: batching.preferred_batch_size.iter().map(|&n| size(n)).collect(),
        max_queue_delay_microseconds: batching.max_queue_delay_us,
        preserve_ordering: false,
        priority_levels: batching.priority_levels.into(),
        default_priority_level: batching.default_priority_level.into(),
        default_queue_policy: Some(ModelQueuePolicy {
            timeout_action: action.into(),
            default_timeout_microseconds: batching.default_timeout_us,
            allow_timeout_override: batching.allow_timeout_override,
            max_queue_size: u32::try_from(batching.max_queue_size).unwrap_or(u32::MAX),
        }),
        priority_queue_policy: HashMap::new(),
    };
    let inputs = manifest.inputs.iter().map(|spec| ModelInput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype).into(),
        dims: dims(&spec.shape),
        optional: spec.optional,
        ..Default::default()
    });
    let outputs = manifest.outputs.iter().map(|spec| ModelOutput {
        name: spec.name.clone(),
        data_type: data_type(spec.datatype).into(),
        dims: dims(&spec.shape),
        label_filename: if spec.name == "probabilities" { "labels.txt".to_owned() } else { String::new() },
        ..Default::default()
    });
    let kind = if manifest.replicas.device.starts_with("cuda") {
        model_instance_group::Kind::Gpu
    } else {
        model_instance_group::Kind::Auto
    };
    ModelConfig {
        name: manifest.name.clone(),
        platform: platform(manifest),
        backend: "sensorium".to_owned(),
        version_policy: Some(ModelVersionPolicy { policy_choice: Some(policy) }),
        max_batch_size: size(batching.max_batch_size),
        input: inputs.collect(),
        output: outputs.collect(),
        instance_group: vec![ModelInstanceGroup {
            name: format!("{}_0", manifest.name),
            kind: kind.into(),
            count: size(manifest.replicas.count),
            ..Default::default()
        }],
        model_transaction_policy: Some(ModelTransactionPolicy { decoupled: is_decoupled(manifest) }),
        scheduling_choice: Some(SchedulingChoice::DynamicBatching(dynamic)),
        ..Default::default()
    }
}

/// Whether a stream may have any number of answers to one request.
fn is_decoupled(manifest: &Manifest) -> bool {
    let pieces_of_an_answer = manifest.engine == EngineKind::Builtin && manifest.architecture == "ensemble";
    pieces_of_an_answer || manifest.pipeline == Pipeline::TextGeneration
}

fn data_type(dtype: Ours) -> DataType {
    match dtype {
        Ours::Bool => DataType::TypeBool,
        Ours::Uint8 => DataType::TypeUint8,
        Ours::Uint16 => DataType::TypeUint16,
        Ours::Uint32 => DataType::TypeUint32,
        Ours::Uint64 => DataType::TypeUint64,
        Ours::Int8 => DataType::TypeInt8,
        Ours::Int16 => DataType::TypeInt16,
        Ours::Int32 => DataType::TypeInt32,
        Ours::Int64 => DataType::TypeInt64,
        Ours::Fp16 => DataType::TypeFp16,
        Ours::Bf16 => DataType::TypeBf16,
        Ours::Fp32 => DataType::TypeFp32,
        Ours::Fp64 => DataType::TypeFp64,
        Ours::Bytes => DataType::TypeString,
    }
}
