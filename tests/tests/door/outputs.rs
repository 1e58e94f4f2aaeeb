//! Where the verbs' output goes, and what it looks like: to whoever reads it, as JSON for programs, and without what
//! others have hidden in a name.

use std::fs::OpenOptions;
use std::io::pipe;
use std::time::Duration;

use sensorium_tests::jobs::{header, text};
use sensorium_tests::{Repository, Server, ServerOptions, chaos};
use serde_json::Value;
use tokio::sync::OnceCell;

/// A server for whatever verbs do to it.
pub(super) async fn server() -> &'static Server {
    static SERVER: OnceCell<Server> = OnceCell::const_new();
    let start = || {
        let repository = Repository::new().with(&["identity", "minilm", "efficientnet-lite0"]);
        let options = ServerOptions::new(repository).set("understand.text_guard", "");
        Server::start(options.set("understand.image_guard", "").set("limits.max_message_bytes", "4000000"))
    };
    SERVER.get_or_init(start).await
}

/// The id of a job that is over.
async fn job(label: &str, item: &str) -> String {
    let client = server().await.client().await;
    let mut header = header("");
    header.label = label.to_owned();
    let job = client.submit(header, vec![text(item, "A sentence.")]).await.unwrap();
    client.finish(&job.id).await.unwrap();
    job.id
}

/// A verb and its arguments.
type Line = Vec<String>;

/// Every verb that ends by itself and succeeds.
async fn verbs() -> Vec<Line> {
    let address = format!("http://{}", server().await.grpc);
    let job = job("verbs", "item").await;
    let client = server().await.client().await;
    let path = client.actor("minilm/1/replica-0").await.path;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("text.txt"), "A sentence.").unwrap();
    let file = folder.path().join("sensorium.toml");
    std::fs::write(&file, "").unwrap();
    let (folder, file) = (folder.keep().display().to_string(), file.display().to_string());
    let asking = [
        &["models", "list"][..],
        &["models", "load", "identity"],
        &["actors", "tree"],
        &["actors", "restart", &path],
        &["card", "minilm"],
        &["status"],
        &["infer", "--text", "A sentence.", "--no-answer"],
        &["jobs", "submit", &folder, "--no-answer"],
        &["jobs", "submit", "--text", "A sentence.", "--no-answer", "--detach"],
        &["jobs", "watch", &job],
        &["jobs", "results", &job],
        &["jobs", "list"],
        &["jobs", "cancel", &job],
        &["jobs", "dead", "list"],
    ];
    let alone = [&["config", "default"][..], &["config", "check", &file], &["key", "somebody", "--admin"]];
    let owned = |line: &[&str]| line.iter().map(|&word| word.to_owned()).collect::<Line>();
    let asking = asking.into_iter().map(|line| [owned(line), vec!["--server".to_owned(), address.clone()]].concat());
    asking.chain(alone.into_iter().map(owned)).collect()
}

fn words(line: &Line) -> Vec<&str> {
    line.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn every_verb_speaks_json_and_survives_a_closed_pipe_and_a_full_disk() {
    for line in verbs().await {
        let said = line.join(" ");
        let json = [&words(&line)[..], &["-o", "json"]].concat();
        let (code, output, errors) = Server::verb(&json).await;
        assert!(code == Some(0) && errors.is_empty(), "{said}: {code:?} {errors}");
        let documents: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&output).into_iter().collect();
        let documents = documents.unwrap_or_else(|error| panic!("{said}: {error}: {output}"));
        let expected = if said.contains("submit") && !said.contains("--detach") { 2 } else { 1 };
        assert_eq!(documents.len(), expected, "{said}: {output}");

        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let (code, errors) = Server::verb_into(&words(&line), writer).await;
        assert!(code == Some(0) && errors.is_empty(), "{said}: {code:?} {errors}");
        // the list of dead tasks has a header, so every verb writes something
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (code, errors) = Server::verb_into(&words(&line), full).await;
        assert!(code == Some(5) && errors.contains("stdout: No space left"), "{said}: {code:?} {errors}");
        assert_eq!(errors.lines().count(), 1, "nothing but that, and no key either: {said}: {errors}");
    }
}

#[tokio::test]
async fn what_an_operator_does_is_done_though_nobody_reads_of_it() {
    let repository = Repository::new().with(&["identity"]);
    let server = Server::start(ServerOptions::new(repository)).await;
    let (address, client) = (format!("http://{}", server.grpc), server.client().await);
    let ready = async || client.infer(chaos("identity", 0.0, 0.0)).await.is_ok();
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    for (verb, then) in [("unload", false), ("load", true)] {
        let line = ["models", verb, "identity", "--server", &address];
        let (code, errors) = Server::verb_into(&line, full()).await;
        assert!(code == Some(5) && errors.contains("stdout"), "{verb}: {code:?} {errors}");
        assert_eq!(ready().await, then, "{verb}");
    }
    let line = ["models", "unload", "identity", "--server", &address, "-o", "json"];
    let (code, output, errors) = Server::verb(&line).await;
    assert_eq!((code, output.trim()), (Some(0), "{\"unloaded\":\"identity\"}"), "{errors}");
    // the worker that drains is the server itself
    let cluster = client.cluster().await.unwrap();
    let worker = cluster.nodes.iter().find(|node| node.role == "worker").unwrap().name.clone();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let line = ["drain", &worker, "--server", &address, "-o", "json"];
    let (code, errors) = Server::verb_into(&line, writer).await;
    assert!(code == Some(0) && errors.is_empty(), "{code:?} {errors}");
    assert_eq!(server.wait(Duration::from_secs(60)).await.code, Some(0));
}

