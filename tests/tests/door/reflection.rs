//! Reflection, both versions: services are listed, and files come with their dependencies.

use futures::StreamExt;
use prost::Message;
use prost_types::FileDescriptorProto;
use sensorium_tests::within;

use super::client;

const SERVICES: [&str; 4] =
    ["grpc.health.v1.Health", "inference.GRPCInferenceService", "sensorium.admin.v1.Admin", "sensorium.v1.Sensorium"];

macro_rules! reflection_of {
    ($test:ident, $version:ident) => {
        #[tokio::test]
        async fn $test() {
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            let mut reflection = ServerReflectionClient::new(client().await.channel);
            let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let requests = vec![
                ask(MessageRequest::ListServices(String::new())),
                ask(MessageRequest::FileContainingSymbol("inference.GRPCInferenceService".to_owned())),
            ];
            let answers = within(reflection.server_reflection_info(tokio_stream::iter(requests))).await.unwrap();
            let mut answers = answers.into_inner().map(|answer| answer.unwrap().message_response.unwrap());
            let Some(MessageResponse::ListServicesResponse(list)) = within(answers.next()).await else {
                panic!("no list of services");
            };
            let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
            for service in SERVICES {
                assert!(names.contains(&service), "{service} in {names:?}");
            }
            let Some(MessageResponse::FileDescriptorResponse(files)) = within(answers.next()).await else {
                panic!("no file");
            };
            let files: Vec<_> = files
                .file_descriptor_proto
                .iter()
                .map(|file| FileDescriptorProto::decode(&file[..]).unwrap())
                .collect();
            let service = files.iter().flat_map(|file| &file.service).find(|s| s.name() == "GRPCInferenceService");
            assert_eq!(service.unwrap().method.len(), 20);
        }
    };
}

reflection_of!(version_1_lists_services_and_files, v1);
reflection_of!(version_1_alpha_lists_services_and_files, v1alpha);
