//! `sensorium key`: makes an API key, and the entry of the file of keys that lets it in.

use rand::Rng;
use rand::distr::Alphanumeric;
use sensorium_gateway::auth::{Key, Role, hash};
use serde::Serialize;
use serde_json::json;

use super::failure::Failure;
use super::output::{Output, Sink, json_line};

/// Characters of a key: more than 180 bits.
const LENGTH: usize = 32;

/// Arguments of `sensorium key`.
#[derive(clap::Args, Clone, Debug)]
pub struct KeyArgs {
    /// A name for people; it stands in logs.
    name: String,
    /// On whose behalf the key asks.
    #[arg(long, default_value = "")]
    tenant: String,
    /// It may load, unload, restart and drain, too.
    #[arg(long)]
    admin: bool,
    /// Models that it may ask, separated by commas. Default: all.
    #[arg(long, value_delimiter = ',')]
    models: Vec<String>,
    /// How to print; as JSON, the entry and the key are one document on stdout.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Serialize)]
struct File {
    keys: [Key; 1],
}

/// Prints the entry on stdout, for the file of keys, and the key itself on stderr: it is never shown again.
///
/// # Errors
/// If it cannot be printed; a key whose entry was not written is not shown.
pub fn run(args: KeyArgs) -> Result<(), Failure> {
    let secret: String = rand::rng().sample_iter(Alphanumeric).take(LENGTH).map(char::from).collect();
    let secret = format!("sk-{secret}");
    let roles = if args.admin { vec![Role::Infer, Role::Admin] } else { vec![Role::Infer] };
    let hash = hash(&secret).iter().map(|byte| format!("{byte:02x}")).collect();
    let key = Key { name: args.name, tenant: args.tenant, hash, roles, models: args.models };
    if args.output == Output::Json {
        return json_line(&json!({ "key": secret, "entry": key }));
    }
    let entry = toml::to_string(&File { keys: [key] }).map_err(anyhow::Error::from)?;
    let mut stdout = Sink::stdout();
    stdout.text(&entry)?;
    stdout.flush()?;
    Sink::stderr().line(secret)
}
