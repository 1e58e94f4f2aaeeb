//! API keys at the door: who has none, who has a wrong one, and what each is good for.

use sensorium_tests::{Ask, Client, Refusal, Repository, Server, ServerOptions, chaos, eventually};
use tonic::{Code, Status};

/// Makes a key by the operator's verb; gives the entry of the file and the key itself.
pub(super) async fn key(arguments: &[&str]) -> (String, String) {
    let (code, entry, secret) = Server::verb(&[&["key"], arguments].concat()).await;
    assert_eq!(code, Some(0), "{secret}");
    (entry, secret.trim().to_owned())
}

pub(super) async fn infer(client: &Client, key: Option<&str>, ask: Ask) -> Result<(), Status> {
    let mut request = ask.request();
    if let Some(key) = key {
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    client.inference.clone().model_infer(request).await.map(drop)
}

#[tokio::test]
async fn a_key_is_good_for_what_it_says() {
    let (reader, readers_key) = key(&["reader", "--tenant", "acme", "--models", "identity"]).await;
    let (operator, operators_key) = key(&["operator", "--admin"]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), reader + "\n" + &operator).unwrap();
    let repository = Repository::new().with(&["identity"]).chaos("chaos", &[]);
    let keys = file.path().display().to_string();
    let server = Server::start(ServerOptions::new(repository).set("auth.keys", &keys)).await;
    let client = server.client().await;
    let ask = |model| chaos(model, 0.0, 0.0);

    for (given, word) in [(None, "no credentials"), (Some("sk-guessed"), "not known")] {
        let refusal = Refusal::of(infer(&client, given, ask("identity")).await);
        assert_eq!(refusal.code, Code::Unauthenticated, "{refusal:?}");
        assert!(refusal.message.contains(word), "{refusal:?}");
    }
    infer(&client, Some(&readers_key), ask("identity")).await.unwrap();
    let refusal = Refusal::of(infer(&client, Some(&readers_key), ask("chaos")).await);
    assert!(refusal.code == Code::PermissionDenied && refusal.message.contains("only identity"), "{refusal:?}");
    infer(&client, Some(&operators_key), ask("chaos")).await.unwrap();

    let address = format!("http://{}", server.grpc);
    let unload =
        async |key: &str| Server::verb(&["models", "unload", "chaos", "--server", &address, "--key", key]).await;
    let (code, _, err) = unload(&readers_key).await;
    assert!(code == Some(1) && err.contains("PERMISSION_DENIED") && err.contains("admin"), "{err}");
    let (code, _, err) = unload(&operators_key).await;
    assert_eq!(code, Some(0), "{err}");
    // health needs no key: load balancers have none
    client.check("").await.unwrap();
}

#[tokio::test]
async fn a_key_is_taken_back_without_a_restart() {
    let (one, ones_key) = key(&["one"]).await;
    let (two, twos_key) = key(&["two"]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{one}\n{two}")).unwrap();
    let keys = file.path().display().to_string();
    let repository = Repository::new().with(&["identity"]);
    let server = Server::start(ServerOptions::new(repository).set("auth.keys", &keys)).await;
    let client = server.client().await;
    let ask = async |key: &str| infer(&client, Some(key), chaos("identity", 0.0, 0.0)).await;
    ask(&ones_key).await.unwrap();
    ask(&twos_key).await.unwrap();

    std::fs::write(file.path(), &two).unwrap();
    let status = eventually("the key is taken back", async || ask(&ones_key).await.err()).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    ask(&twos_key).await.unwrap();
    // a file that cannot be used changes nothing, and says so
    std::fs::write(file.path(), "[[keys]]\nname = 'three'").unwrap();
    eventually("the broken file is told", async || server.log().contains("cannot be used").then_some(())).await;
    ask(&twos_key).await.unwrap();
    std::fs::write(file.path(), format!("{one}\n{two}")).unwrap();
    eventually("the key is given again", async || ask(&ones_key).await.ok()).await;
}
