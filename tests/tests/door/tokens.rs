//! Tokens at the door: JWT signed by a key of a JWKS file, beside API keys.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use sensorium_tests::{Ask, Client, Refusal, Repository, Server, ServerOptions, chaos, eventually};
use serde_json::{Value, json};
use tonic::{Code, Status};

/// Who signs tokens.
struct Issuer {
    id: &'static str,
    key: EncodingKey,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        Self { id, key: EncodingKey::from_ec_der(&KeyPair::generate().unwrap().serialize_der()) }
    }

    fn jwks(&self) -> String {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        json!({ "keys": [jwk] }).to_string()
    }

    /// A token of good claims, with some of them set otherwise.
    fn token(&self, other: &[(&str, Value)]) -> String {
        let mut claims = json!({
            "iss": "https://id.example", "aud": "sensorium", "exp": seconds(600), "sub": "ann", "roles": ["infer"],
        });
        for (claim, value) in other {
            claims[*claim] = value.clone();
        }
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.key).unwrap()
    }
}

/// Unix time, so many seconds from now.
fn seconds(from_now: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    i64::try_from(now).unwrap() + from_now
}

async fn infer(client: &Client, token: &str, ask: Ask) -> Result<(), Status> {
    let mut request = ask.request();
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.inference.clone().model_infer(request).await.map(drop)
}

#[tokio::test]
async fn a_token_is_good_for_what_it_claims() {
    let issuer = Issuer::new("2026");
    let folder = tempfile::tempdir().unwrap();
    let (jwks, keys) = (folder.path().join("jwks.json"), folder.path().join("keys.toml"));
    std::fs::write(&jwks, issuer.jwks()).unwrap();
    let (_, entry, key) = Server::verb(&["key", "ci"]).await;
    std::fs::write(&keys, entry).unwrap();
    let options = ServerOptions::new(Repository::new().with(&["identity"]).chaos("chaos", &[]))
        .set("auth.jwks", &jwks.display().to_string())
        .set("auth.keys", &keys.display().to_string())
        .set("auth.issuer", "https://id.example")
        .set("auth.audience", "sensorium");
    let server = Server::start(options).await;
    let client = server.client().await;
    let ask = || chaos("identity", 0.0, 0.0);

    let good = issuer.token(&[]);
    infer(&client, &good, ask()).await.unwrap();
    infer(&client, &good, ask()).await.unwrap();
    infer(&client, key.trim(), ask()).await.unwrap();

    let stranger = Issuer::new("2026").token(&[]);
    for (token, word) in [
        (issuer.token(&[("exp", json!(seconds(-3600)))]), "expired"),
        (issuer.token(&[("nbf", json!(seconds(3600)))]), "not valid yet"),
        (issuer.token(&[("aud", json!("billing"))]), "aud"),
        (issuer.token(&[("iss", json!("https://elsewhere"))]), "iss"),
        (stranger, "signature"),
        // {"alg":"none"}, and no signature
        (format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap()), "token"),
        ("sk-guessed".to_owned(), "API key"),
    ] {
        let refusal = Refusal::of(infer(&client, &token, ask()).await);
        assert_eq!(refusal.code, Code::Unauthenticated, "{refusal:?}");
        assert!(refusal.message.contains(word), "{word} in {refusal:?}");
    }

    let denied = |refusal: Refusal, word: &str| {
        assert_eq!(refusal.code, Code::PermissionDenied, "{refusal:?}");
        assert!(refusal.message.contains(word), "{word} in {refusal:?}");
    };
    denied(Refusal::of(infer(&client, &issuer.token(&[("roles", json!(["billing"]))]), ask()).await), "infer");
    let restricted = issuer.token(&[("models", json!(["chaos"]))]);
    denied(Refusal::of(infer(&client, &restricted, ask()).await), "only chaos");
    infer(&client, &restricted, chaos("chaos", 0.0, 0.0)).await.unwrap();
    let nothing = issuer.token(&[("models", json!([]))]);
    denied(Refusal::of(infer(&client, &nothing, ask()).await), "identity");

    let address = format!("http://{}", server.grpc);
    let unload =
        async |token: &str| Server::verb(&["models", "unload", "chaos", "--server", &address, "--key", token]).await;
    let (code, _, err) = unload(&good).await;
    assert!(code == Some(1) && err.contains("PERMISSION_DENIED") && err.contains("admin"), "{err}");
    let (code, _, err) = unload(&issuer.token(&[("roles", json!(["infer", "admin"]))])).await;
    assert_eq!(code, Some(0), "{err}");

    // the signer changes its key: tokens of the old one are no longer good, though they were found so before
    let next = Issuer::new("2027");
    std::fs::write(&jwks, next.jwks()).unwrap();
    eventually("the new key", async || infer(&client, &next.token(&[]), ask()).await.ok()).await;
    let refusal = Refusal::of(infer(&client, &good, ask()).await);
    assert_eq!(refusal.code, Code::Unauthenticated, "{refusal:?}");
}
