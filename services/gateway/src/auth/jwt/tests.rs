use jsonwebtoken::{EncodingKey, Header, encode};
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::*;

const SECRET_TEXT: &[u8] = b"thirty-two bytes that nobody has!";

struct Issuer {
    pair: KeyPair,
    key: EncodingKey,
}

impl Issuer {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        Self { pair, key }
    }

    fn jwk(&self, id: &str) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn sign(&self, id: &str, claims: &Value) -> String {
        let header = Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, claims, &self.key).unwrap()
    }
}

fn tokens(keys: &[Value]) -> Result<Tokens, String> {
    Tokens::parse(json!({ "keys": keys }).to_string().as_bytes(), "https://id", &["sensorium".to_owned()])
}

fn claims() -> Value {
    json!({ "iss": "https://id", "aud": ["other", "sensorium"], "exp": now() + 600.0, "sub": "ann", "tenant": "acme",
        "roles": ["infer", "billing"], "models": ["minilm"] })
}

fn refused(tokens: &Tokens, token: &str) -> String {
    match tokens.identify(token) {
        Err(Error::Unauthenticated(message)) => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_says_who_asks_and_for_what() {
    let issuer = Issuer::new();
    let tokens = tokens(&[issuer.jwk("one")]).unwrap();
    for _ in 0..2 {
        let caller = tokens.identify(&issuer.sign("one", &claims())).unwrap();
        assert_eq!((&*caller.tenant, caller.name.as_str()), ("acme", "the token of 'ann'"));
        assert_eq!(caller.roles, [Role::Infer]);
        assert_eq!(caller.models.as_deref(), Some(&["minilm".to_owned()][..]));
    }
    let bare = json!({ "iss": "https://id", "aud": "sensorium", "exp": now() + 600.0 });
    let caller = tokens.identify(&issuer.sign("one", &bare)).unwrap();
    assert!(caller.roles.is_empty() && caller.models.is_none(), "{caller:?}");
}

#[test]
fn claims_are_checked() {
    let issuer = Issuer::new();
    let tokens = tokens(&[issuer.jwk("one")]).unwrap();
    for (claim, value, word) in [
        ("exp", json!(now() - 600.0), "expired"),
        ("exp", Value::Null, "exp"),
        ("nbf", json!(now() + 600.0), "not valid yet"),
        ("aud", json!("billing"), "aud"),
        ("aud", Value::Null, "aud"),
        ("iss", json!("https://other"), "iss"),
        ("iss", Value::Null, "iss"),
        ("roles", json!("admin"), "can be used"),
    ] {
        let mut claims = claims();
        claims[claim] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(claim);
        }
        let message = refused(&tokens, &issuer.sign("one", &claims));
        assert!(message.contains(word), "{claim} = {value}: {message}");
    }
}

#[test]
fn what_is_remembered_expires_too() {
    let issuer = Issuer::new();
    let tokens = tokens(&[issuer.jwk("one")]).unwrap();
    let token = issuer.sign("one", &claims());
    tokens.identify(&token).unwrap();
    let hash = super::super::hash(&token);
    let mut known = tokens.known.get(&hash).unwrap();
    known.until = now() - 1.0;
    tokens.known.insert(hash, known);
    tokens.identify(&token).unwrap();
    assert!(tokens.known.get(&hash).unwrap().until > now(), "it was checked again");
}

#[test]
fn only_a_key_that_is_known_signs() {
    let (known, stranger) = (Issuer::new(), Issuer::new());
    let tokens = tokens(&[known.jwk("one"), Issuer::new().jwk("two")]).unwrap();
    assert!(refused(&tokens, &stranger.sign("one", &claims())).contains("signature"));
    assert!(refused(&tokens, &stranger.sign("three", &claims())).contains("no key"));
    let without_id = encode(&Header::new(Algorithm::ES256), &claims(), &known.key).unwrap();
    tokens.identify(&without_id).unwrap();
    assert!(refused(&tokens, "a.b.c").contains("token"));
    let mut forged = known.sign("one", &claims());
    forged.truncate(forged.len() - 4);
    refused(&tokens, &forged);
}

#[test]
fn the_key_and_not_the_token_chooses_the_algorithm() {
    let issuer = Issuer::new();
    let tokens = tokens(&[issuer.jwk("one")]).unwrap();
    // the public key, known to all, as if it were a secret
    for secret in [issuer.pair.public_key_raw(), &rcgen::PublicKeyData::subject_public_key_info(&issuer.pair)] {
        let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
        let confused = encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap();
        assert!(refused(&tokens, &confused).contains("HS256"));
    }
    // {"alg":"none"}
    let body = issuer.sign("one", &claims());
    let body = body.split('.').nth(1).unwrap();
    refused(&tokens, &format!("eyJhbGciOiJub25lIn0.{body}."));
    // a header without any
    refused(&tokens, &format!("e30.{body}."));
}

#[test]
fn secrets_are_good_for_hmac_alone_and_long() {
    let secret = |text: &[u8]| {
        serde_json::to_value(Jwk::from_encoding_key(&EncodingKey::from_secret(text), Algorithm::HS256).unwrap())
            .unwrap()
    };
    let of_secret = tokens(&[secret(SECRET_TEXT)]).unwrap();
    let token = encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(SECRET_TEXT)).unwrap();
    of_secret.identify(&token).unwrap();
    refused(&of_secret, &Issuer::new().sign("one", &claims()));
    let short = tokens(&[secret(b"short")]).err().unwrap();
    assert!(short.contains("5 bytes"), "{short}");
}

#[test]
fn a_set_of_keys_has_keys_that_sign() {
    let mut encrypting = Issuer::new().jwk("one");
    encrypting["use"] = json!("enc");
    let unknown = json!({ "kty": "AKP", "kid": "new" });
    let none = tokens(&[encrypting, unknown]).err().unwrap();
    assert!(none.contains("no key"), "{none}");
    let mut misnamed = Issuer::new().jwk("one");
    misnamed["alg"] = json!("HS256");
    let misnamed = tokens(&[misnamed]).err().unwrap();
    assert!(misnamed.contains("'one'") && misnamed.contains("HS256"), "{misnamed}");
    assert!(Tokens::parse(b"not json", "", &[]).is_err());
    // Ed25519: PKCS #8 of version 1 around a seed
    let prefix = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let key = EncodingKey::from_ed_der(&[&prefix[..], &[7; 32]].concat());
    let jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap()).unwrap();
    let token = encode(&Header::new(Algorithm::EdDSA), &claims(), &key).unwrap();
    tokens(&[jwk]).unwrap().identify(&token).unwrap();
}
