//! Few bytes on the wire that are many in memory, and too many of them.

use std::io::Write;

use bytes::Bytes;
use prost::Message;
use sensorium_proto::inference::model_infer_request::InferInputTensor;
use sensorium_proto::inference::{InferTensorContents, ModelInferRequest};
use sensorium_tests::{Ask, Neighbours, Refusal, chaos};
use tonic::Code;
use tonic::codec::CompressionEncoding;

use super::server;

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Sends a message by its bytes, compressed or not; the status that comes.
async fn send(server: &sensorium_tests::Server, encoding: Option<&str>, message: &[u8]) -> Refusal {
    let channel = server.client().await.channel;
    let mut body = bytes::BytesMut::new();
    bytes::BufMut::put_u8(&mut body, u8::from(encoding.is_some()));
    bytes::BufMut::put_u32(&mut body, u32::try_from(message.len()).unwrap());
    bytes::BufMut::put_slice(&mut body, message);
    let mut request = http::Request::post(INFER).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let body = tonic::body::Body::new(http_body_util::Full::new(body.freeze()));
    let mut channel = channel;
    let answered = sensorium_tests::within(async {
        std::future::poll_fn(|context| tower::Service::poll_ready(&mut channel, context)).await.unwrap();
        tower::Service::call(&mut channel, request.body(body).unwrap()).await
    });
    let response = answered.await.unwrap();
    let headers = response.headers().clone();
    let status = match tonic::Status::from_header_map(&headers) {
        Some(status) => status,
        None => {
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
            tonic::Status::from_header_map(body.trailers().unwrap()).unwrap()
        }
    };
    Refusal::from(status)
}

fn typed(contents: InferTensorContents) -> Vec<u8> {
    let input = InferInputTensor {
        name: "INPUT0".into(),
        datatype: "FP32".into(),
        shape: vec![1, 16],
        contents: Some(contents),
        ..Default::default()
    };
    let message = ModelInferRequest { model_name: "identity".into(), inputs: vec![input], ..Default::default() };
    message.encode_to_vec()
}

#[tokio::test]
async fn messages_that_burst_are_refused_before_they_are_read() {
    let server = server(&[]).await;
    let eight = (8 << 20) - 64;
    let all = [
        ("empty inputs", [0x2a, 0].repeat(eight / 2)),
        ("empty outputs", [0x32, 0].repeat(eight / 2)),
        ("empty parameters", [0x22, 0].repeat(eight / 2)),
        ("empty raw contents", [0x3a, 0].repeat(eight / 2)),
        (
            "empty strings",
            typed(InferTensorContents { bytes_contents: vec![Bytes::new(); eight / 3], ..Default::default() }),
        ),
        (
            "numbers of a byte",
            typed(InferTensorContents { uint64_contents: vec![1; eight - 64], ..Default::default() }),
        ),
    ];
    // before there are neighbours, who share this thread
    let all = all.map(|(what, message)| (what, gzip(&message), message));
    let neighbours = Neighbours::beside(&server).await;
    for (what, compressed, message) in &all {
        let refusal = send(&server, None, message).await;
        assert_eq!(refusal.code, Code::InvalidArgument, "{what}: {refusal:?}");
        // the same within few bytes
        let refusal = send(&server, Some("gzip"), compressed).await;
        assert_eq!(refusal.code, Code::InvalidArgument, "{what}, compressed: {refusal:?}");
    }
    neighbours.were_not_hurt("messages that burst when they are read").await;
}

#[tokio::test]
async fn messages_that_were_made_to_inflate_are_refused() {
    let server = server(&[]).await;
    let zeros = vec![0; 64 << 20];
    let bombs = [
        ("gzip", gzip(&zeros)),
        ("gzip", gzip(&zeros[..7 << 20])),
        ("zstd", zstd::encode_all(&zeros[..], 3).unwrap()),
        ("zstd", zstd::encode_all(&zeros[..7 << 20], 3).unwrap()),
        ("gzip", b"nothing of the kind".to_vec()),
        ("zstd", b"nothing of the kind".to_vec()),
    ];
    let neighbours = Neighbours::beside(&server).await;
    for (encoding, bomb) in &bombs {
        for _ in 0..5 {
            let refusal = send(&server, Some(encoding), bomb).await;
            assert_eq!(refusal.code, Code::InvalidArgument, "{encoding}: {refusal:?}");
        }
    }
    // a million equal texts are a few kilobytes
    let texts = Ask::of("minilm").bytes("text", &vec![""; 1_000_000]).deadline(2000);
    let mut compressing = server.client().await.inference.send_compressed(CompressionEncoding::Gzip);
    let refusal = Refusal::of(compressing.model_infer(texts.request()).await.map(drop));
    assert_eq!(refusal.code, Code::InvalidArgument, "{refusal:?}");
    let unknown = send(&server, Some("snappy"), b"").await;
    assert_eq!(unknown.code, Code::Unimplemented, "{unknown:?}");
    neighbours.were_not_hurt("messages made to inflate").await;
    // who compresses what is worth it is understood
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let client = server.client().await.inference;
        let mut client = client.send_compressed(encoding).accept_compressed(encoding);
        let words = "it is a truth universally acknowledged ".repeat(20);
        for text in ["short", &words] {
            client.model_infer(Ask::text(text).request()).await.unwrap();
        }
        let values: Vec<f32> = (0..1u32 << 18).map(|n| (n % 10_007) as f32).collect();
        let large = Ask::of("wide").fp32("INPUT0", &[1, 1 << 18], &values);
        assert_eq!(
            client.model_infer(large.request()).await.unwrap().into_inner().raw_output_contents[0].len(),
            1 << 20
        );
    }
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_one_below_it_is_answered() {
    let server = server(&[]).await;
    let client = server.client().await;
    let row = |megabytes: usize| {
        let values = vec![0.25; megabytes << 18];
        Ask::of("wide").fp32("INPUT0", &[1, i64::try_from(values.len()).unwrap()], &values)
    };
    client.infer(row(7)).await.unwrap();
    let refusal = Refusal::of(client.infer(row(8)).await);
    assert_eq!(refusal.code, Code::InvalidArgument, "{refusal:?}");
    assert!(refusal.message.contains("8388608"), "{refusal:?}");
    // the connection lives on
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
}

#[tokio::test]
async fn headers_that_are_too_large_get_a_status_and_others_live_on() {
    let server = server(&[]).await;
    let client = server.client().await;
    let neighbours = Neighbours::beside(&server).await;
    let with = |name: &'static str, length: usize| {
        let mut request = chaos("identity", 1.0, 1.0).request();
        request.metadata_mut().insert(name, "x".repeat(length).parse().unwrap());
        request
    };
    for name in ["authorization", "baggage", "x-anything"] {
        client.inference.clone().model_infer(with(name, 20_000)).await.unwrap();
        for length in [33_000, 60_000] {
            let refusal = Refusal::of(client.inference.clone().model_infer(with(name, length)).await.map(drop));
            assert_eq!(refusal.code, Code::InvalidArgument, "{name} {length}: {refusal:?}");
            assert!(refusal.message.contains("32768"), "{refusal:?}");
        }
    }
    client.infer(chaos("identity", 1.0, 1.0)).await.unwrap();
    neighbours.were_not_hurt("large headers").await;
}
