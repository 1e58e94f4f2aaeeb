//! Kinds of work: what a request asks, and what counts as its answer.

mod doors;
pub mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use sensorium_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use sensorium_proto::inference::infer_parameter::ParameterChoice;
use sensorium_proto::inference::model_infer_request::InferInputTensor;
use sensorium_proto::inference::{InferParameter, ModelInferRequest};
use sensorium_proto::v1::sensorium_client::SensoriumClient;
use sensorium_proto::v1::{GenerateRequest, Sampling};
use sensorium_proto::worker::worker_client::WorkerClient;
use sensorium_proto::worker::{InferRequest, Tensor};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub use self::doors::Doors;
use crate::error::{Error, Result};

/// Bits of a request's number below those of its caller.
pub const CALLER: u32 = 28;

/// The number of a run's first request. No two runs of a process ask the same, or a cache would answer the second.
pub fn first_number() -> u64 {
    static RUNS: AtomicU64 = AtomicU64::new(1);
    RUNS.fetch_add(1, Relaxed) << 44
}

/// Bytes of an answer at most; embeddings of large batches exceed tonic's default of 4 MiB.
const MAX_ANSWER: usize = 64 << 20;

/// All services over one connection. A clone shares the connection.
#[derive(Clone)]
pub struct Client {
    /// Open Inference Protocol.
    pub inference: GrpcInferenceServiceClient<Channel>,
    /// The richer one.
    pub sensorium: SensoriumClient<Channel>,
    /// What gateways ask workers; a gateway does not answer it.
    pub worker: WorkerClient<Channel>,
}

impl Client {
    /// Connects now, so that a wrong address is an error here and not in the figures.
    pub async fn connect(target: &str) -> Result<Self> {
        let fail = |source| Error::Connect { target: target.to_owned(), source };
        Ok(Self::over(endpoint(target)?.connect().await.map_err(fail)?))
    }

    /// Connects with the first request.
    pub fn lazy(target: &str) -> Result<Self> {
        Ok(Self::over(endpoint(target)?.connect_lazy()))
    }

    fn over(channel: Channel) -> Self {
        Self {
            inference: GrpcInferenceServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            sensorium: SensoriumClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            worker: WorkerClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        }
    }
}

fn endpoint(target: &str) -> Result<Endpoint> {
    let fail = |source| Error::Connect { target: target.to_owned(), source };
    let endpoint = Endpoint::from_shared(target.to_owned()).map_err(fail)?.tcp_nodelay(true);
    Ok(endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(8 << 20))
}

/// What a successful request brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Tokens written.
    pub tokens: u64,
    /// When the first piece of text came.
    pub first: Option<Instant>,
}

/// What is asked. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Work {
    /// Sixteen numbers there and back: the cluster itself.
    Identity,
    /// Sentence embeddings of this many tokens.
    Minilm(usize),
    /// The same of so many texts, again and again: what a cache may answer.
    MinilmAgain(usize, u64),
    /// Sentence embeddings of 8 to 256 tokens.
    MinilmMixed,
    /// `Identity`, asked of a worker itself.
    Direct,
    /// Labels of an encoded image.
    Image(Bytes),
    /// Transcript of an encoded clip, by the model of this name.
    Audio(&'static str, Bytes),
    /// So many tokens of greedy text.
    Generate(u32),
    /// These in turn.
    Mixed(Arc<[Work]>),
}

impl Work {
    /// The name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Minilm(_) => "minilm",
            Self::MinilmAgain(..) => "minilm-again",
            Self::MinilmMixed => "minilm-mixed",
            Self::Direct => "identity-direct",
            Self::Image(_) => "efficientnet",
            Self::Audio(..) => "whisper",
            Self::Generate(_) => "generate",
            Self::Mixed(_) => "mixed",
        }
    }

    /// Makes the request of this `number` and waits for all of its answer.
    ///
    /// # Errors
    /// The server's status.
    pub async fn call(&self, client: &mut Client, number: u64) -> Result<Outcome, Status> {
        let request = match self {
            Self::Identity => identity(),
            Self::Minilm(tokens) => bytes_of("minilm", "text", text::of(*tokens, number).into()),
            Self::MinilmAgain(tokens, texts) => {
                // callers begin at different texts, or all would ask for the same one at a time
                let which = number.wrapping_add(number >> CALLER) % (*texts).max(1);
                bytes_of("minilm", "text", text::of(*tokens, which).into())
            }
            Self::Direct => return direct(client).await,
            Self::MinilmMixed => bytes_of("minilm", "text", text::of(text::mixed_length(number), number).into()),
            Self::Image(image) => uncached(bytes_of("efficientnet-lite0", "image", image.clone())),
            Self::Audio(model, clip) => uncached(bytes_of(model, "audio", clip.clone())),
            Self::Generate(tokens) => return generate(client, *tokens, number).await,
            Self::Mixed(kinds) => {
                let which = usize::try_from(number & 0xffff_ffff).unwrap_or(0) % kinds.len().max(1);
                let Some(kind) = kinds.get(which) else { return Err(Status::invalid_argument("no kinds of work")) };
                return Box::pin(kind.call(client, number)).await;
            }
        };
        let reply = client.inference.model_infer(request).await?.into_inner();
        // an empty answer would be a fast one
        if reply.raw_output_contents.is_empty() && reply.outputs.iter().all(|output| output.contents.is_none()) {
            return Err(Status::data_loss("an answer without values"));
        }
        Ok(Outcome::default())
    }
}

