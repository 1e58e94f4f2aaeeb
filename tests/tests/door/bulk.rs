//! Bulk jobs by the verb: one bad file costs itself alone, and the exit code says so.

use sensorium_tests::samples::picture;
use sensorium_tests::{Process, Repository, Server, ServerOptions, binary};
use serde_json::Value;
use std::time::Duration;
use tempfile::TempDir;

use super::outputs::server;

/// A folder of two good items and every kind of bad one.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("cat.png", &picture("chelsea.png"));
    write("words.txt", b"A sentence.");
    // the client finds these
    write("empty.txt", b"");
    write("latin.txt", b"caf\xe9");
    write("twice.png", &picture("chelsea.png"));
    write("twice.jpg", &picture("chelsea.png"));
    std::os::unix::fs::symlink("nowhere", folder.path().join("gone.png")).unwrap();
    // the server refuses these: a message that is too large, and a name
    write("large.png", &vec![0; 5_000_000]);
    let long = "d".repeat(200);
    std::fs::create_dir(folder.path().join(&long)).unwrap();
    write(&format!("{long}/{}.txt", "n".repeat(100)), b"A sentence.");
    // this is found to be none when it is looked at
    write("broken.png", b"no picture at all");
    folder
}

#[tokio::test]
async fn one_bad_file_does_not_refuse_a_folder() {
    let address = format!("http://{}", server().await.grpc);
    let folder = folder();
    let path = folder.path().display().to_string();
    let results = folder.path().join("results");
    let results = results.display().to_string();
    let common = ["jobs", "submit", &path, "--no-answer", "--server", &address];
    let (code, output, errors) = Server::verb(&[&common[..], &["--results", &results]].concat()).await;
    assert_eq!(code, Some(4), "{output}{errors}");
    for name in ["empty", "latin", "twice", "gone.png", "large", "nnnn"] {
        assert!(errors.lines().any(|line| line.starts_with("skipped ") && line.contains(name)), "{name} in {errors}");
    }
    assert!(errors.contains("1 of 3 items failed") && errors.contains("6 could not be submitted"), "{errors}");
    // the id first, and in the end what became of it
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), 2, "{output}");
    let id = lines[0].split(' ').next().unwrap();
    assert!(lines[0].contains("accepted") && lines[1].contains(id) && lines[1].contains("partial"), "{output}");
    let kept = std::fs::read_to_string(&results).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |name: &str| kept.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("{name} in {kept:?}"));
    assert!(of("cat")["error"].is_null() && of("words")["error"].is_null());
    assert!(of("broken")["error"].as_str().unwrap().contains("image"));

    // watched again, it ends the same way
    let (code, _, errors) = Server::verb(&["jobs", "watch", id, "--server", &address]).await;
    assert!(code == Some(4) && errors.contains("1 of 3 items failed"), "{code:?} {errors}");
    // for programs
    let (code, output, errors) = Server::verb(&[&common[..], &["-o", "json"]].concat()).await;
    assert_eq!(code, Some(4), "{errors}");
    let told: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((told.len(), &told[1]["state"], &told[1]["failed"]), (2, &"partial".into(), &1.into()), "{output}");
    let errors: Vec<Value> = errors.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let codes: Vec<&str> = errors.iter().map(|error| error["code"].as_str().unwrap()).collect();
    assert_eq!(codes, [&["ITEM_SKIPPED"; 6][..], &["ITEMS_FAILED"]].concat(), "{errors:?}");
    // whoever wants all or nothing says so
    let (code, output, errors) = Server::verb(&[&common[..], &["--strict"]].concat()).await;
    assert!(code == Some(2) && output.is_empty(), "{code:?} {output}{errors}");
}

#[tokio::test]
async fn lines_are_skipped_and_nothing_at_all_is_a_mistake() {
    let address = format!("http://{}", server().await.grpc);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("items.jsonl");
    let path = file.display().to_string();
    let submit = async |text: &str| {
        std::fs::write(&file, text).unwrap();
        Server::verb(&["jobs", "submit", &path, "--no-answer", "--detach", "--server", &address]).await
    };
    let (code, output, errors) =
        submit("{\"text\": \"one\"}\n{\"smell\": \"two\"}\n{\"image\": \"none.png\"}\nthree").await;
    assert_eq!((code, output.lines().count()), (Some(4), 1), "{output}{errors}");
    let skipped: Vec<&str> = errors.lines().filter(|line| line.starts_with("skipped ")).collect();
    assert_eq!(skipped.len(), 3, "{errors}");
    assert!(
        ["line 2", "line 3", "line 4"].iter().zip(&skipped).all(|(line, skipped)| skipped.contains(line)),
        "{errors}"
    );
    let (code, output, errors) = submit("{\"text\": \"one\"}").await;
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{output}");
    for text in ["", "no JSON", "{\"image\": \"none.png\"}"] {
        let (code, _, errors) = submit(text).await;
        assert!(code == Some(2) && errors.contains("nothing to sense"), "{text}: {code:?} {errors}");
    }
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    std::fs::write(folder.path().join("empty/a.txt"), "").unwrap();
    let empty = folder.path().join("empty").display().to_string();
    let (code, _, errors) = Server::verb(&["jobs", "submit", &empty, "--server", &address]).await;
    assert!(code == Some(2) && errors.contains("nothing to submit"), "{code:?} {errors}");
}

#[tokio::test]
async fn a_file_of_jobs_belongs_to_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let jobs = format!("jobs.path={}", folder.path().join("jobs.redb").display());
    let (key, path) = jobs.split_once('=').unwrap();
    let repository = || Repository::new().with(&["identity"]);
    let first = Server::start(ServerOptions::new(repository()).set(key, path)).await;
    let second = Server::spawn(ServerOptions::new(repository()).set(key, path));
    let exit = second.wait(Duration::from_secs(60)).await;
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("jobs.path") && exit.log.contains("another process holds it"), "{}", exit.log);
    // the first one did not notice, and leaves the file to the next
    let other = Process::spawn(&binary(), &["status", "--server", &first.grpc.to_string()].map(str::to_owned), &[]);
    assert_eq!(other.wait(Duration::from_secs(60)).await.code, Some(0));
    first.terminate();
    assert_eq!(first.wait(Duration::from_secs(60)).await.code, Some(0));
    Server::start(ServerOptions::new(repository()).set(key, path)).await;
}