#[tokio::test]
async fn errors_are_json_where_the_output_is() {
    let address = format!("http://{}", server().await.grpc);
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong.toml");
    std::fs::write(&wrong, "capacity = 0\nzon = 'a'").unwrap();
    let (wrong, picture) = (wrong.display().to_string(), folder.path().join("picture.png"));
    std::fs::write(&picture, "no picture").unwrap();
    let picture = picture.display().to_string();
    let away = "http://127.0.0.1:1";
    let lines: [(&[&str], &str, i32); 12] = [
        (&["infer", "--image", &picture, "--server", &address], "INVALID_ARGUMENT", 1),
        (&["card", "nobody", "--server", &address], "NOT_FOUND", 1),
        (&["models", "load", "nobody", "--server", &address], "NOT_FOUND", 1),
        (&["actors", "restart", "nobody", "--server", &address], "NOT_FOUND", 1),
        (&["jobs", "watch", "0123", "--server", &address], "NOT_FOUND", 1),
        (&["jobs", "results", "0123", "--server", &address], "NOT_FOUND", 1),
        (&["drain", "nobody", "--server", &address], "NOT_FOUND", 1),
        (&["infer", "--server", &address], "USAGE", 2),
        (&["jobs", "list", "--limit", "none"], "USAGE", 2),
        (&["dance"], "USAGE", 2),
        (&["status", "--server", away], "NOBODY_ANSWERS", 3),
        (&["config", "check", &wrong], "CONFIGURATION", 1),
    ];
    for (line, expected, exit) in lines {
        let (code, output, errors) = Server::verb(&[line, &["-o", "json"]].concat()).await;
        let error: Value = serde_json::from_str(&errors).unwrap_or_else(|error| panic!("{line:?}: {error}: {errors}"));
        assert_eq!((code, output.as_str(), &error["code"]), (Some(exit), "", &expected.into()), "{line:?}: {error}");
        assert_eq!(error["exit_code"], exit, "{line:?}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{line:?}: {error}");
        let fields = ["field", "reason", "retry_seconds", "violations"];
        assert!(fields.iter().all(|field| error.get(field).is_some()), "{line:?}: {error}");
        match expected {
            "INVALID_ARGUMENT" => assert!(error["field"].as_str().unwrap().contains("image"), "{error}"),
            "CONFIGURATION" => assert_eq!(error["violations"].as_array().unwrap().len(), 2, "{error}"),
            _ => {}
        }
    }
    // for people, once
    let (_, _, errors) = Server::verb(&["infer", "--image", &picture, "--server", &address]).await;
    let description = errors.split("image: ").nth(1).unwrap().lines().next().unwrap();
    assert_eq!(errors.matches(description).count(), 1, "{errors}");
}

/// What would clear a screen, change its title or turn text around.
const HOSTILE: &str = "\u{1b}[2Jname\u{1b}]0;title\u{7}\u{9b}31m\u{202e}txt\r\u{7f}";

#[tokio::test]
async fn names_of_others_do_not_control_the_terminal() {
    let address = format!("http://{}", server().await.grpc);
    let id = job(HOSTILE, HOSTILE).await;
    let item = tempfile::tempdir().unwrap();
    let file = item.path().join(format!("{}.txt", HOSTILE.replace('/', "")));
    std::fs::write(&file, b"\xff").unwrap();
    std::fs::write(item.path().join("good.txt"), HOSTILE).unwrap();
    let folder = item.path().display().to_string();
    let lines: [&[&str]; 9] = [
        &["jobs", "list", "--limit", "1000"],
        &["jobs", "results", &id, "-o", "text"],
        &["jobs", "results", &id],
        &["jobs", "submit", &folder, "--no-answer"],
        &["card", HOSTILE],
        &["models", "load", HOSTILE],
        &["actors", "restart", HOSTILE],
        &["jobs", "watch", HOSTILE],
        &["infer", "--text", HOSTILE, "--no-answer"],
    ];
    let mut shown = 0;
    for line in lines {
        for output in [None, Some("json")] {
            let mut words = [line, &["--server", &address]].concat();
            if let (Some(output), false) = (output, line.contains(&"-o")) {
                words.extend(["-o", output]);
            }
            let (_, output, errors) = Server::verb(&words).await;
            let said = format!("{output}{errors}");
            let control = said.chars().find(|&letter| letter != '\n' && (letter.is_control() || letter == '\u{202e}'));
            assert_eq!(control, None, "{words:?}: {said}");
            shown += usize::from(said.contains("title"));
        }
    }
    assert_eq!(shown, 2 * lines.len(), "the rest of the name is shown by each");
}

#[tokio::test]
async fn help_says_how_a_verb_may_end() {
    for line in [&["--help"][..], &["jobs", "submit", "--help"], &["models", "list", "--help"]] {
        let (code, output, _) = Server::verb(line).await;
        assert!(code == Some(0) && output.contains("Exit codes:") && output.contains("nobody answers"), "{output}");
    }
    let (_, output, _) = Server::verb(&["serve", "--help"]).await;
    assert!(output.contains("Exit codes:") && output.contains("70"), "{output}");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (_, errors) = Server::verb_into(&["--help"], full).await;
    assert!(!errors.contains("panicked"), "{errors}");
}