fn infer(model: &str, input: &str, datatype: &str, shape: Vec<i64>, raw: Bytes) -> ModelInferRequest {
    let tensor =
        InferInputTensor { name: input.to_owned(), datatype: datatype.to_owned(), shape, ..Default::default() };
    ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![tensor],
        raw_input_contents: vec![raw],
        ..Default::default()
    }
}

static VALUES: [u8; 64] = [0x3f; 64];

/// INPUT0, FP32 [1, 16].
fn identity() -> ModelInferRequest {
    infer("identity", "INPUT0", "FP32", vec![1, 16], Bytes::from_static(&VALUES))
}

async fn direct(client: &mut Client) -> Result<Outcome, Status> {
    let input = Tensor {
        name: "INPUT0".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 16],
        data: Bytes::from_static(&VALUES),
    };
    let request = InferRequest { model: "identity".to_owned(), inputs: vec![input], ..Default::default() };
    let reply = client.worker.infer(request).await?.into_inner();
    if reply.outputs.iter().all(|output| output.data.is_empty()) {
        return Err(Status::data_loss("an answer without values"));
    }
    Ok(Outcome::default())
}

/// One element of BYTES, as the protocol writes it: its length in four bytes, little-endian, then the bytes.
fn bytes_of(model: &str, input: &str, value: Bytes) -> ModelInferRequest {
    let mut raw = BytesMut::with_capacity(4 + value.len());
    raw.put_u32_le(u32::try_from(value.len()).unwrap_or(u32::MAX));
    raw.put(value);
    infer(model, input, "BYTES", vec![1], raw.freeze())
}

/// The same past every cache: there is but one file, and it is asked for again and again.
fn uncached(mut request: ModelInferRequest) -> ModelInferRequest {
    let never = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(false)) };
    request.parameters.insert("cache".to_owned(), never);
    request
}

async fn generate(client: &mut Client, tokens: u32, number: u64) -> Result<Outcome, Status> {
    // a question that a small model does not finish in a few words
    let about = text::of(6, number);
    let request = GenerateRequest {
        prompt: format!("Write a long story with these words in it: {about}."),
        sampling: Some(Sampling { max_tokens: tokens, temperature: Some(0.0), ..Default::default() }),
        ..Default::default()
    };
    let mut pieces = client.sensorium.generate(request).await?.into_inner();
    let mut outcome = Outcome::default();
    while let Some(piece) = pieces.message().await? {
        if !piece.text.is_empty() && outcome.first.is_none() {
            outcome.first = Some(Instant::now());
        }
        outcome.tokens = outcome.tokens.max(piece.completion_tokens.into());
    }
    if outcome.tokens == 0 { Err(Status::data_loss("no tokens")) } else { Ok(outcome) }
}

/// A small picture of our own: 64 × 64 pixels of colour gradients as a BMP. For runs that have no file at hand.
pub fn picture() -> Bytes {
    const SIDE: u32 = 64;
    let size = SIDE * SIDE * 3;
    let mut file = BytesMut::with_capacity(54 + size as usize);
    file.put_slice(b"BM");
    for value in [54 + size, 0, 54, 40, SIDE, SIDE, 1 | 24 << 16, 0, size, 2835, 2835, 0, 0] {
        file.put_u32_le(value);
    }
    for y in 0..SIDE {
        for x in 0..SIDE {
            file.put_slice(&[(x * 4) as u8, (y * 4) as u8, ((x ^ y) * 4) as u8]);
        }
    }
    file.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_carry_their_length() {
        let request = bytes_of("minilm", "text", Bytes::from_static(b"abc"));
        assert_eq!(request.raw_input_contents[0].as_ref(), b"\x03\0\0\0abc");
        assert_eq!(request.inputs[0].shape, [1]);
    }

    #[test]
    fn no_two_runs_ask_the_same() {
        let (first, second) = (first_number(), first_number());
        assert_ne!(text::of(23, first), text::of(23, second));
    }

    #[test]
    fn the_picture_has_the_size_its_header_says() {
        let file = picture();
        assert_eq!(file.len(), 54 + 64 * 64 * 3);
        assert_eq!(u32::from_le_bytes(file[2..6].try_into().unwrap()) as usize, file.len());
    }

    #[tokio::test]
    async fn the_echo_answers_and_refuses_the_rest() {
        let echo = crate::echo::Echo::start().await.unwrap();
        let mut client = Client::connect(&echo.target()).await.unwrap();
        Work::Identity.call(&mut client, 0).await.unwrap();
        let reply = client.inference.model_infer(identity()).await.unwrap().into_inner();
        assert_eq!(reply.raw_output_contents[0].as_ref(), [0x3f; 64]);
        let refused = client.inference.server_live(sensorium_proto::inference::ServerLiveRequest {}).await;
        assert_eq!(refused.unwrap_err().code(), tonic::Code::Unimplemented);
    }
}
