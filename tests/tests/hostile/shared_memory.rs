//! Shared memory is its tenant's: nobody else sees it, and little of it cannot be made into much.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sensorium_proto::inference::*;
use sensorium_tests::{Ask, Client, Given, Neighbours, Refusal, Repository, Server, ServerOptions};
use tonic::{Code, Request, Status};

/// A row of `identity`.
const ROW: usize = 64;
const MIB: usize = 1 << 20;

/// An object of shared memory that is gone after the test.
struct Object {
    key: String,
    path: PathBuf,
}

impl Object {
    fn new(content: &[u8]) -> Self {
        let key = format!("sensorium-test-{:016x}", rand::random::<u64>());
        let path = Path::new("/dev/shm").join(&key);
        std::fs::write(&path, content).unwrap();
        Self { key, path }
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// Removed and made again, as by a client that restarts.
    fn again(&self, content: &[u8]) {
        std::fs::remove_file(&self.path).unwrap();
        std::fs::write(&self.path, content).unwrap();
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // a test that fails early may have removed it
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Somebody with a key, or without.
struct Caller {
    client: Client,
    key: Option<String>,
}

impl Caller {
    fn with<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.key {
            request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        }
        request
    }

    async fn register(&self, name: &str, key: &str, bytes: usize) -> Result<(), Status> {
        let (name, key, byte_size) = (name.to_owned(), key.to_owned(), bytes as u64);
        let message = SystemSharedMemoryRegisterRequest { name, key, offset: 0, byte_size };
        self.client.inference.clone().system_shared_memory_register(self.with(message)).await.map(drop)
    }

    async fn unregister(&self, name: &str) {
        let message = SystemSharedMemoryUnregisterRequest { name: name.to_owned() };
        self.client.inference.clone().system_shared_memory_unregister(self.with(message)).await.unwrap();
    }

    async fn regions(&self, name: &str) -> Result<Vec<String>, Status> {
        let message = SystemSharedMemoryStatusRequest { name: name.to_owned() };
        let told = self.client.inference.clone().system_shared_memory_status(self.with(message)).await?;
        let mut names: Vec<String> = told.into_inner().regions.into_keys().collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn infer(&self, ask: Ask) -> Result<Given, Status> {
        let answer = self.client.inference.clone().model_infer(self.with(ask.message())).await?;
        Ok(Given(answer.into_inner()))
    }
}

/// Puts a tensor's values into a window.
fn window(parameters: &mut std::collections::HashMap<String, InferParameter>, region: &str, size: usize) {
    let mut set = |name: &str, choice| {
        parameters.insert(name.to_owned(), InferParameter { parameter_choice: Some(choice) });
    };
    set("shared_memory_region", infer_parameter::ParameterChoice::StringParam(region.to_owned()));
    set("shared_memory_byte_size", infer_parameter::ParameterChoice::Int64Param(i64::try_from(size).unwrap()));
}

/// `identity` with `inputs` inputs that each read `bytes` of a region.
fn reading(region: &str, bytes: usize, inputs: usize) -> Ask {
    let rows = i64::try_from(bytes / ROW).unwrap();
    let mut ask = Ask::of("identity");
    for _ in 0..inputs {
        ask = ask.raw("INPUT0", "FP32", &[rows, 16], "");
    }
    ask.message.raw_input_contents.clear();
    ask.message.inputs.iter_mut().for_each(|input| window(&mut input.parameters, region, bytes));
    ask
}

/// `identity` of one row of this mark, whose answer goes into a region.
fn writing(region: &str, mark: f32) -> Ask {
    let mut ask = Ask::of("identity").fp32("INPUT0", &[1, 16], &[mark; 16]).output("OUTPUT0");
    window(&mut ask.message.outputs[0].parameters, region, ROW);
    ask
}

fn row(mark: f32) -> Vec<u8> {
    mark.to_le_bytes().repeat(16)
}

/// Makes a key of an admin of this tenant; the entry of the file, and the key.
async fn key(name: &str, tenant: &str) -> (String, String) {
    let (code, entry, secret) = Server::verb(&["key", name, "--tenant", tenant, "--admin"]).await;
    assert_eq!(code, Some(0), "{secret}");
    (entry, secret.trim().to_owned())
}

#[tokio::test]
async fn a_region_belongs_to_the_tenant_that_registered_it() {
    let (first, ours) = key("ours", "acme").await;
    let (second, colleagues) = key("colleagues", "acme").await;
    let (third, theirs) = key("theirs", "initech").await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [first, second, third].join("\n")).unwrap();
    let keys = file.path().display().to_string();
    let options = ServerOptions::new(Repository::new().with(&["identity"])).set("auth.keys", &keys);
    let server = Server::start(options).await;
    let client = server.client().await;
    let caller = |key: &str| Caller { client: client.clone(), key: Some(key.to_owned()) };
    let (ours, colleagues, theirs) = (caller(&ours), caller(&colleagues), caller(&theirs));

    let object = Object::new(&row(3.0));
    ours.register("r", &object.key, ROW).await.unwrap();
    assert_eq!(ours.infer(reading("r", ROW, 1)).await.unwrap().fp32("OUTPUT0"), [3.0; 16]);
    assert_eq!(colleagues.infer(reading("r", ROW, 1)).await.unwrap().fp32("OUTPUT0"), [3.0; 16]);

    // neither listed, nor read, nor written, nor unregistered by anybody else
    assert!(theirs.regions("").await.unwrap().is_empty());
    let refusal = Refusal::of(theirs.regions("r").await);
    assert_eq!(refusal.code, Code::NotFound, "{refusal:?}");
    Refusal::of(theirs.infer(reading("r", ROW, 1)).await).blames("shared_memory_region", &["'r' is not registered"]);
    Refusal::of(theirs.infer(writing("r", 9.0)).await).blames("shared_memory_region", &["'r' is not registered"]);
    let requests = tokio_stream::iter([reading("r", ROW, 1).message(), writing("r", 9.0).message()]);
    let answers = theirs.client.inference.clone().model_stream_infer(theirs.with(requests)).await.unwrap();
    let answers: Vec<_> = futures::TryStreamExt::try_collect(answers.into_inner()).await.unwrap();
    let refused = |answer: &ModelStreamInferResponse| answer.error_message.contains("'r' is not registered");
    assert!(answers.len() == 2 && answers.iter().all(refused), "{answers:?}");
    for name in ["r", ""] {
        theirs.unregister(name).await;
        assert_eq!(ours.regions("").await.unwrap(), ["r"]);
    }
    // an object that is one tenant's is not another's, whatever it is called; a name of one's own is free
    for key in [object.key.clone(), format!("/{}", object.key)] {
        let refusal = Refusal::of(theirs.register("mine", &key, ROW).await);
        assert_eq!(refusal.code, Code::PermissionDenied, "{refusal:?}");
    }
    let other = Object::new(&row(5.0));
    theirs.register("r", &other.key, ROW).await.unwrap();
    assert_eq!(theirs.infer(reading("r", ROW, 1)).await.unwrap().fp32("OUTPUT0"), [5.0; 16]);
    ours.infer(writing("r", 7.0)).await.unwrap();
    assert_eq!((object.content(), other.content()), (row(7.0), row(5.0)));
    colleagues.unregister("").await;
    assert_eq!(theirs.regions("").await.unwrap(), ["r"]);
}

#[tokio::test]
async fn little_shared_memory_is_not_made_into_much() {
    let repository = Repository::new().with(&["identity"]);
    let server = Server::start(
        ServerOptions::new(repository)
            .set("limits.max_message_bytes", "8388608")
            .set("limits.max_shared_memory_regions", "4")
            .set("limits.max_shared_memory_bytes", "33554432"),
    )
    .await;
    let caller = Caller { client: server.client().await, key: None };
    let neighbours = Neighbours::beside(&server).await;

    // links, folders and the like are nobody's memory, and names stay short
    let link = Object::new(b"");
    std::fs::remove_file(&link.path).unwrap();
    for target in ["/etc/hostname", "/proc/self/environ", "/dev/zero"] {
        symlink(target, &link.path).unwrap();
        Refusal::of(caller.register("l", &link.key, 1).await).blames("key", &["cannot open"]);
        std::fs::remove_file(&link.path).unwrap();
    }
    std::fs::create_dir(&link.path).unwrap();
    Refusal::of(caller.register("l", &link.key, 1).await).blames("key", &["cannot open"]);
    std::fs::remove_dir(&link.path).unwrap();
    let object = Object::new(&vec![0; MIB]);
    Refusal::of(caller.register(&"n".repeat(MIB), &object.key, ROW).await).blames("name", &["expected 1 to 255"]);
    Refusal::of(caller.register("n", &"k".repeat(MIB), ROW).await).blames("key", &["expected at most 255"]);
    Refusal::of(caller.register("", &object.key, ROW).await).blames("name", &["expected 1 to 255"]);

    // one window that many inputs name counts as often, and so do many small ones
    caller.register("r", &object.key, MIB).await.unwrap();
    for (bytes, inputs) in [(MIB, 9), (MIB, 10_000), (ROW, 20_000), (MIB, 1)] {
        let answer = caller.infer(reading("r", bytes, inputs)).await;
        if inputs == 1 {
            Refusal::of(answer).blames("shape", &["rows"]);
        } else {
            assert_eq!(Refusal::of(answer).code, Code::InvalidArgument, "{bytes} by {inputs}");
        }
    }
    let requests = tokio_stream::iter((0..32).map(|_| reading("r", MIB, 1000).message()));
    let answers = caller.client.inference.clone().model_stream_infer(requests).await.unwrap().into_inner();
    let answers: Vec<_> = futures::TryStreamExt::try_collect(answers).await.unwrap();
    assert!(answers.iter().all(|answer| answer.error_message.contains("invalid_argument")), "{:?}", answers.first());

    // as many regions, and as many bytes in them, as a tenant may have
    let large = Object::new(b"");
    let size = 32 * MIB;
    std::fs::File::options().write(true).open(&large.path).unwrap().set_len(size as u64).unwrap();
    Refusal::of(caller.register("large", &large.key, size).await)
        .is_retriable(Code::ResourceExhausted, "SHARED_MEMORY_FULL");
    caller.register("large", &large.key, size - MIB).await.unwrap();
    caller.unregister("large").await;
    for name in ["s", "t", "u"] {
        caller.register(name, &object.key, ROW).await.unwrap();
    }
    Refusal::of(caller.register("v", &object.key, ROW).await)
        .is_retriable(Code::ResourceExhausted, "SHARED_MEMORY_FULL");
    caller.unregister("t").await;
    caller.register("v", &object.key, ROW).await.unwrap();

    // what was removed and made again is another object: never the old one's data, and its place is free
    for mark in [1.0, 2.0, 3.0] {
        object.again(&row(mark));
        for ask in [reading("s", ROW, 1), writing("s", 9.0)] {
            Refusal::of(caller.infer(ask).await).blames("shared_memory_region", &["'s'", "made again"]);
        }
        caller.register("s", &object.key, ROW).await.unwrap();
        assert_eq!(caller.infer(reading("s", ROW, 1)).await.unwrap().fp32("OUTPUT0"), [mark; 16]);
        assert_eq!(caller.regions("").await.unwrap(), ["s"]);
    }
    std::fs::File::options().write(true).open(&object.path).unwrap().set_len(8).unwrap();
    Refusal::of(caller.infer(reading("s", ROW, 1)).await).blames("shared_memory_region", &["'s'", "8 bytes left"]);
    std::fs::remove_file(&object.path).unwrap();
    Refusal::of(caller.infer(reading("s", ROW, 1)).await).blames("shared_memory_region", &["'s'", "removed"]);
    neighbours.were_not_hurt("shared memory").await;
}
