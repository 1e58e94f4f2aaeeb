//! The verbs of the binary.

use sensorium_tests::Server;
use serde_json::Value;

#[tokio::test]
async fn help_lists_the_verbs() {
    let (code, output, _) = Server::verb(&["--help"]).await;
    assert_eq!(code, Some(0));
    for verb in ["serve", "infer", "status", "models", "actors", "card", "config"] {
        assert!(output.contains(verb), "{verb} in\n{output}");
    }
    assert_eq!(Server::verb(&["dance"]).await.0, Some(2));
}

#[tokio::test]
async fn a_configuration_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sensorium.toml");
    let path = file.to_str().unwrap();
    let (code, default, _) = Server::verb(&["config", "default"]).await;
    assert_eq!(code, Some(0));
    std::fs::write(&file, default).unwrap();
    assert_eq!(Server::verb(&["config", "check", path]).await.0, Some(0));
    for (text, words) in [
        ("[limits]\nmax_inflght = 3", ["limits", "max_inflght"]),
        ("[limits]\nmax_inflight = 'many'", ["limits.max_inflight", "many"]),
        ("grpc = 'somewhere'", ["grpc", "somewhere"]),
        ("name = ", ["line 1", "sensorium.toml"]),
    ] {
        std::fs::write(&file, text).unwrap();
        let (code, _, errors) = Server::verb(&["config", "check", path]).await;
        assert_eq!(code, Some(1), "{text}");
        for word in words {
            assert!(errors.contains(word), "'{word}' in {errors}");
        }
    }
}

#[tokio::test]
async fn each_mistake_of_a_configuration_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sensorium.toml");
    let path = file.to_str().unwrap();
    let text = "capacity = 0\nzon = 'a'\n[limits]\nmax_inflight = 'many'\n[register]\ncertificate = 'c.pem'\n\
                ca = 'ca.pem'\nlease_seconds = 0\n[plane]\nconnections = 0\n";
    std::fs::write(&file, text).unwrap();
    let (code, _, errors) = Server::verb(&["config", "check", path]).await;
    assert_eq!(code, Some(1));
    let lines: Vec<&str> = errors.lines().collect();
    let expected = [
        ["capacity: 0, ", "at least 1", "line 1"],
        ["zon: \"a\", ", "did you mean zone?", "line 2"],
        ["limits.max_inflight: \"many\", ", "expected a whole number", "line 4"],
        ["register.certificate: \"c.pem\", ", "register.key", "line 6"],
        ["register.lease_seconds: 0, ", "at least 1", "line 8"],
        ["plane.connections: 0, ", "at least 1", "line 10"],
    ];
    assert_eq!(lines.len(), expected.len(), "{errors}");
    for (line, words) in lines.iter().zip(expected) {
        assert!(line.starts_with(words[0]), "'{}' in {line}", words[0]);
        assert!(words.iter().all(|word| line.contains(word)), "{words:?} in {line}");
    }
    // whoever starts with it is told the same, and of flags and variables as well
    for role in ["serve", "gateway", "worker"] {
        let (code, _, errors) = Server::verb(&[role, "--config", path, "--set", "limits.max_parts=0"]).await;
        assert_eq!(code, Some(1), "{role}: {errors}");
        let named = lines.iter().all(|line| errors.contains(line));
        assert!(
            named && errors.contains("limits.max_parts: 0, expected at least 1 (from the command line)"),
            "{errors}"
        );
    }
}

#[tokio::test]
async fn infer_prints_json_and_says_by_its_code_how_it_went() {
    let server = format!("http://{}", super::server().await.grpc);
    let picture = sensorium_tests::samples::folder().join("images/chelsea.png");
    let picture = picture.to_str().unwrap();
    let common = ["infer", "--server", &server, "-o", "json", "--no-answer", "--image", picture];
    let (code, output, errors) = Server::verb(&[&common[..], &["--text", "A cat looks at us."]].concat()).await;
    assert_eq!(code, Some(0), "{errors}");
    let report: Value = serde_json::from_str(&output).unwrap();
    let branches = report["branches"].as_array().unwrap();
    assert_eq!(branches.len(), 2, "{branches:?}");
    assert!(branches.iter().all(|branch| branch["state"] == "ok"), "{branches:?}");
    assert_eq!(report["fusion"]["contributions"].as_array().unwrap().len(), 2);

    // wrong usage, nobody there, a refusal
    assert_eq!(Server::verb(&["infer", "--server", &server]).await.0, Some(2));
    assert_eq!(Server::verb(&["infer", "--server", "http://127.0.0.1:1", "--text", "hello"]).await.0, Some(3));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "no image").unwrap();
    let broken = file.path().to_str().unwrap();
    let (code, _, errors) = Server::verb(&["infer", "--server", &server, "--image", broken]).await;
    assert_eq!(code, Some(1));
    assert!(errors.contains("INVALID_ARGUMENT") && errors.contains("image"), "{errors}");
}

#[tokio::test]
async fn an_operator_sees_the_server() {
    let server = format!("http://{}", super::server().await.grpc);
    let json = async |arguments: &[&str]| -> Value {
        let all = [arguments, &["--server", &server, "-o", "json"]].concat();
        let (code, output, errors) = Server::verb(&all).await;
        assert_eq!(code, Some(0), "{arguments:?}: {errors}");
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output}"))
    };
    let tree = json(&["actors", "tree"]).await;
    let paths: Vec<&str> = tree.as_array().unwrap().iter().map(|actor| actor["path"].as_str().unwrap()).collect();
    assert!(paths.iter().any(|path| path.ends_with("text/minilm/1/replica-0")), "{paths:?}");
    let models = json(&["models", "list"]).await;
    assert!(
        models.as_array().unwrap().iter().any(|model| model["name"] == "minilm" && model["state"] == "READY"),
        "{models}"
    );
    let status = json(&["status"]).await;
    assert!(status["ready"] == true && status["live"] == true, "{status}");
    let card = json(&["card", "minilm"]).await;
    assert!(card.to_string().contains("Apache-2.0"), "{card}");

    let (code, output, _) = Server::verb(&["actors", "tree", "--server", &server]).await;
    assert!(code == Some(0) && output.contains("replica-0"), "{output}");
    let (code, _, errors) = Server::verb(&["actors", "restart", "nobody", "--server", &server]).await;
    assert!(code == Some(1) && errors.contains("NOT_FOUND"), "{errors}");
}
