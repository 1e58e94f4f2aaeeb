//! Small files that decode to a lot.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use sensorium_tests::{Ask, Neighbours, Refusal, Repository, Server, ServerOptions, samples};
use tonic::Code;

/// A bitmap of one bit a pixel: as RGB it has 24 times the bytes.
fn bitmap(side: u32) -> Vec<u8> {
    let row = side.div_ceil(32) * 4;
    let size = row * side;
    let mut file = b"BM".to_vec();
    // file: size, reserved, where the pixels begin; information: its size, width, height, planes, bits, compression
    for number in [62 + size, 0, 62, 40, side, side, 1 | 1 << 16, 0, size, 0, 0, 2, 2, 0, 0x00ff_ffff] {
        file.extend(number.to_le_bytes());
    }
    file.resize(62 + size as usize, 0xa5);
    file
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "measured figures belong to the output of a test")]
async fn decoded_images_share_a_bounded_room() {
    let repository = Repository::new().with(&["identity"]).copy("efficientnet-lite0", "eye", &[("cache", "false")]);
    let options =
        ServerOptions::new(repository).set("compute.decoded_bytes", "33554432").set("compute.decode_threads", "16");
    let server = Server::start(options).await;
    let client = server.client().await;
    let ask = |side: u32, count: usize| Ask::of("eye").bytes("image", &vec![bitmap(side); count]);
    // the model's own memory grows with its first batches, of any size
    for count in [1, 2, 4, 8] {
        join_all((0..4).map(|_| client.infer(ask(64, count))))
            .await
            .into_iter()
            .for_each(|answer| drop(answer.unwrap()));
    }
    let neighbours = Neighbours::beside(&server).await;

    // 64 million pixels are within the model's limit, and alone more than the process has room for
    let refusal = Refusal::of(client.infer(ask(8000, 1)).await);
    refusal.blames("image", &["decodes to", "384000000", "33554432"]);

    // 24 MB each: on 16 threads that would be 380 MB at a time
    for answer in join_all((0..4).map(|_| client.infer(ask(2000, 2)))).await {
        assert_eq!(answer.unwrap().shape("probabilities"), [2, 1000]);
    }
    // where there is no room within the deadline, the caller is told before it
    let (full, late, well) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    join_all((0..24).map(async |_| {
        let counter = match client.infer(ask(2000, 4).deadline(500)).await {
            Ok(_) => &well,
            Err(status) => {
                let refusal = Refusal::from(status);
                match refusal.code {
                    Code::ResourceExhausted => {
                        assert!(
                            ["DECODING_FULL", "DEADLINE_UNMEETABLE"]
                                .contains(&refusal.reason.as_deref().unwrap_or_default()),
                            "{refusal:?}"
                        );
                        &full
                    }
                    _ => {
                        // the client's own clock says so in its own way
                        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&refusal.code), "{refusal:?}");
                        &late
                    }
                }
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }))
    .await;
    let (full, late, well) = (full.into_inner(), late.into_inner(), well.into_inner());
    println!("{well} answered, {full} found no room, {late} were late");
    assert!(full > 0, "{well} answered, {late} late");
    // the files themselves, and the room
    neighbours.were_not_hurt_within("images that decode to a lot", (32 + 150) << 20).await;
}

/// Clips whose header says little or nothing are heard to their end.
#[tokio::test]
async fn clips_are_heard_whatever_their_header_says() {
    let repository =
        Repository::new().with(&["identity", "silero-vad"]).copy("whisper-tiny-en", "ear", &[("cache", "false")]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let client = server.client().await;
    let hear = |clip: Vec<u8>| client.infer(Ask::of("ear").bytes("audio", &[clip]));

    // a header that says less than there is, and one that says more
    let silence = samples::wav(&vec![0; 40 * 16_000], samples::RATE, 1);
    for claimed in [1u32, 1 << 20, u32::MAX] {
        let mut lying = silence.clone();
        lying[40..44].copy_from_slice(&claimed.to_le_bytes());
        match hear(lying).await {
            Ok(heard) => assert_eq!(heard.shape("embedding"), [1, 384]),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{status}"),
        }
    }
    // where nobody speaks the embedding is zeros, as wide as the manifest says
    for clip in [silence, samples::wav(&[0; 160], samples::RATE, 1)] {
        let heard = hear(clip).await.unwrap();
        assert_eq!(heard.shape("embedding"), [1, 384]);
        assert_eq!(heard.fp32("embedding"), [0.0; 384]);
        assert_eq!(heard.one_text("transcript"), "");
    }
    // every container, of whose headers some say nothing
    for name in
        ["mp3-16k.mp3", "mp3-stereo-48k.mp3", "vorbis-stereo-44k.ogg", "flac-16k.flac", "aac-16k.aac", "wav-u8-8k.wav"]
    {
        hear(samples::fixture(name)).await.unwrap_or_else(|status| panic!("{name}: {status}"));
    }
}
